"""What a rollout is, and how its tensors are cut into the micro-batches that a trainer learns from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from alignkit.decoding.sampling import Completions
from alignkit.errors import AlignkitError
from alignkit.models.shared_prompts import equal_rows
from alignkit.text import Text

Batch = dict[str, torch.Tensor]


@dataclass
class Rollout:
    """Prompts, what the policy made of them, and what there is to say about it. B completions of at most T tokens.

    Attributes:
        prompts: B prompts, plain or conversational; consecutive ones that are equal form a group.
        completions: B completions in the prompts' form.
        columns: further columns of the data, B values each.
        made: token ids, masks, log-probabilities and values from the decoder.
        ref_log_probs: (B, T) under the reference.
        rewards: (B, F) score per reward function; NaN where it had no opinion.
        scores: (B,) weighted sum over the reward functions; NaN where none had an opinion.
        dense: (B, T) weighted scores of per-token rewards, or None.
    """

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]
    made: Completions
    ref_log_probs: torch.Tensor | None = None
    rewards: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    scores: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    dense: torch.Tensor | None = None

    @property
    def learn_mask(self) -> torch.Tensor:
        """(B, T) tokens to learn from: those of completions that some reward had an opinion on."""
        return self.made.completion_mask * (~torch.isnan(self.scores)).long()[:, None]

    @property
    def kl(self) -> torch.Tensor:
        """(B, T) log p - log q per token, in nats, 0 outside the completion.

        Raises:
            AlignkitError: the rollout has not been scored.
        """
        if self.made.log_probs is None or self.ref_log_probs is None:
            raise AlignkitError("the rollout has no log-probabilities to compare; `score` fills them in: call it first")
        return (self.made.log_probs - self.ref_log_probs) * self.made.completion_mask


def split(
    batch: Batch,
    micro_batches: int,
    accumulation: int,
    accelerator: Accelerator,
    generator: torch.Generator | None = None,
) -> list[Batch]:
    """Shuffle a rollout's rows and cut them into equal micro-batches, each trimmed to its own longest row.

    Within an optimiser step rows are sorted: completions of one prompt together, so that it can be read once for all of
    them, and otherwise by length, so that short ones meet short ones and less padding is computed. Which of its
    micro-batches a row is in does not change the step.

    Every micro-batch carries `token_share`: the number of learnable tokens, over all processes, of the optimiser step
    it belongs to, divided by the number of processes. A loss summed over tokens and divided by it is then an exact mean
    over the whole optimiser step, however its tokens are spread (DDP averages gradients over processes). Where there is
    an extra text, `extra_token_share` is the same for its tokens.

    Args:
        batch: tensors with B rows; `learn_mask` (B, T), `prompt_mask` and `completion_mask` among them.
        micro_batches: how many to cut; divides B.
        accumulation: micro-batches of one optimiser step; divides `micro_batches`.
        accelerator: to add up counts over processes.
        generator: for the shuffle; the global one when None.
    """
    rows = len(batch["learn_mask"])
    order = torch.randperm(rows, generator=generator).to(batch["learn_mask"].device)
    lengths = batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)
    shared = equal_rows(batch["prompt_ids"], batch["prompt_mask"])
    prompts = order.argsort() if shared is None else shared.copies
    steps = [_sorted(chosen, lengths, prompts) for chosen in order.chunk(micro_batches // accumulation)]
    places = [place for chosen in steps for place in chosen.chunk(accumulation)]
    micro = [{key: value[chosen] for key, value in batch.items()} for chosen in places]
    masks = {"token_share": "learn_mask", "extra_token_share": "extra_completion_mask"}
    for name, mask in masks.items():
        if mask in batch:
            counts = torch.stack([part[mask].sum() for part in micro]).float()
            counts = accelerator.reduce(counts, reduction="sum").view(-1, accumulation).sum(1)
            shares = (counts.clamp(min=1) / accelerator.num_processes).repeat_interleave(accumulation)
            for part, share in zip(micro, shares, strict=True):
                part[name] = share
    return [trim(part) for part in micro]


def _sorted(rows: torch.Tensor, lengths: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Rows by the length of the longest one of their prompt, then by prompt, then by their own length."""
    longest = torch.zeros_like(lengths).scatter_reduce(0, prompts[rows], lengths[rows], "amax")[prompts]
    for key in (lengths, prompts, longest):
        rows = rows[key[rows].argsort(stable=True)]
    return rows


def trim(batch: Batch) -> Batch:
    """Drop columns in which every row is padding: prompts are cut on the left, everything per token on the right."""
    prompt = int(batch["prompt_mask"].sum(1).max())
    width = batch["completion_mask"].shape[1]
    completion = max(int(batch["completion_mask"].sum(1).max()), 1)
    trimmed = {}
    for key, value in batch.items():
        if key in ("prompt_ids", "prompt_mask"):
            value = value[:, value.shape[1] - prompt :]
        elif value.dim() >= 2 and value.shape[1] == width and not key.startswith("extra_"):
            value = value[:, :completion]
        trimmed[key] = value
    return trimmed


def joined(
    first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of two (prompt ids, prompt mask, completion ids, completion mask) one below the other, padded to fit.

    So that a second text (ptx, MLE of a reference) is scored in the same forward: DDP allows only one.
    """

    def stack(a: torch.Tensor, b: torch.Tensor, left: bool) -> torch.Tensor:
        width = max(a.shape[1], b.shape[1])
        sides = [(width - t.shape[1], 0) if left else (0, width - t.shape[1]) for t in (a, b)]
        return torch.cat([torch.nn.functional.pad(t, side) for t, side in zip((a, b), sides, strict=True)])

    return (
        stack(first[0], second[0], True),
        stack(first[1], second[1], True),
        stack(first[2], second[2], False),
        stack(first[3], second[3], False),
    )
