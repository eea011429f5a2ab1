"""What a run says while it goes: a live view in the terminal, and the files that the report is made of."""

import math
import time
from collections import defaultdict, deque
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers import ProgressCallback as HostProgressCallback

from alignkit.console import standard_output
from alignkit.evaluation import finite
from alignkit.json_lines import append_json_lines, read_json_lines

# What is worth a glance while training, in this order: label, and the first of these keys that the trainer logs.
WATCHED = (
    ("reward", ("reward",)),
    ("held-out reward", ("eval_reward",)),
    ("accuracy", ("eval_accuracy",)),
    ("discriminator accuracy", ("discriminator/accuracy",)),
    ("effective share", ("ess/share",)),
    ("KL per response", ("kl",)),
    ("entropy", ("entropy",)),
    ("length", ("completions/mean_length",)),
    ("value loss", ("value_loss",)),
    ("loss", ("loss",)),
    ("held-out loss", ("eval_loss",)),
)
_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 30) -> str:
    """Values as a line of bars, the newest on the right; more values than fit are averaged.

    >>> sparkline([0, 1, 2, 3], width=4), sparkline([5, 5])
    ('▁▃▆█', '▄▄')
    """
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    if not values:
        return ""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-300):
        return _BARS[3] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(7.4), duration(125), duration(7322)
    ('7s', '2m05s', '2h02m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def short_number(value: float) -> str:
    """Three significant digits without needless zeros, for a narrow column.

    >>> short_number(0.51234), short_number(12.3456), short_number(1234.5), short_number(0.00001)
    ('0.512', '12.3', '1234', '1.00e-05')
    """
    size = abs(value)
    if size < 1e-6:  # rounding, such as the KL of a model to itself
        return "0"
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def attach(trainer: Any) -> None:
    """Tell the callbacks of this module and of `alignkit.trainers.health` which trainer they watch.

    transformers does not tell a callback; with it, the live view replaces transformers' own bar, samples are kept
    while training, and a health check can roll back. Call it once, after the trainer is built.
    """
    for callback in list(trainer.callback_handler.callbacks):
        if callable(getattr(callback, "attach", None)):
            callback.attach(trainer)


class ProgressCallback(TrainerCallback):
    """A live view on a terminal (bar, time left, figures with sparklines), and plain lines where there is none.

    Args:
        console: where to write; standard output by default.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or standard_output()
        self.history: dict[str, list[float]] = defaultdict(list)
        self.step_times: deque[float] = deque(maxlen=20)
        self.live: Live | None = None
        self.started = self._last_step_end = 0.0
        self._began_at = 0

    def attach(self, trainer: Any) -> None:
        """Take the place of transformers' own progress bar and printer."""
        for host in (HostProgressCallback, PrinterCallback):
            trainer.remove_callback(host)
        train = trainer.train

        @wraps(train)
        def train_and_close(*args: Any, **kwargs: Any) -> Any:
            # no event tells a callback that training raised, and a live view left open garbles the terminal
            try:
                return train(*args, **kwargs)
            finally:
                self.close()

        trainer.train = train_and_close

    def close(self) -> None:
        """End the live view and give the terminal back."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self._last_step_end = time.monotonic()
        self._began_at = state.global_step  # above 0 where a run is resumed
        if state.is_world_process_zero and self.console.is_terminal:
            # drawn anew by the clock, so that the time goes on while a step takes long
            view = partial(self._view, state)
            self.live = Live(get_renderable=view, console=self.console, refresh_per_second=2, transient=True)
            self.live.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        self.step_times.append(now - self._last_step_end)
        self._last_step_end = now

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for key, value in (logs or {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.history[key].append(float(value))
        if not state.is_world_process_zero:
            return
        if self.live is None and self.started:
            self._print_line(state, logs or {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.live is not None:
            self.close()
            self.console.print(self._view(state))
        elif state.is_world_process_zero:
            took = duration(time.monotonic() - self.started)
            before = f", behind the {self._began_at} before it stopped" if self._began_at else ""
            steps = state.global_step - self._began_at
            plural = "s" if steps != 1 else ""
            self.console.print(f"trained {steps} step{plural} in {took}{before}", highlight=False)
        self.started = 0.0

    def _seconds_left(self, state: TrainerState) -> float | None:
        if not self.step_times or not state.max_steps:
            return None
        return max(state.max_steps - state.global_step, 0) * sum(self.step_times) / len(self.step_times)

    def _print_line(self, state: TrainerState, logs: dict[str, Any]) -> None:
        parts = [f"step {state.global_step}/{state.max_steps}"]
        for label, keys in WATCHED:
            value = next((logs[key] for key in keys if isinstance(logs.get(key), int | float)), None)
            if value is not None:
                parts.append(f"{label} {short_number(value)}")
        if len(parts) == 1:
            # an evaluation by metrics only, or the last line of a training: show what it brought
            evaluated = [k for k, v in logs.items() if k.startswith("eval_") and isinstance(v, int | float)]
            if not evaluated:
                return
            parts += [f"{key} {short_number(logs[key])}" for key in evaluated[:6]]
        left = self._seconds_left(state)
        if left is not None:
            parts.append(f"left {duration(left)}")
        self.console.print("  ".join(parts), highlight=False, markup=False, soft_wrap=True)

    def _view(self, state: TrainerState) -> Group:
        total = max(state.max_steps, 1)
        head = Table.grid(padding=(0, 2))
        left = self._seconds_left(state)
        elapsed = duration(time.monotonic() - self.started)
        time_left = f", {duration(left)} left" if left else ""
        head.add_row(
            Text("training", style="bold"),
            ProgressBar(total=total, completed=min(state.global_step, total), width=30),
            Text(f"step {state.global_step} of {state.max_steps}"),
            Text(elapsed + time_left, style="dim"),
        )
        figures = Table.grid(padding=(0, 2))
        figures.add_column(justify="right", style="dim")
        figures.add_column(justify="right", style="bold", min_width=8)
        figures.add_column(style="cyan")
        figures.add_column(style="dim")
        for label, keys in WATCHED:
            values = next((self.history[key] for key in keys if self.history.get(key)), None)
            if values:
                figures.add_row(label, short_number(values[-1]), sparkline(values), f"from {short_number(values[0])}")
        return Group(head, figures)


class RunFilesCallback(TrainerCallback):
    """Writes metrics.jsonl and samples.jsonl as the run goes, so that an interrupted run has a report too.

    A line of metrics.jsonl is one log call: `step`, `epoch`, `time` (seconds since the start; a resumed run counts
    on), and the metrics as they were logged, values that are not finite as null. Samples of training need `attach`.

    Args:
        folder: of the run; made where it is missing.
        train_samples: completions kept of each rollout, at the first log after it; the newest ones.
        from_step: the checkpoint's step in a run that is continued: what is logged before it is in the files already.
    """

    def __init__(self, folder: str | Path, train_samples: int = 2, from_step: int = 0):
        self.folder = Path(folder)
        self.train_samples = train_samples
        self.from_step = from_step
        self.trainer: Any = None
        self._started = time.monotonic()
        self._written: list[list[Any]] = []

    def attach(self, trainer: Any) -> None:
        """Know the trainer, which has the newest completions."""
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step and state.is_world_process_zero:
            self._started = time.monotonic() - self._last_time()
            file = self.folder / "samples.jsonl"
            rows = [row for row in read_json_lines(file) if row["phase"] == "train"] if file.is_file() else []
            self._written = _texts(rows[-self.train_samples :] if self.train_samples else [])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or state.global_step < self.from_step:
            return
        figures = {key: finite(value) for key, value in logs.items()}
        seconds = round(time.monotonic() - self._started, 3)
        row = {"step": state.global_step, "epoch": state.epoch, "time": seconds, **figures}
        row["epoch"] = None if row["epoch"] is None else round(row["epoch"], 6)
        append_json_lines(self.folder / "metrics.jsonl", [row])
        if "loss" in logs and self.train_samples:
            rows = self._newest(state.global_step)
            if _texts(rows) != self._written:  # else a further pass over the same rollout
                append_json_lines(self.folder / "samples.jsonl", rows)
                self._written = _texts(rows)

    def _newest(self, step: int) -> list[dict[str, Any]]:
        logs = getattr(self.trainer, "_logs", None)
        if not logs or not logs.get("completion"):
            return []
        prompts, completions = list(logs["prompt"]), list(logs["completion"])
        rows = []
        for i in range(max(len(completions) - self.train_samples, 0), len(completions)):
            rewards = {name: finite(list(scores)[i]) for name, scores in logs["rewards"].items() if len(scores) > i}
            rows.append(
                {
                    "phase": "train",
                    "step": step,
                    "prompt": prompts[i],
                    "completion": completions[i],
                    "rewards": rewards,
                }
            )
        return rows

    def _last_time(self) -> float:
        file = self.folder / "metrics.jsonl"
        rows = read_json_lines(file) if file.is_file() else []
        return float(rows[-1].get("time", 0.0)) if rows else 0.0


def _texts(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [[row["prompt"], row["completion"]] for row in rows]
