"""An update that never holds the activations of more than so many tokens, with the same gradient."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType

from alignkit.errors import ConfigError
from alignkit.trainers.rollout import Batch, trim

# On a CPU and in fp32, pieces of 640 tokens are as fast as 1920 at once (measured with 5 million weights). In bf16 they
# took 10% longer and saved nothing, and a GPU is kept busy by large ones.
TOKENS_ON_CPU = 640
_SUMS = ("ptx_loss", "mle_loss", "weighted_nll")  # logged as shares of an optimiser step
_STEPS_INSIDE = ("lomo", "layerwise")  # optimisers that step while gradients are computed

Update = TypeVar("Update", bound=Callable[..., torch.Tensor])


def in_pieces(update: Update) -> Update:
    """Marks an `update` whose loss is a sum over tokens and which logs means over tokens, sums named in `_SUMS` and
    figures ending in `_max`: its micro-batches may be cut without being asked for."""
    update.sums_over_tokens = True  # type: ignore[attr-defined]
    return update


def pieces(batch: Batch, tokens: int | None) -> list[Batch]:
    """Cut a micro-batch into as few pieces as keep below a number of tokens, as even as can be, one row at least.

    A batch whose extra text has another number of rows stays whole, and so does a row that is longer than that.

    Args:
        batch: tensors with B rows, and numbers, which every piece gets; `prompt_ids` (B, P) and `completion_ids` (B, T)
            among them. The rows are sorted by length, so that short ones are together and each piece is trimmed.
        tokens: at most so many, padding included, in a piece; all in one when None.
    """
    rows = len(batch["prompt_ids"])
    width = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
    extra = batch.get("extra_completion_ids")
    if extra is not None:
        width += batch["extra_prompt_ids"].shape[1] + extra.shape[1]
    most = rows if tokens is None else max(tokens // width, 1)
    if rows <= most or (extra is not None and len(extra) != rows):
        return [batch]
    places = torch.arange(rows, device=batch["prompt_ids"].device).tensor_split(-(-rows // most))
    return [trim({key: value[some] if value.dim() else value for key, value in batch.items()}) for some in places]


class PiecesMixin:
    """For trainers whose loss is a sum over tokens: `update` sees a micro-batch in pieces, each with a backward pass of
    its own, if the micro-batch has more than `max_tokens_per_forward` tokens."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        wanted, optimiser = self.args.max_tokens_per_forward, str(self.args.optim)  # type: ignore[attr-defined]
        kind = self.accelerator.distributed_type  # type: ignore[attr-defined]
        if wanted is None:
            return
        why = "" if kind is DistributedType.NO else f"each of several processes ({kind.value}) would cut its own rows"
        if any(word in optimiser for word in _STEPS_INSIDE):
            why = f"optim={optimiser} would step after each of them"
        if why:
            raise ConfigError(
                f"max_tokens_per_forward={wanted} cuts an update into several backward passes, and {why}; leave it "
                "out, and raise gradient_accumulation_steps with a smaller per_device_train_batch_size instead"
            )

    @property
    def _tokens_at_once(self: Any) -> int | None:
        if self.args.max_tokens_per_forward is not None:
            return self.args.max_tokens_per_forward
        suits = (
            getattr(type(self).update, "sums_over_tokens", False)  # one that was overridden may be no sum
            and self.accelerator.distributed_type is DistributedType.NO
            and self.accelerator.device.type == "cpu"
            and self.accelerator.mixed_precision == "no"
            and not any(word in str(self.args.optim) for word in _STEPS_INSIDE)
        )
        return TOKENS_ON_CPU if suits else None

    def _compute_loss(self: Any, model: Any, inputs: Batch) -> torch.Tensor:
        parts = pieces(inputs, self._tokens_at_once)
        log = self._metrics["train"]
        before = {name: len(values) for name, values in log.items()}
        done = torch.zeros((), device=self.accelerator.device)
        for part in parts[:-1]:
            loss = self.update(model, part)
            with torch.autocast(loss.device.type, enabled=False):
                self.accelerator.backward(loss)
            done += loss.detach()
        last = self.update(model, parts[-1])  # its backward pass is the host's
        if len(parts) > 1:
            weights = [float(part["learn_mask"].sum()) for part in parts]
            for name, values in log.items():
                start = before.get(name, 0)
                if len(values) - start == len(parts):
                    values[start:] = [_together(name, values[start:], weights)]
        self.after_update()
        return last + done


def _together(name: str, values: list[float], weights: list[float]) -> float:
    """What a figure would be for the whole micro-batch, from those of its pieces: a mean over tokens, unless its name
    says otherwise."""
    if name in _SUMS:
        return sum(values)
    if name.endswith("_max"):
        return max(values)
    total = sum(weights)
    return sum(v * w for v, w in zip(values, weights, strict=True) if w) / total if total else values[-1]
