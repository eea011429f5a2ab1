"""`load_reward`: a name and its settings become a reward, or an error that says what would have worked."""

import contextvars
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, RewardLoadError, RewardNotFoundError
from alignkit.registry.entries import available_rewards
from alignkit.reward import reward_name
from alignkit.reward.contract import parameters
from alignkit.settings import hints_of, misfit, suggestion

SUPPLIED = ("prompts", "completions", "completion_ids")

# A composition may load the rewards inside it by name; what was refused outside stays refused inside.
_code_allowed = contextvars.ContextVar("code_allowed", default=True)


def load_reward(name: str, /, *, allow_code: bool = True, **kwargs: Any) -> Any:
    """The reward of a name, ready to be called.

    Args:
        name: a registered name (`alignkit rewards list` shows them), `package.module:Object`, or
            `path/to/file.py:Object`.
        allow_code: False refuses everything but registered names: the other two run whatever code they point at.
        kwargs: settings. A class is constructed with them, a function gets them bound; a ready object takes none.

    Raises:
        RewardNotFoundError: nothing has that name; the message suggests what does.
        RewardCollisionError: two distributions register it.
        RewardLoadError: it cannot be imported, does not take these settings, or is no reward.
    """
    token = _code_allowed.set(allow_code and _code_allowed.get())
    try:
        return _build(name, find_reward(name), kwargs)
    finally:
        _code_allowed.reset(token)


def find_reward(name: str, /, *, allow_code: bool = True) -> Any:
    """What `load_reward` would build from: the class, function or object of a name, imported but not constructed.

    Raises:
        RewardNotFoundError, RewardCollisionError, RewardLoadError: as `load_reward`.
    """
    target, colon, attribute = name.rpartition(":")
    is_file = target.endswith(".py") or (not colon and name.endswith(".py"))
    if not colon and not is_file:
        return _registered(name)
    if not (allow_code and _code_allowed.get()):
        raise RewardLoadError(
            f"reward '{name}' is refused: it runs the code it points at, and --no-code (allow_code=False) was given. "
            "Only registered rewards are allowed; see `alignkit rewards list`"
        )
    if not target or not attribute:
        example = name if name.endswith(".py") else target or "package.module"
        raise RewardNotFoundError(f"reward '{name}' names no object; write '{example.rstrip(':')}:NAME'")
    module = _module_of_file(name, Path(target).expanduser()) if is_file else _module(name, target)
    return _attribute(name, module, attribute)


def _build(name: str, found: Any, kwargs: dict[str, Any]) -> Any:
    if isinstance(found, type) or (inspect.isroutine(found) and kwargs):
        _check_settings(name, found, kwargs)
    if isinstance(found, type):
        try:
            reward = found(**kwargs)
        except AlignkitError:
            raise
        except Exception as error:
            raise RewardLoadError(
                f"reward '{name}' cannot be built from {_settings(kwargs)}: {type(error).__name__}: {error}"
            ) from error
    elif not kwargs:
        reward = found
    elif inspect.isroutine(found) or isinstance(found, functools.partial):
        reward = functools.partial(found, **kwargs)
        reward.__name__ = reward_name(found)  # type: ignore[attr-defined]
    else:
        raise RewardLoadError(
            f"reward '{name}' is a ready {type(found).__name__} object and takes no settings, got {_settings(kwargs)}"
        )
    if not callable(reward):
        raise RewardLoadError(
            f"'{name}' is no reward: a {type(reward).__name__} cannot be called with (prompts, completions, **columns)"
        )
    taken = parameters(reward)
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()) and not any(key in taken for key in SUPPLIED):
        raise RewardLoadError(
            f"'{name}' is no reward: it takes ({', '.join(taken)}); a reward takes (prompts, completions, **columns)"
        )
    return reward


def _registered(name: str) -> Any:
    entries = available_rewards()
    for entry in entries:
        if entry.name == name:
            return entry.load()
    known = sorted({entry.name for entry in entries})
    hint = suggestion(name, known)
    offer = f"Registered are: {', '.join(known)}." if known else "No installed distribution registers any."
    raise RewardNotFoundError(
        f"no reward is called '{name}'.{hint} {offer} An object is named as 'package.module:Object' or "
        "'path/to/file.py:Object'"
    )


def _module(name: str, target: str) -> Any:
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name and (target == error.name or target.startswith(error.name + ".")):
            raise RewardNotFoundError(
                f"reward '{name}': there is no module '{error.name}'. Install it, or name a file: "
                "'path/to/file.py:Object'"
            ) from error
        raise RewardLoadError(f"reward '{name}' cannot be imported: {error}") from error
    except Exception as error:
        raise RewardLoadError(f"reward '{name}' cannot be imported: {type(error).__name__}: {error}") from error


def _module_of_file(name: str, path: Path) -> Any:
    """The module of a file, run once for each content of the file."""
    if not path.is_file():
        raise RewardNotFoundError(f"reward '{name}': there is no file {path} (looked in {Path.cwd()})")
    content = path.read_bytes()
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()
    module_name = f"alignkit_file_{path.stem}_{digest[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # describe_reward records these: a file has no version.
    module.__alignkit_source__ = {"file": str(path), "sha256": hashlib.sha256(content).hexdigest()}  # type: ignore[attr-defined]
    sys.modules[module_name] = module
    try:
        # not by its loader, whose cache takes two contents of one size and second for the same
        exec(compile(content, str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module_name]
        raise RewardLoadError(f"reward '{name}': {path} raised {type(error).__name__}: {error}") from error
    return module


def _attribute(name: str, module: Any, attribute: str) -> Any:
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            offered = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            hint = suggestion(part, offered)
            raise RewardNotFoundError(
                f"reward '{name}': there is no '{part}' there.{hint} "
                f"It offers: {', '.join(sorted(offered)) or 'nothing'}"
            )
        found = getattr(found, part)
    return found


def _check_settings(name: str, found: Any, kwargs: dict[str, Any]) -> None:
    """Misspelt and missing settings, before Python's own less helpful message."""
    try:
        taken = inspect.signature(found).parameters
    except ValueError:
        return
    named = {key: p for key, p in taken.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not isinstance(found, type):
        named = {key: p for key, p in named.items() if key not in SUPPLIED}
    accepts = ", ".join(named) or "none"
    # a class may take settings by `**kwargs`; a function's are the data's columns
    if not (isinstance(found, type) and any(p.kind is p.VAR_KEYWORD for p in taken.values())):
        for key in kwargs:
            if key not in named:
                hint = suggestion(key, list(named))
                raise RewardLoadError(f"reward '{name}' has no setting '{key}'.{hint} Its settings: {accepts}")
    hints = hints_of(named)
    # of other objects than these (a loaded network, a Path) the reward itself knows what serves
    wrong = [
        f"{key}: {problem}"
        for key, value in kwargs.items()
        if type(value) in (bool, int, float, str, list, dict) and (problem := misfit(value, hints.get(key, Any)))
    ]
    if wrong:
        raise RewardLoadError(f"reward '{name}': {'; '.join(wrong)}")
    if isinstance(found, type):
        missing = [key for key, p in named.items() if p.default is p.empty and key not in kwargs]
        if missing:
            raise RewardLoadError(
                f"reward '{name}' needs the setting{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                f"its settings: {accepts}"
            )


def _settings(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no settings"
