"""What a reward is: the call signature, the columns it needs, the name it is logged under.

The signature is TRL's own, so that one object serves alignkit's trainers, TRL's `GRPOTrainer` and `RLOOTrainer`, the
decoders and the metrics.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from alignkit.errors import MissingColumnError, RewardError
from alignkit.settings import suggestion

RESERVED = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)
GRANULARITIES = ("completion", "turn", "token")

# Columns that the trainer consumes itself: a reward receives them as `prompts` and `completions`.
CONSUMED = {"prompt": "prompts", "completion": "completions"}


@runtime_checkable
class Reward(Protocol):
    """Scores completions: strings or message lists in, one float or None for each out.

    Any callable with this signature is a reward: a function, a `functools.partial`, an object with `__call__`, an
    `async` one too. Two attributes are optional: `__name__`, the name in the log, and `granularity`, one of
    `"completion"` (the default: a number per completion), `"turn"` or `"token"` (a list of numbers per completion).

    A keyword without a default is a column of the data that the reward requires. `None` means "no opinion": the value
    is left out, it is not a zero. A reward holds its network; it is not an `nn.Module` itself, because TRL treats a
    module as a sequence classifier.

    >>> def politeness(prompts, completions, *, persona, **columns):
    ...     return [float("please" in text) for text in completions]
    >>> isinstance(politeness, Reward), required_columns(politeness)
    (True, ['persona'])
    """

    def __call__(
        self, prompts: list, completions: list, **columns: Any
    ) -> list[float | None] | list[list[float] | None]:
        """Scores `completions[i]`, the answer to `prompts[i]`; each column is a list of the same length."""
        ...


def unwrap(reward: Any) -> Any:
    """The function or object inside any number of `functools.partial`."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return reward


def reward_name(reward: Any) -> str:
    """The name a reward is logged under: its `__name__`, else that of its class; partials are looked through.

    >>> reward_name(functools.partial(len)), reward_name(lambda completions, **columns: [])
    ('len', 'lambda')
    """
    for candidate in (reward, unwrap(reward)):
        name = getattr(candidate, "__name__", None)
        if isinstance(name, str) and name:
            return name.strip("<>")
    return type(unwrap(reward)).__name__


def unique_names(rewards: Iterable[Any]) -> list[str]:
    """Names in the order of `rewards`, with `_2`, `_3` after those that repeat.

    TRL logs rewards of one name over each other without a word; a name of ours is never taken twice.

    >>> def length(completions, **columns): ...
    >>> unique_names([length, length])
    ['length', 'length_2']
    """
    own = [reward_name(reward) for reward in rewards]
    taken: set[str] = set()
    names = []
    for name in own:
        candidate, number = name, 2
        # A later reward that is itself called length_2 keeps its name.
        while candidate in taken or (candidate != name and candidate in own):
            candidate, number = f"{name}_{number}", number + 1
        taken.add(candidate)
        names.append(candidate)
    return names


def granularity(reward: Any) -> str:
    """`"completion"`, `"turn"` or `"token"`: what a reward gives a score to.

    Raises:
        RewardError: the attribute says something else.
    """
    value = getattr(reward, "granularity", None) or getattr(unwrap(reward), "granularity", None) or "completion"
    if value not in GRANULARITIES:
        raise RewardError(
            f"reward '{reward_name(reward)}' has granularity {value!r}; expected one of {', '.join(GRANULARITIES)}"
        )
    return value


def parameters(reward: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a reward's call by name; `**kwargs` alone for a callable that hides its signature.

    Raises:
        RewardError: it cannot be called, or takes arguments by position only.
    """
    if not callable(reward):
        raise RewardError(
            f"a reward is a callable (prompts, completions, **columns), got {reward!r} of type {type(reward).__name__}"
        )
    try:
        found = dict(inspect.signature(reward).parameters)
    except ValueError:
        return {"columns": inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)}
    positional = [p.name for p in found.values() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if positional:
        raise RewardError(
            f"reward '{reward_name(reward)}' takes {', '.join(map(repr, positional))} by position only; rewards are "
            "called with keywords: prompts=, completions=, and one per column. Remove the '/' from its signature"
        )
    return found


def required_columns(reward: Any) -> list[str]:
    """Columns without which a reward cannot score: its keywords without a default that no trainer supplies.

    An object whose call takes `**columns` only can name them in an attribute `required_columns`; compositions do, for
    the rewards inside them.
    """
    by_signature = [
        name
        for name, parameter in parameters(reward).items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in RESERVED
    ]
    declared = getattr(reward, "required_columns", None) or getattr(unwrap(reward), "required_columns", None) or []
    bound = set(reward.keywords) if isinstance(reward, functools.partial) else set()
    return list(dict.fromkeys([*by_signature, *(name for name in declared if name not in bound)]))


def check_columns(rewards: Iterable[Any], available: Iterable[str]) -> None:
    """Holds the columns that rewards require against those that the data have, before anything heavy is loaded.

    Raises:
        MissingColumnError: some are missing; the message names all of them, for all rewards.
    """
    rewards = list(rewards)
    columns = list(available)
    has = ", ".join(columns) or "no columns"
    clashes = sorted({"prompts", "completions", "completion_ids"}.intersection(columns))
    if clashes:
        raise RewardError(
            f"the data has columns {', '.join(clashes)}, under which rewards get what the policy wrote; rename them"
        )
    problems = []
    for name, reward in zip(unique_names(rewards), rewards, strict=True):
        for column in required_columns(reward):
            if column in CONSUMED:
                problems.append(
                    f"reward '{name}' asks for '{column}': it arrives as a list, name it {CONSUMED[column]}"
                )
            elif column not in columns:
                hint = suggestion(column, columns)
                problems.append(
                    f"reward '{name}' needs column '{column}'; the data has: {has}{'.' if hint else ''}{hint}"
                )
    if problems:
        raise MissingColumnError("\n".join(problems))


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _settings(reward: Any) -> dict[str, Any]:
    """Constructor arguments that the object kept under their own names, where they are plain values."""
    if isinstance(reward, functools.partial):
        found = dict(reward.keywords)
    elif inspect.isroutine(reward) or isinstance(reward, type):
        return {}
    else:
        try:
            names = list(inspect.signature(type(reward)).parameters)
        except ValueError:
            return {}
        kept = getattr(reward, "__dict__", {})
        found = {name: kept[name] for name in names if name in kept}
    return {name: value for name, value in found.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, str | int | float | bool)


def describe_reward(reward: Any) -> dict[str, Any]:
    """What a run records about a reward, so that its figures can be traced to the code that made them.

    Returns:
        `name`, `target` (`module:name` or `file.py:name`), `distribution` and `version` (None when the code belongs to
        no installed distribution), `settings` where there are any, `file` and `sha256` for a reward from a `.py` file,
        and for a composition `parts`, the descriptions of the rewards inside.
    """
    inner = unwrap(reward)
    owner = inner if inspect.isroutine(inner) or isinstance(inner, type) else type(inner)
    module = getattr(owner, "__module__", None) or "builtins"
    distributions = _distributions().get(module.split(".")[0], [])
    described: dict[str, Any] = {
        "name": reward_name(reward),
        "target": f"{module}:{getattr(owner, '__qualname__', reward_name(reward))}",
        "distribution": distributions[0] if distributions else None,
        "version": importlib.metadata.version(distributions[0]) if distributions else None,
    }
    source = getattr(inspect.getmodule(owner), "__alignkit_source__", None)
    if source:
        described.update(source, target=f"{source['file']}:{getattr(owner, '__qualname__', '')}")
    settings = _settings(reward)
    if settings:
        described["settings"] = settings
    parts = inner_rewards(inner)
    if parts:
        described["parts"] = [describe_reward(part) for part in parts]
    return described


def inner_rewards(reward: Any) -> list[Callable]:
    """The rewards that a composition (`rewards`) or a transform (`reward`) holds; none for any other reward."""
    many = getattr(reward, "rewards", None)
    if isinstance(many, list | tuple):
        return [part for part in many if callable(part)]
    one = getattr(reward, "reward", None)
    return [one] if callable(one) and not inspect.ismethod(one) else []
