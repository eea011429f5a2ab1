"""The folder of a run: what is in it, who writes it, and how an earlier run is continued or replaced.

model/              the trained model, its tokenizer and its card (README.md)
rewards/            rewards that learned, as they ended, see `alignkit.trainers.ended_rewards`
recipe.yaml         the recipe as resolved, a recipe itself; its header names reward versions
recipe_begun.yaml   the same as the run was begun, where it was continued with another
metrics.jsonl       one object a logged step
samples.jsonl       completions, before, during and after training
environment.json    versions, machine, number of processes, seed, rewards, data
results.json        {"before": {...}, "after": {...}} on held-out data
health.json         what the monitors found
report.html         all of it for people
health_dump.json    the last figures of a run that a monitor stopped
checkpoint-*/       as the trainer's config asks
alignkit_unfinished/ what is being saved just now, or was when the run was killed
_run.lock           the process that is at work here; a run that was killed leaves it, and it locks nothing then
"""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from alignkit.errors import AlignkitError
from alignkit.evaluation import finite
from alignkit.json_lines import append_json_lines, read_json_lines, replace_json_lines
from alignkit.recipe import Recipe
from alignkit.reward import describe_reward
from alignkit.run.environment import command_line, describe_environment
from alignkit.trainers.checkpoint_files import choose_checkpoint, newest_last, step_of
from alignkit.trainers.ended_rewards import discard_ended, move_ended
from alignkit.whole_files import UNFINISHED, check_writable, discard, finish_replacing, put_in_place, write_text

# the recipe that a run was begun with, kept where it was resumed with another
BEGUN_WITH = "recipe_begun.yaml"
RUN_FILES = (
    "metrics.jsonl",
    "samples.jsonl",
    "results.json",
    "environment.json",
    "recipe.yaml",
    BEGUN_WITH,
    "health.json",
    "report.html",
    "health_dump.json",
)
# Settings that a checkpoint brings along in the states of optimisers, schedulers and random numbers.
_IN_CHECKPOINTS = re.compile(
    r"(training|rewards)\.(.+\.)?(\w*learning_rate|weight_decay|adam_\w+|optim|optim_args|seed|data_seed)"
)
_OF_THE_PLACE = ("training.output_dir",)  # a run's folder may have been moved


class RunFolder:
    """A run's folder. Only the main process writes; on the others every method that writes does nothing.

    Args:
        path: where it is, made if missing.
        checkpoint: the checkpoint to continue from, None for a fresh run.
        keep: whether a finished run that is there is moved aside; else it is deleted.
        main: whether this process writes.
    """

    def __init__(self, path: Path, checkpoint: Path | None = None, *, keep: bool = True, main: bool = True):
        self.path = path
        self.checkpoint = checkpoint
        self.keep = keep
        self.main = main
        self._changed = False  # since the run that is to be continued was begun

    @property
    def start_step(self) -> int:
        """The step that the run starts from: that of its checkpoint, 0 for a fresh one."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint)

    @classmethod
    def open(cls, path: Path, *, resume: bool = False, overwrite: bool = False, main: bool = True) -> "RunFolder":
        """See whether a run may go into this folder; nothing is touched before `begin`, but that what a kill left
        without its name gets it.

        Args:
            path: where.
            resume: continue from the newest whole checkpoint there, and say so; files are cut back to its step. Where
                a run was begun and has none yet, it starts from the beginning.
            overwrite: delete what an earlier run left there.
            main: whether this process writes.

        Raises:
            AlignkitError: the run to resume is finished or has no whole checkpoint, or there are checkpoints that a
                fresh run would mix with its own.
            ConfigError: nothing can be written there.
        """
        if resume and overwrite:
            raise AlignkitError("--resume continues a run and --overwrite begins anew; give one of them")
        if main:
            check_writable(path, "training.output_dir")
            finish_replacing(path)
        PartialState().wait_for_everyone()
        if resume:
            return cls(path, _to_continue(path, main), main=main)
        if not overwrite and (occupied := earlier_run(path)):
            raise AlignkitError(occupied)
        return cls(path, keep=not overwrite, main=main)

    def begin(self) -> None:
        """Make the folder, and clear it of what an earlier run, or the part after the checkpoint, wrote.

        A finished run is not deleted but moved aside, to `<folder>-1` or the next number that is free. Only its own
        files move: other runs may lie below it, and have models there that recipes name.
        """
        if not self.main:
            return
        if self.checkpoint is not None:
            self._cut_back()
            return
        if self.keep and (self.path / "results.json").is_file():
            self._move_aside()
        if not self.keep:
            shutil.rmtree(self.path / "model", ignore_errors=True)
        discard_ended(self.path)
        for checkpoint in newest_last(self.path):
            discard(checkpoint)
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
        for name in RUN_FILES:
            (self.path / name).unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)

    def _move_aside(self) -> None:
        place = self.path if self.path.name not in ("", "..") else self.path.resolve()
        aside = next(path for i in itertools.count(1) if not (path := place.with_name(f"{place.name}-{i}")).exists())
        aside.mkdir()
        for name in (*RUN_FILES, "model"):
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        move_ended(self.path, aside)
        print(f"the finished run in {self.path} is now in {aside}")

    def check_continues(self, recipe: Recipe) -> None:
        """See that the checkpoint to go on from is one of this recipe's, and say what else changed since it was begun.

        Raises:
            AlignkitError: the run was begun with another model, adapter or trainer, with other settings of what the
                checkpoint brings along (learning rates, the optimiser, seeds), or has more steps behind it already
                than the recipe asks for.
        """
        file = next((f for f in (self.path / BEGUN_WITH, self.path / "recipe.yaml") if f.is_file()), None)
        if self.checkpoint is None or file is None:
            return
        begun, now = yaml.safe_load(file.read_text(encoding="utf-8")), recipe.to_dict()
        changed = [key for key in ("trainer", "model", "adapter", "quantization") if begun.get(key) != now.get(key)]
        if changed:
            was = "; ".join(f"{key}: {begun.get(key)}, now: {now.get(key)}" for key in changed)
            raise AlignkitError(
                f"{self.path} was begun with another {' and '.join(changed)} ({was}); its checkpoints do not fit. "
                f"Resume with the recipe in {file}, or choose another training.output_dir"
            )
        settings = {key: (old, new) for key, old, new in _changes(begun, now) if key not in _OF_THE_PLACE}
        kept = [key for key in settings if _IN_CHECKPOINTS.fullmatch(key)]
        if kept:
            was = "; ".join(f"{key}: {settings[key][0]}, now: {settings[key][1]}" for key in kept)
            raise AlignkitError(
                f"{self.path} was begun with another {' and '.join(kept)} ({was}), which its checkpoints bring along: "
                f"what the recipe says now would change nothing. Resume with the recipe in {file}, or choose another "
                "training.output_dir"
            )
        self._changed = bool(settings)
        if settings and self.main:
            told = ", ".join(f"{key} ({old} before, {new} now)" for key, (old, new) in settings.items())
            print(f"changed since the run was begun: {told}. What it was begun with stays in {self.path / BEGUN_WITH}")
        limit, done = now["training"].get("max_steps") or 0, step_of(self.checkpoint)
        if 0 < limit < done:
            raise AlignkitError(
                f"{self.path} has {done} steps behind it already ({self.checkpoint.name}), more than "
                f"training.max_steps={limit}; raise it to go on, or choose another training.output_dir"
            )

    def write_recipe(self, recipe: Recipe, rewards: list[Any]) -> None:
        """The resolved recipe; where each reward comes from stands in its header."""
        origins = [describe_reward(reward) for reward in rewards]
        header = f"Resolved from {recipe.source}. Rewards:" if origins else f"Resolved from {recipe.source}."
        for origin in origins:
            version = f"{origin.get('distribution') or 'no distribution'} {origin.get('version') or ''}".strip()
            header += f"\n  {origin['name']}: {origin['target']}, {version}"
        if self.main:
            file, begun = self.path / "recipe.yaml", self.path / BEGUN_WITH
            if self._changed and not begun.is_file():
                write_text(begun, file.read_text(encoding="utf-8"))
            write_text(file, recipe.to_yaml(header))

    def write_environment(self, recipe: Recipe, rewards: list[Any], data: dict[str, Any], model: Any) -> None:
        """Machine, versions, seed, rewards, data and size of the model."""
        weights = list(model.parameters())
        facts = {
            **describe_environment(),
            "seed": recipe.training["seed"],
            "command": command_line(),
            "recipe": recipe.source,
            "trainer": recipe.trainer,
            "reward_origins": [describe_reward(reward) for reward in rewards],
            "data": {split: {"rows": len(part), "columns": part.column_names} for split, part in data.items()},
            "parameters": sum(weight.numel() for weight in weights),
            "trainable_parameters": sum(weight.numel() for weight in weights if weight.requires_grad),
        }
        self.write_json("environment.json", facts)

    def write_json(self, name: str, content: Any) -> None:
        """One JSON file, readable by people."""
        if self.main:
            text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
            write_text(self.path / name, text + "\n")

    def add_samples(self, phase: str, step: int, rows: list[dict[str, Any]]) -> None:
        """Completions of one phase (`before` or `after`), a line each."""
        if self.main:
            shown = [{key: value for key, value in row.items() if key != "columns"} for row in rows]
            append_json_lines(
                self.path / "samples.jsonl", (finite({"phase": phase, "step": step, **row}) for row in shown)
            )

    def save_model(self, save: Callable[[str], None], wait: Callable[[], None]) -> None:
        """Have `model/` written, whole or not at all.

        Args:
            save: writes the model to the folder that it is given; called on every process.
            wait: for all processes.
        """
        new = self.path / UNFINISHED / "model"
        try:
            save(str(new))
        except Exception:
            shutil.rmtree(new.parent, ignore_errors=True)
            raise
        wait()
        if self.main:
            put_in_place(new, self.path / "model")

    def _cut_back(self) -> None:
        """Drop what the interrupted run wrote after the checkpoint, a line that it left unfinished included."""
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
        (self.path / "health_dump.json").unlink(missing_ok=True)
        for name in ("metrics.jsonl", "samples.jsonl"):
            file = self.path / name
            if file.is_file():
                replace_json_lines(file, [row for row in read_json_lines(file) if self._stays(row)])

    def _stays(self, row: dict[str, Any]) -> bool:
        # the end of training is logged at its last step, also where it was interrupted
        ended = row.get("phase") == "after" or "train_runtime" in row
        return row["step"] <= self.start_step and not ended


def _to_continue(path: Path, main: bool) -> Path | None:
    """The checkpoint to continue from, the same on all processes; None for the beginning."""
    choice = broadcast_object_list([choose_checkpoint(path)])[0]
    if choice.checkpoint is None:
        if newest_last(path):
            raise AlignkitError(
                f"nothing to resume: no checkpoint in {path} is whole; {'; '.join(choice.remarks)}. Begin anew with "
                "--overwrite, or bring the checkpoint again"
            )
        if (path / "results.json").is_file():
            raise AlignkitError(
                f"nothing to resume: the run in {path} is finished (it has results.json) and left no checkpoint-*. "
                "Without --resume it is moved aside, and a new one begins"
            )
        choice.remarks = choice.remarks or ["there is no checkpoint yet"]
    if main:
        print(f"{path}: {choice.sentence()}")
    return choice.checkpoint


def earlier_run(path: Path) -> str | None:
    """Why a fresh run may not go into a folder: the checkpoints of an earlier one are there."""
    checkpoints = newest_last(path)
    if not checkpoints:
        return None
    return (
        f"{path} holds checkpoints of an earlier run ({checkpoints[-1].name}); continue it with --resume, "
        "replace it with --overwrite, or choose another training.output_dir"
    )


def _changes(old: Any, new: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each setting that differs, with its dotted key and both values; None stands for one that is not given."""
    if isinstance(old, dict) or isinstance(new, dict):
        one, other = (value if isinstance(value, dict) else {} for value in (old, new))
        for key in dict.fromkeys([*one, *other]):
            yield from _changes(one.get(key), other.get(key), f"{place}.{key}" if place else str(key))
    elif old != new:
        yield place, old, new
