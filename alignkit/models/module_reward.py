"""A sequence-classification model as a reward callable: TRL's `nn.Module` rewards, through the one contract."""

from typing import Any

import torch
from transformers import PreTrainedModel

from alignkit.models.loading import load_tokenizer
from alignkit.text import Text, joined_text


class ModuleReward:
    """The first logit of a sequence classifier on prompt and completion, as TRL scores with modules.

    Args:
        module: a model with `config` and a tokenizer of the same name.
        tokenizer: loaded by the model's name when None.
        max_length: longer texts are cut on the left, so that the completion is seen.
        batch_size: texts scored at a time.
    """

    def __init__(self, module: PreTrainedModel, tokenizer: Any = None, max_length: int = 512, batch_size: int = 32):
        self.module = module.eval()
        self.tokenizer = tokenizer or load_tokenizer(module.config._name_or_path, padding_side="right")
        self.max_length = max_length
        self.batch_size = batch_size
        self.__name__ = str(module.config._name_or_path or type(module).__name__).rstrip("/").split("/")[-1]

    @torch.inference_mode()
    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        """One logit per completion."""
        texts = [joined_text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores: list[float] = []
        device = next(self.module.parameters()).device
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                texts[start : start + self.batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=self.max_length,
            ).to(device)
            scores += self.module(**batch).logits[:, 0].float().tolist()
        return scores
