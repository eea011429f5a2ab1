"""Hybrid training: the likelihood of a reference text beside the RL loss, scored in the same forward."""

from typing import Any

import torch

from alignkit.decoding.prompts import pad_right
from alignkit.models.scoring import Scores
from alignkit.text import completion_text
from alignkit.trainers.rollout import Batch, Rollout


class ReferencesMixin:
    """`rl_weight * RL + (1 - rl_weight) * MLE of the reference` (the hybrid objective of Shin et al. 2019, Eq. 10)."""

    def shape(self: Any, rollout: Rollout) -> Batch:
        """Add the reference texts as `extra_*`, where the MLE term is on."""
        batch = super().shape(rollout)  # type: ignore[misc]
        if self.args.rl_weight < 1:
            end = [self.processing_class.eos_token_id]
            texts = [completion_text(text) for text in rollout.columns[self.args.reference_column]]
            encoded = self.processing_class(text=texts, add_special_tokens=False)["input_ids"]
            limit = self.args.max_completion_length
            rows = [ids[: limit and limit - 1] + end for ids in encoded]
            ids, mask = pad_right(rows, self._pad_id, batch["prompt_ids"].device)
            batch.update(
                extra_prompt_ids=batch["prompt_ids"],
                extra_prompt_mask=batch["prompt_mask"],
                extra_completion_ids=ids,
                extra_completion_mask=mask,
            )
        return batch

    def blend(self: Any, loss: torch.Tensor, extra: Scores | None, batch: Batch) -> torch.Tensor:
        """Weigh the RL loss against the reference's negative log-likelihood."""
        if extra is None or self.args.rl_weight == 1:
            return loss
        mle = self.extra_loss(extra, batch)
        scale = self.args.gradient_accumulation_steps
        self._metrics["train"]["mle_loss"].append(self.accelerator.gather(mle.detach() * scale).mean().item())
        return self.args.rl_weight * loss + (1 - self.args.rl_weight) * mle
