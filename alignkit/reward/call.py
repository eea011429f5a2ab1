"""The one place where a reward is called: by trainers, decoders, metrics and the command line alike.

A reward that raises, answers with the wrong number of values or with something that is not a finite number stops the
run, and the message names the reward and the sample. It never becomes a zero that trains on silently.
"""

import inspect
import math
import numbers
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from alignkit.errors import AlignkitError, RewardCallError, RewardValueError
from alignkit.reward.contract import check_columns, granularity, parameters, reward_name

Score = float | None | list[float]

# How long to look for the one sample that makes a reward raise: a judge behind a network may be slow.
SEARCH_SECONDS = 30.0


def call_reward(
    reward: Any,
    prompts: list,
    completions: list,
    *,
    columns: Mapping[str, list] | None = None,
    completion_ids: list[list[int]] | None = None,
    trainer_state: Any = None,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    name: str | None = None,
) -> list[Score]:
    """Scores completions with a reward, as TRL calls it, and checks the answer.

    Args:
        reward: any callable of the contract, `async` ones included.
        prompts, completions: N strings or message lists each.
        columns: further columns of the data, N values each. All of them are passed to a reward that takes
            `**columns`, to others only those that they name.
        completion_ids: the N completions as token ids, where they exist; per-token scores are held against them.
        trainer_state, log_extra, log_metric: as TRL passes them; outside a trainer logging does nothing.
        name: the name for messages; the reward's own where it is not given.

    Returns:
        N scores: floats or None, and for a reward of granularity "turn" or "token" lists of floats or None.

    Raises:
        MissingColumnError: a required column is not in `columns`.
        RewardCallError: the reward raised (the message names the sample when a sample alone raises too), or there is
            not one value of everything for each completion.
        RewardValueError: the answer has the wrong length, form, or a value that is not finite.
    """
    name = name or reward_name(reward)
    columns = dict(columns or {})
    count = len(completions)
    lengths = {"prompts": len(prompts), **{column: len(values) for column, values in columns.items()}}
    if completion_ids is not None:
        lengths["completion_ids"] = len(completion_ids)
    uneven = {what: length for what, length in lengths.items() if length != count}
    if uneven:
        raise RewardCallError(f"{count} completions to score, but {uneven}: each needs one value per completion")
    check_columns([reward], ["prompt", *columns])
    offered = {
        "prompts": prompts,
        "completions": completions,
        **columns,
        "trainer_state": trainer_state,
        "log_extra": log_extra or _log_nothing,
        "log_metric": log_metric or _log_nothing,
    }
    if completion_ids is not None:
        offered["completion_ids"] = completion_ids
    accepted = _accepted(reward, offered, name)
    try:
        answer = _call(reward, accepted)
    except AlignkitError:
        raise
    except Exception as error:
        where = _offending_sample(reward, accepted, count, type(error))
        raise RewardCallError(
            f"reward '{name}' raised {type(error).__name__}: {error}"
            + (f"\n{_sample(where, prompts, completions)}" if where is not None else f" (on a batch of {count})")
        ) from error
    return _checked(answer, reward, name, prompts, completions, completion_ids)


def _log_nothing(name: str, value: Any) -> None:
    """Outside a trainer there is nowhere to log to."""


def _accepted(reward: Any, offered: dict[str, Any], name: str) -> dict[str, Any]:
    taken = parameters(reward)
    ids = taken.get("completion_ids")
    if ids is not None and ids.default is ids.empty and "completion_ids" not in offered:
        raise RewardCallError(
            f"reward '{name}' needs completion_ids, the token ids of the completions: they exist while a model "
            "generates, not for text alone. Let the reward read `completions` instead, or use it in training only"
        )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return offered
    return {key: value for key, value in offered.items() if key in taken}


def _call(reward: Any, arguments: dict[str, Any]) -> Any:
    return settle(reward(**arguments))


def settle(answer: Any) -> Any:
    """What an answer becomes: awaited if it can be, in whatever thread a loop may run; else the answer itself."""
    if not inspect.isawaitable(answer):
        return answer
    # Here, because most rewards are synchronous and `alignkit rewards list` should not wait for it.
    import asyncio
    import concurrent.futures

    async def wait() -> Any:
        return await answer

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # In a notebook a loop runs already in this thread; another thread may have its own.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _offending_sample(reward: Any, arguments: dict[str, Any], count: int, error: type[Exception]) -> int | None:
    """The first sample that raises the same error when it is scored alone."""
    per_sample = {key: value for key, value in arguments.items() if isinstance(value, list) and len(value) == count}
    deadline = time.monotonic() + SEARCH_SECONDS
    for i in range(count):
        if time.monotonic() > deadline:
            return None
        try:
            _call(reward, {**arguments, **{key: value[i : i + 1] for key, value in per_sample.items()}})
        except error:
            return i
        except Exception:
            # A reward that needs the whole batch fails on one sample for reasons of its own.
            return None
    return None


def _checked(
    answer: Any, reward: Any, name: str, prompts: list, completions: list, ids: list[list[int]] | None
) -> list[Score]:
    count = len(completions)
    answer = _plain(answer)
    if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
        raise RewardValueError(
            f"reward '{name}' returned {_shown(answer)}; expected a list of {count} numbers, one for each completion"
        )
    values = [_plain(value) for value in answer]
    if len(values) != count:
        raise RewardValueError(
            f"reward '{name}' returned a list of {len(values)} for {count} completions; expected one for each, "
            "None where it has no opinion"
        )
    unit = granularity(reward)
    scores: list[Score] = []
    for i, value in enumerate(values):
        fault = None
        if value is None:
            scores.append(None)
        elif unit == "completion":
            number, fault = _number(value)
            if isinstance(value, list):
                fault = f"returned a list ({_shown(value)}); a reward of granularity 'completion' returns a number"
            scores.append(number)
        else:
            finer, fault = _numbers(value, unit, len(ids[i]) if ids is not None and unit == "token" else None)
            scores.append(finer)
        if fault:
            raise RewardValueError(f"reward '{name}' {fault}\n{_sample(i, prompts, completions)}")
    return scores


def _plain(value: Any) -> Any:
    """Python's own numbers and lists for those of numpy and torch."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else value


def _number(value: Any) -> tuple[float, str | None]:
    if not isinstance(value, numbers.Real):
        return math.nan, f"returned {_shown(value)}; expected a finite number, or None for no opinion"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isfinite(number):
        return number, None
    return number, f"returned {number}; expected a finite number, or None for no opinion"


def _numbers(value: Any, unit: str, expected: int | None) -> tuple[list[float], str | None]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return [], f"returned {_shown(value)}; a reward of granularity '{unit}' returns a list of numbers, or None"
    found = [_number(_plain(item)) for item in value]
    for position, (_, fault) in enumerate(found):
        if fault:
            return [], f"{fault} (at {unit} {position})"
    if expected is not None and len(found) != expected:
        return [], f"returned {len(found)} per-token scores for a completion of {expected} tokens"
    return [number for number, _ in found], None


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:59] + '…'} (a {type(value).__name__})"


def _sample(i: int, prompts: list, completions: list) -> str:
    prompt, completion = _excerpt(prompts[i]), _excerpt(completions[i])
    return f"  sample {i + 1} of {len(completions)}\n  prompt: {prompt}\n  completion: {completion}"


def _excerpt(text: Any, length: int = 160) -> str:
    if isinstance(text, list):
        text = " / ".join(
            str(message.get("content")) if isinstance(message, dict) else str(message) for message in text
        )
    flat = " ".join(str(text).split())
    return repr(flat if len(flat) <= length else flat[: length - 1] + "…")


def scalar_score(score: Score) -> float | None:
    """What a reward says of a whole completion: its scores of turns or tokens summed; None stays no opinion.

    >>> scalar_score([0.5, 0.25]), scalar_score(0.5), scalar_score(None)
    (0.75, 0.5, None)
    """
    return sum(score) if isinstance(score, list) else score
