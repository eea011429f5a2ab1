"""The folder of a run: what is in it, who writes it, and how an earlier run is continued or replaced.

model/              the trained model and its tokenizer
recipe.yaml         the recipe as resolved, a recipe itself; its header names reward versions
metrics.jsonl       one object a logged step
samples.jsonl       completions, before, during and after training
environment.json    versions, machine, number of processes, seed, rewards, data
results.json        {"before": {...}, "after": {...}} on held-out data
health.json         what the monitors found
report.html         all of it for people
checkpoint-*/       as the trainer's config asks
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.evaluation import finite
from alignkit.json_lines import append_json_lines, read_json_lines, replace_json_lines
from alignkit.recipe import Recipe
from alignkit.reward import describe_reward
from alignkit.run.environment import command_line, describe_environment

RUN_FILES = (
    "metrics.jsonl",
    "samples.jsonl",
    "results.json",
    "environment.json",
    "recipe.yaml",
    "health.json",
    "report.html",
)


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

    @property
    def start_step(self) -> int:
        """The step that the run starts from: that of its checkpoint, 0 for a fresh one."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint)

    @classmethod
    def open(cls, path: Path, *, resume: bool = False, overwrite: bool = False, main: bool = True) -> "RunFolder":
        """See whether a run may go into this folder; nothing is touched before `begin`.

        Args:
            path: where.
            resume: continue from the newest checkpoint there; files are cut back to its step.
            overwrite: delete what an earlier run left there.
            main: whether this process writes.

        Raises:
            AlignkitError: nothing to resume, or checkpoints that a fresh run would mix with its own.
        """
        checkpoints = newest_last(path)
        if resume and overwrite:
            raise AlignkitError("--resume continues a run and --overwrite begins anew; give one of them")
        if resume:
            if not checkpoints:
                raise AlignkitError(
                    f"nothing to resume: {path} holds no checkpoint-*; training.save_strategy and training.save_steps "
                    "say when checkpoints are written"
                )
            return cls(path, checkpoints[-1], main=main)
        if checkpoints and not overwrite:
            raise AlignkitError(
                f"{path} holds checkpoints of an earlier run ({checkpoints[-1].name}); continue it with --resume, "
                "replace it with --overwrite, or choose another training.output_dir"
            )
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
        for checkpoint in newest_last(self.path):
            shutil.rmtree(checkpoint)
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
        print(f"the finished run in {self.path} is now in {aside}")

    def write_recipe(self, recipe: Recipe, rewards: list[Any]) -> None:
        """The resolved recipe; where each reward comes from stands in its header."""
        origins = [describe_reward(reward) for reward in rewards]
        header = f"Resolved from {recipe.source}. Rewards:" if origins else f"Resolved from {recipe.source}."
        for origin in origins:
            version = f"{origin.get('distribution') or 'no distribution'} {origin.get('version') or ''}".strip()
            header += f"\n  {origin['name']}: {origin['target']}, {version}"
        if self.main:
            (self.path / "recipe.yaml").write_text(recipe.to_yaml(header), encoding="utf-8")

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
            (self.path / name).write_text(text + "\n", encoding="utf-8")

    def add_samples(self, phase: str, step: int, rows: list[dict[str, Any]]) -> None:
        """Completions of one phase (`before` or `after`), a line each."""
        if self.main:
            shown = [{key: value for key, value in row.items() if key != "columns"} for row in rows]
            append_json_lines(
                self.path / "samples.jsonl", (finite({"phase": phase, "step": step, **row}) for row in shown)
            )

    def _cut_back(self) -> None:
        """Drop what the interrupted run wrote after the checkpoint, a line that it left unfinished included."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            file = self.path / name
            if file.is_file():
                rows = read_json_lines(file)
                replace_json_lines(
                    file, [row for row in rows if row["step"] <= self.start_step and row.get("phase") != "after"]
                )


def newest_last(path: Path) -> list[Path]:
    """The checkpoints of a run's folder, by step."""
    found = [folder for folder in path.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])
