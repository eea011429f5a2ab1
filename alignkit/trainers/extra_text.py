"""A second text in an update's forward: pretraining text, or the data's references, whose likelihood is kept."""

from typing import Any

import torch

from alignkit.advantages import masked_sum
from alignkit.decoding.prompts import pad_right
from alignkit.errors import DataError
from alignkit.models.scoring import Scores, score_completions
from alignkit.text import Text, completion_text, excerpt, is_conversational, prompt_text
from alignkit.trainers.references import ReferencesMixin
from alignkit.trainers.rollout import Batch, Rollout, joined


class ExtraTextMixin(ReferencesMixin):
    """Scores what a micro-batch has as `extra_*` beside its completions: under DDP there can be one forward only."""

    def joint_scores(
        self: Any, model: Any, batch: Batch, values: str = "none", at: torch.Tensor | None = None
    ) -> tuple[Scores, Scores | None]:
        """Score a micro-batch and, in the same forward, its extra text (`extra_*`: ptx or reference), if it has one.

        The extra text is scored at temperature 1: it is a likelihood, not a sample. `at` asks about (B, T, K) further
        tokens of a micro-batch without an extra text, see `score_completions`.
        """
        own = tuple(batch[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))
        if "extra_completion_ids" not in batch:
            return score_completions(model, *own, temperature=self.temperature, values=values, at=at), None
        extra = tuple(
            batch[f"extra_{key}"] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        )
        rows, width = len(own[0]), own[2].shape[1]
        temperatures = torch.ones(rows + len(extra[0]), device=own[0].device)
        temperatures[:rows] = self.temperature
        together = joined(own, extra)
        both: dict[str, Any] = {**score_completions(model, *together, temperature=temperatures, values=values)}
        first = {key: None if value is None else value[:rows, :width] for key, value in both.items()}
        second = {key: None if value is None else value[rows:, : extra[2].shape[1]] for key, value in both.items()}
        return first, second  # type: ignore[return-value]

    def with_extra_text(self, batch: Batch) -> Batch:
        """Hook: add `extra_*` tensors, a text to be scored in the same forward."""
        return batch

    def extra_loss(self, extra: Scores, batch: Batch) -> torch.Tensor:
        """Mean negative log-likelihood of the extra text's tokens, as its share of the optimiser step."""
        return -masked_sum(extra["log_probs"], batch["extra_completion_mask"]) / batch["extra_token_share"]

    def references(self: Any, rollout: Rollout, batch: Batch) -> Batch:
        """The prompts with the data's reference texts in place of what the policy wrote, and the end token where the
        text ends within `max_completion_length`.

        Raises:
            DataError: a row has none, or several.
        """
        limit, end = self.args.max_completion_length, self.processing_class.eos_token_id
        end = [] if end is None else [end]
        column = self.args.reference_column
        drawn = self.drawn_references(rollout.prompts, rollout.columns[column])
        texts = [_one_text(text, prompt, column) for prompt, text in zip(rollout.prompts, drawn, strict=True)]
        encoded = self.processing_class(text=texts, add_special_tokens=False)["input_ids"]
        ids, mask = pad_right([(row + end)[:limit] for row in encoded], self._pad_id, batch["prompt_ids"].device)
        return {
            "extra_prompt_ids": batch["prompt_ids"],
            "extra_prompt_mask": batch["prompt_mask"],
            "extra_completion_ids": ids,
            "extra_completion_mask": mask,
        }

    def blended(self: Any, loss: torch.Tensor, extra: Scores, batch: Batch) -> torch.Tensor:
        """`rl_weight * loss + (1 - rl_weight) * MLE loss of the reference` (Shin et al. 2019, Eq. 10)."""
        mle = self.extra_loss(extra, batch)
        scale = self.args.gradient_accumulation_steps
        self._metrics["train"]["mle_loss"].append(self.accelerator.gather(mle.detach() * scale).mean().item())
        return self.args.rl_weight * loss + (1 - self.args.rl_weight) * mle


def _one_text(reference: Any, prompt: Text, column: str) -> str:
    if isinstance(reference, str) or (is_conversational(reference) and reference):
        return completion_text(reference)
    raise DataError(
        f"rl_weight below 1 takes the likelihood of a reference, and column {column!r} holds "
        f"{excerpt(repr(reference), 60)} for the prompt {excerpt(prompt_text(prompt), 60)!r}; expected one text, or "
        "messages: drop rows without one, and of several make rows of their own"
    )
