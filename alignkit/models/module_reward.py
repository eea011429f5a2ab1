"""A sequence-classification model as a reward callable: TRL's `nn.Module` rewards, through the one contract."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from alignkit.models.loading import load_tokenizer
from alignkit.text import Text, is_conversational, joined_text


class ModuleReward:
    """The first logit of a sequence classifier on prompt and completion, as TRL scores with modules.

    A conversation is written by the tokenizer's chat template, where it has one.

    Args:
        module: a model with `config` and a tokenizer of the same name.
        tokenizer: loaded by the model's name when None.
        max_length: longer texts are cut on the left, so that the completion is seen.
        batch_size: texts scored at a time.
    """

    def __init__(self, module: PreTrainedModel, tokenizer: Any = None, max_length: int = 512, batch_size: int = 32):
        self.module = module.eval()
        given = tokenizer or load_tokenizer(module.config._name_or_path)
        self.tokenizer = copy.deepcopy(given)  # the policy may share it
        self.tokenizer.padding_side, self.tokenizer.truncation_side = "right", "left"
        self.max_length = max_length
        self.batch_size = batch_size
        self.__name__ = str(module.config._name_or_path or type(module).__name__).rstrip("/").split("/")[-1]

    @torch.inference_mode()
    def __call__(self, prompts: list[Text], completions: list[Text], **columns: Any) -> list[float]:
        """One logit per completion."""
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores: list[float] = []
        device = next(self.module.parameters()).device
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                texts[start : start + self.batch_size],
                return_tensors="pt",
                padding=True,
                truncation=True,
                add_special_tokens=False,
                max_length=self.max_length,
            ).to(device)
            scores += self.module(**batch).logits[:, 0].float().tolist()
        return scores

    def _text(self, prompt: Text, completion: Text) -> str:
        if is_conversational(prompt) and self.tokenizer.chat_template:
            return self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        return joined_text(prompt, completion)
