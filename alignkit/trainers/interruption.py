"""Ctrl-C and a scheduler's SIGTERM: finish the step, save a checkpoint, stop."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# A launcher that gets Ctrl-C passes it on, so that a process sees it twice at once.
_SAME = 1.0


class StopOnSignal(TrainerCallback):
    """On SIGINT (Ctrl-C) or SIGTERM, lets the optimiser step end, saves a checkpoint and ends training.

    The checkpoint is that of a run which was not interrupted at that step, whatever `save_strategy` says, so a resumed
    run ends where an unbroken one does. At the last step of an epoch it waits for what the epoch's end brings, such as
    an evaluation. With several processes it is enough that one gets the signal: all stop at the same step. A second
    Ctrl-C ends the process at once.

    `alignkit train` adds it. In Python, pass it in `callbacks` and look at `signal` afterwards:

        stop = StopOnSignal()
        trainer = PPOTrainer(..., callbacks=[stop])
        trainer.train()
        if stop.signal is not None:
            sys.exit(128 + stop.signal)

    Handlers are set while training runs, in the main thread only, and given back at its end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received = 0
        self._when = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.release()
        self.signal, self._received, self._process = None, 0, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        asked = self._received
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flag = torch.tensor(asked, device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = int(flag)
        if asked:
            self.signal = asked
            control.should_training_stop = True
            control.should_save = control.should_save or not epoch_ends(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.signal is None:
            return
        if epoch_ends(state):
            control.should_save = True
        else:  # it is cut short here, and ends when the run is resumed
            control.should_save = control.should_evaluate = control.should_log = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.release()
        if self._received and self.signal is None:  # it came after the last step: too late to stop there
            os.kill(os.getpid(), self._received)

    def release(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that loads data inherited the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self._received:
            if number == signal.SIGINT and now - self._when > _SAME:
                self.release()
                raise KeyboardInterrupt
            return
        self._received, self._when = number, now
        again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
        # not print: the signal may have come in the middle of one
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step, with a checkpoint{again}\n".encode())


class SaveAfterEpoch(TrainerCallback):
    """Puts off the checkpoint of an epoch's last step until the evaluation at the epoch's end has been.

    Saved before it, as transformers does with `save_strategy=steps` and `eval_strategy=epoch`, the checkpoint would be
    one of a run that goes on with the next epoch and never has that evaluation.
    """

    def __init__(self) -> None:
        self.due = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.due = control.should_save and args.eval_strategy == "epoch" and epoch_ends(state)
        control.should_save = control.should_save and not self.due

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save, self.due = control.should_save or self.due, False


def epoch_ends(state: TrainerState) -> bool:
    """Whether this step is the last of an epoch, or of all."""
    return float(state.epoch or 0.5).is_integer() or state.global_step >= state.max_steps
