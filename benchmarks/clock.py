"""Time and memory of a contestant: a mark at the end of every step, medians over the measured ones."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
from job import Job
from transformers import TrainerCallback

MIB = 2**20


def resident_mib() -> float:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss / MIB


def _nothing() -> None:
    pass


def peak_mib() -> float:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024  # bytes there, KiB elsewhere


class Clock(TrainerCallback):
    """Wall and CPU time at the start of training and at the end of every step.

    Args:
        job: says how many steps are warm-up.
        updates_per_step: how many calls of `on_step_end` end a step: the epochs where a trainer counts updates, 1 where
            it counts rollouts.
    """

    def __init__(self, job: Job, updates_per_step: int):
        self.job = job
        self.updates_per_step = updates_per_step
        self.marks: list[tuple[float, float]] = []
        self.updates = 0
        self.before_training_mib = 0.0
        self.at_mark: dict[int, Callable[[], None]] = {}  # what to do after so many steps

    def start(self) -> None:
        """Training begins."""
        self.before_training_mib = resident_mib()
        self._mark()

    def end_step(self) -> None:
        """A step has ended."""
        self._mark()

    def _mark(self) -> None:
        self.at_mark.get(len(self.marks), _nothing)()
        self.marks.append((time.perf_counter(), time.process_time()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`Trainer` begins."""
        self.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`Trainer` has done what it calls a step."""
        self.updates += 1
        if self.updates % self.updates_per_step == 0:
            self.end_step()

    def figures(self) -> dict[str, float]:
        """Medians over the measured steps, and memory in MiB.

        Raises:
            SystemExit: training ended before the job's last step.
        """
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks, self.marks[1:], strict=False)]
        spans = spans[self.job.warmup :]
        if len(spans) != self.job.steps:
            raise SystemExit(f"{len(spans)} measured steps were seen, {self.job.steps} expected: this is no figure")
        wall, cpu = (statistics.median(values) for values in zip(*spans, strict=True))
        return {
            "samples_per_s": self.job.batch / wall,
            "tokens_per_s": self.job.batch * self.job.new_tokens / wall,
            "step_wall_s": wall,
            "step_cpu_s": cpu,
            "peak_rss_mib": peak_mib(),
            "before_training_rss_mib": self.before_training_mib,
        }
