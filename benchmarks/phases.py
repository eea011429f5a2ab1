"""Where a step's CPU seconds go, in one vocabulary for all contestants.

Each second is charged to the innermost phase that is open, so that the phases of a step add up to the step. Functions
of a contestant are wrapped from outside: no trainer carries a line for this.
"""

import functools
import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PHASES = {
    "sampling": "sampling",
    "reward": "reward",
    "old_scores": "reference, old log-probs and values",
    "forward": "update: trunk forward",
    "head_loss": "update: head and loss, both ways",
    "backward": "update: trunk backward",
    "optimiser": "optimiser",
    "collection": "garbage collection, cache",
    "rest": "logging and the rest",
}


class Phases:
    """A stack of open phases, and the seconds charged to each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time()
        self._running = True
        gc.callbacks.append(self._collection)  # Python's own collections too, not only those a trainer asks for

    def _charge(self) -> None:
        now = time.process_time()
        if self._running:
            self.seconds[self._open[-1] if self._open else "rest"] += now - self._since
        self._since = now

    def reset(self) -> None:
        """Forget the warm-up."""
        self._charge()
        self.seconds.clear()

    def stop(self) -> None:
        """The last measured step has ended: what comes after it is not charged."""
        self._charge()
        self._running = False

    def enter(self, name: str) -> None:
        """Open a phase inside the one that is open."""
        if name not in PHASES:
            raise KeyError(f"{name!r} is no phase; expected one of {', '.join(PHASES)}")
        self._charge()
        self._open.append(name)

    def leave(self) -> None:
        """Close the innermost phase."""
        self._charge()
        self._open.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def _collection(self, moment: str, info: dict[str, int]) -> None:
        if moment == "start":
            self.enter("collection")
        elif self._open and self._open[-1] == "collection":
            self.leave()

    def per_step(self, steps: int) -> dict[str, float]:
        """Seconds a step, by phase, in the order of `PHASES`."""
        return {name: self.seconds.get(name, 0.0) / steps for name in PHASES}

    # ---- seams ----------------------------------------------------------------------------------------------------

    def wrap(self, owner: Any, name: str, phase: str, with_gradient: str | None = None) -> None:
        """Charge every call of `owner.name` to `phase`.

        Args:
            owner: a module or an object.
            name: its function. A missing one is an error: a phase that is never charged would be a wrong figure.
            phase: one of `PHASES`.
            with_gradient: the phase where gradients are recorded, if it is another.
        """
        function = getattr(owner, name)

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.phase(with_gradient if with_gradient and torch.is_grad_enabled() else phase):
                return function(*args, **kwargs)

        setattr(owner, name, charged)

    def watch_trunk(self, states: Callable[[Any, tuple], torch.Tensor], owner: Any, name: str, phase: str) -> None:
        """Charge `owner.name` to `phase` where gradients are recorded, and end the head's share of the backward pass
        where the gradient reaches the trunk's last states.

        Args:
            states: picks those states from the function's result and its arguments.
            owner: a module or an object.
            name: its function: a trunk, or a head that is given states.
            phase: `forward` for a trunk, `head_loss` for a head.
        """
        function = getattr(owner, name)

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return function(*args, **kwargs)
            with self.phase(phase):
                result = function(*args, **kwargs)
            states(result, args).register_hook(self._reached_trunk)
            return result

        setattr(owner, name, charged)

    def _reached_trunk(self, gradient: torch.Tensor) -> None:
        if self._open and self._open[-1] == "head_loss":
            self._charge()
            self._open[-1] = "backward"

    def wrap_update(self, trainer: Any) -> None:
        """The seams that every trainer on accelerate has: backward, clipping, optimiser, log."""
        self.wrap(trainer.accelerator, "backward", "head_loss")  # until the gradient reaches the trunk
        self.wrap(trainer.accelerator, "clip_grad_norm_", "optimiser")
        self.wrap(trainer.optimizer, "step", "optimiser")
        self.wrap(trainer.optimizer, "zero_grad", "optimiser")
        self.wrap(trainer, "log", "rest")
