"""Watches a run while it goes: warns, stops it, or takes it back to the last healthy checkpoint."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from alignkit.diagnostics import CHECKS, Finding, Limits, Watch, is_vital
from alignkit.errors import ConfigError, HealthError
from alignkit.evaluation import finite
from alignkit.metrics.diversity import distinct
from alignkit.models.adapters import computes_in_eight_bits
from alignkit.report import write_report
from alignkit.text import completion_text
from alignkit.whole_files import write_text

ACTIONS = ("off", "warn", "stop", "rollback")
_DUMPED_ROWS = 20
logger = logging.getLogger("alignkit.health")


class HealthCallback(TrainerCallback):
    """Runs the monitors of `alignkit.diagnostics` on every log and acts on what they find.

    It works with any trainer of transformers or TRL; what a trainer does not log is not judged. It makes the trainer
    log its first step, because some checks are about the start. A step whose gradient is not finite is skipped, so
    that it cannot spoil the weights.

    Actions: `warn` writes to the log `alignkit.health`; `stop` raises `HealthError` and leaves health_dump.json with
    the last figures; `rollback` restores the last checkpoint that was saved while all was well and goes on, and stops
    where there is none, or after `max_rollbacks`. `off` leaves a check out.

    Args:
        folder: where health.json goes (the run's folder); the trainer's output_dir by default.
        actions: check -> action, for those that differ from the default (`finite`: rollback, all others: warn).
        limits: thresholds; wider ones are taken by themselves in 16-bit training and on a base in 8 bits.
        max_rollbacks: how often to go back before giving up.
        max_skipped: steps in a row with a gradient that is not finite before the check `finite` acts.

    Raises:
        ConfigError: an unknown check or action.
        HealthError: in training, when a check stops the run.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        actions: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        max_rollbacks: int = 2,
        max_skipped: int = 3,
    ):
        for name, action in (actions or {}).items():
            if name not in CHECKS:
                raise ConfigError(f"there is no health check {name!r}; there are: {', '.join(CHECKS)}")
            if action not in ACTIONS:
                raise ConfigError(
                    f"health check {name!r}: {action!r} is no action; expected one of {', '.join(ACTIONS)}"
                )
        self.folder = None if folder is None else Path(folder)
        self.actions = {name: check.action for name, check in CHECKS.items()} | dict(actions or {})
        self.limits = limits
        self.watch = Watch(limits, off=[name for name, action in self.actions.items() if action == "off"])
        self.max_rollbacks = max_rollbacks
        self.max_skipped = max_skipped
        self.trainer: Any = None
        self.rollbacks = 0
        self._skipped = 0
        self._handled = -1
        self._healthy: Path | None = None
        self._written: list[dict[str, Any]] | None = None

    @property
    def findings(self) -> list[Finding]:
        """What each check last said."""
        return self.watch.summary()

    def attach(self, trainer: Any) -> None:
        """Know the trainer: for rolling back, and for the diversity of what it samples."""
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.folder = self.folder or Path(args.output_dir)
        dtype = getattr(model, "dtype", torch.float32)
        if computes_in_eight_bits(model):
            own = self.limits and replace(self.limits, eight_bits=True)
            self.watch.limits = own or Limits().for_eight_bits()
        elif self.limits is None and (args.bf16 or args.fp16 or dtype in (torch.bfloat16, torch.float16)):
            self.watch.limits = Limits().for_half_precision()
        effective = getattr(args, "min_effective_share", None)
        if effective is not None and (self.limits is None or self.limits.effective_share == Limits().effective_share):
            self.watch.limits = replace(self.watch.limits, effective_share=effective)
        resumed = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.global_step and self._healthy is None and resumed.is_dir():
            # the monitors know again what they saw before the interruption, and have somewhere to go back to
            for row in state.log_history:
                self.watch.observe(row)
            self._healthy = resumed

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        # under fp16 the loss scaler looks for overflow itself and counts on seeing it
        if self.actions["finite"] == "off" or args.fp16 or _gradients_are_finite(model):
            self._skipped = 0
            return
        self._skipped += 1
        for parameter in model.parameters():
            parameter.grad = None
        step = state.global_step + 1
        finding = Finding(
            "finite",
            "warn",
            f"The gradient of step {step} was not finite; the step was skipped and the weights are as they were. "
            "Lower the learning rate, or train in float32.",
            step,
        )
        self._warn(finding, state)
        self.watch.report(finding)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 1:
            control.should_log = True
        if self._skipped >= self.max_skipped:
            message = (
                f"The gradient was not finite in {self._skipped} steps in a row. Lower the learning rate, set "
                "max_grad_norm, train in float32, or look at what the reward returns."
            )
            self._skipped, self._handled = 0, state.global_step
            self._act(Finding("finite", "warn", message, state.global_step), args, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        row = {**(logs or {}), "step": state.global_step}
        row.update(self._sampled_diversity(row))
        for finding in self.watch.observe(row):
            dealt_with = self._skipped or self._handled == state.global_step
            if finding.check == "finite" and (dealt_with or not is_vital(row)):
                # the figures of a skipped step say nothing new; a side figure is worth a word, not the run
                self._warn(finding, state)
            else:
                self._act(finding, args, state)
        self._write(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        bad = [name for name, now in self.watch.current.items() if now.status != "ok" and self._is_grave(name)]
        if not bad:
            self._healthy = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._write(state)

    def _is_grave(self, check: str) -> bool:
        return self.actions[check] in ("stop", "rollback")

    def _act(self, finding: Finding, args: TrainingArguments, state: TrainerState) -> None:
        action = self.actions[finding.check]
        if action == "rollback":
            reason = self._why_not_back()
            if reason is None:
                self._roll_back(finding, state)
                return
            finding = replace(finding, message=f"{finding.message} No way back: {reason}.")
            action = "stop"
        if action == "stop":
            self._stop(finding, args, state)
        self._warn(self.watch.act(finding, "warn"), state)

    def _why_not_back(self) -> str | None:
        if not hasattr(self.trainer, "restore"):
            return "this trainer cannot restore a checkpoint while it runs"
        if self.trainer.is_deepspeed_enabled:
            return "under DeepSpeed a checkpoint is loaded only when a run begins; resume from it"
        if self.rollbacks >= self.max_rollbacks:
            return f"the run has gone back {self.rollbacks} times already"
        if self._healthy is None or not self._healthy.is_dir():
            return "there is no checkpoint from a time when all was well (save_strategy, save_steps)"
        return None

    def _roll_back(self, finding: Finding, state: TrainerState) -> None:
        assert self._healthy is not None
        self.rollbacks += 1
        logger.warning("step %s, %s: going back to %s", finding.step, finding.message, self._healthy.name)
        self.trainer.restore(str(self._healthy))
        message = f"{finding.message} The run went back to {self._healthy.name}."
        self.watch.act(replace(finding, message=message), "rollback")
        self.watch.rewind(int(self._healthy.name.rpartition("-")[2]))
        self._write(state)

    def _stop(self, finding: Finding, args: TrainingArguments, state: TrainerState) -> None:
        finding = self.watch.act(finding, "stop")
        self._write(state)
        where = ""
        if state.is_world_process_zero and self.folder is not None:
            dump = {
                "finding": finding.as_dict(),
                "checkpoint": None if self._healthy is None else str(self._healthy),
                "last_rows": state.log_history[-_DUMPED_ROWS:],
                "settings": args.to_dict(),
            }
            path = self.folder / "health_dump.json"
            write_text(path, json.dumps(finite(dump), indent=2, default=str) + "\n")
            where = f" The last figures are in {path}."
            if (self.folder / "metrics.jsonl").is_file():
                where += f" The report is {write_report(self.folder)}."
        title = CHECKS[finding.check].title
        raise HealthError(f"stopped at step {finding.step}, '{title}' does not hold. {finding.message}{where}")

    def _warn(self, finding: Finding, state: TrainerState) -> None:
        if state.is_world_process_zero:
            logger.warning("step %s: %s", finding.step, finding.message)

    def _write(self, state: TrainerState) -> None:
        content = [finding.as_dict() for finding in self.findings]
        if not state.is_world_process_zero or self.folder is None or content == self._written:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "health.json", json.dumps(content, indent=2) + "\n")
        self._written = content

    def _sampled_diversity(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Distinct-2 of the newest training completions, for runs that do not evaluate while they train."""
        completions = (getattr(self.trainer, "_logs", None) or {}).get("completion")
        if "loss" not in row or not completions:
            return {}
        return {"completions/distinct_2": distinct([completion_text(text) for text in completions], 2)}


def _gradients_are_finite(model: Any) -> bool:
    parameters = list(model.parameters())
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradients = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in found]
    device = parameters[0].device
    bad = torch.zeros((), dtype=torch.int32, device=device)
    if gradients:
        bad += ~torch.isfinite(torch.nn.utils.get_total_norm(gradients)).to(device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # under FSDP each process has its own shard: all must skip, or none
        torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    return not bool(bad)
