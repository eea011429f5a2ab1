"""`rewards/` of a run: its rewards as they ended, each file whole or not there, and an index of what is whose.

rewards/<key>/       a reward that is a network, as a model
rewards/<key>.pt     the state of any other that has one, and of what is inside a composition
rewards/index.json   {"rewards": {log name: [keys of all that it holds]}, "models": [keys that are rewards themselves],
                     "learned": [log names of those that may score otherwise than before]}

The folder may hold other things (someone trains into the folder of a project): only what the index names is ours.
"""

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignkit.models.locating import RUN_REWARDS
from alignkit.reward import stateful_rewards, unique_names, walk_rewards
from alignkit.reward.contract import unwrap
from alignkit.whole_files import UNFINISHED, discard, finish_replacing, put_in_place, write_bytes, write_text

INDEX = "index.json"


@dataclass(frozen=True)
class Ended:
    """What is kept of a run's rewards.

    Attributes:
        rewards: log name of each reward of the run -> keys of the states that it holds, its own among them.
        models: keys of the rewards that are networks themselves: the log name of a reward, and a folder.
        learned: log names of the rewards that hold anything which changed what they score: all but frozen ones.
    """

    rewards: dict[str, list[str]] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    learned: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """Those of all states."""
        return list(dict.fromkeys(key for held in self.rewards.values() for key in held))

    def files(self, run: Path) -> list[Path]:
        """Folders and files of the states."""
        places = [run / RUN_REWARDS / (key if key in self.models else f"{key}.pt") for key in self.keys]
        return [place for place in places if place.exists()]


def read_ended(run: Path) -> Ended | None:
    """What the index says; None where there is none."""
    file = run / RUN_REWARDS / INDEX
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    holding = [name for name, keys in content["rewards"].items() if keys]  # an index of before this was written down
    return Ended(**{"learned": holding, **content})


def is_two_measures(figure: str, learned: Sequence[str]) -> bool:
    """Whether a figure of held-out data is of one reward before training and of another after it, so that its change
    says nothing. `learned`: log names of the rewards that changed.

    >>> is_two_measures("reward", ["judge"]), is_two_measures("rewards/length/mean", ["judge"])
    (True, False)
    """
    of_each = tuple(f"rewards/{name}/" for name in learned)
    return bool(of_each) and (figure in ("reward", "reward_std") or figure.startswith(of_each))


def write_ended(rewards: Sequence[Any], run: Path) -> None:
    """Writes the state of each reward, and the index; what an earlier run left there goes.

    To be called by one process. A network is written to its folder as a model, where it is one of `rewards` itself: it
    then has a name by which it can be asked for.
    """
    held = stateful_rewards(rewards)
    if not held:
        discard_ended(run)
        return
    outermost = [unwrap(reward) for reward in rewards]
    folder, earlier = run / RUN_REWARDS, read_ended(run)
    models = [key for key, reward in held.items() if _is_network(reward) and any(reward is one for one in outermost)]
    for key, reward in held.items():
        if key in models:
            new = folder / UNFINISHED / key
            finish_replacing(folder)
            shutil.rmtree(new, ignore_errors=True)
            reward.save_pretrained(new)
            put_in_place(new, folder / key)
        else:
            content = io.BytesIO()
            torch.save(reward.state_dict(), content)
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / f"{key}.pt", content.getvalue())
    keys = {id(reward): key for key, reward in held.items()}
    parts = {
        name: [part for part in walk_rewards([reward]) if id(part) in keys]
        for name, reward in zip(unique_names(rewards), rewards, strict=True)
    }
    inside = {name: [keys[id(part)] for part in own] for name, own in parts.items()}
    learned = [name for name, own in parts.items() if any(getattr(part, "learns", True) for part in own)]
    ended = Ended(inside, models, learned)
    written = {folder / key if key in models else folder / f"{key}.pt" for key in held}
    for place in earlier.files(run) if earlier else ():
        if place not in written:
            _remove(place)
    write_text(folder / INDEX, json.dumps(asdict(ended), indent=2, ensure_ascii=False) + "\n")


def discard_ended(run: Path) -> None:
    """Delete what an earlier run left of its rewards."""
    ended = read_ended(run)
    if ended is None:
        return
    for place in ended.files(run):
        _remove(place)
    (run / RUN_REWARDS / INDEX).unlink()
    _tidy(run / RUN_REWARDS)


def move_ended(run: Path, other: Path) -> None:
    """Move it to the folder of another run."""
    ended = read_ended(run)
    if ended is None:
        return
    (other / RUN_REWARDS).mkdir(parents=True)
    for place in (*ended.files(run), run / RUN_REWARDS / INDEX):
        place.rename(other / RUN_REWARDS / place.name)
    _tidy(run / RUN_REWARDS)


def _is_network(reward: Any) -> bool:
    return callable(getattr(reward, "save_pretrained", None))


def _remove(place: Path) -> None:
    if place.is_dir():
        discard(place)
    else:
        place.unlink()


def _tidy(folder: Path) -> None:
    """A folder in which nothing is left goes, too."""
    if not any(folder.iterdir()):
        folder.rmdir()
