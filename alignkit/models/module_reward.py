"""A sequence-classification model as a reward callable: TRL's `nn.Module` rewards, through the one contract."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from alignkit.errors import ConfigError
from alignkit.models.loading import load_tokenizer
from alignkit.text import Text, is_conversational, joined_text

_GIVE_PADDING = (
    "set tokenizer.pad_token = tokenizer.eos_token and classifier.config.pad_token_id = tokenizer.pad_token_id, and "
    "give that tokenizer as reward_processing_classes"
)


class ModuleReward:
    """The first logit of a sequence classifier on prompt and completion, as TRL scores with modules.

    A conversation is written by the tokenizer's chat template, where it has one.

    Args:
        module: a model with `config` and a tokenizer of the same name.
        tokenizer: loaded by the model's name when None.
        max_length: longer texts are cut on the left, so that the completion is seen.
        batch_size: texts scored at a time.

    Raises:
        ConfigError: several texts cannot be scored together, for want of a pad token.
    """

    def __init__(self, module: PreTrainedModel, tokenizer: Any = None, max_length: int = 512, batch_size: int = 32):
        self.module = module.eval()
        given = tokenizer or load_tokenizer(module.config._name_or_path)
        self.tokenizer = copy.deepcopy(given)  # the policy may share it
        self.tokenizer.padding_side, self.tokenizer.truncation_side = "right", "left"
        self.max_length = max_length
        self.batch_size = batch_size
        self.__name__ = str(module.config._name_or_path or type(module).__name__).rstrip("/").split("/")[-1]
        self._check_padding()

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

    @torch.inference_mode()
    def _check_padding(self) -> None:
        """A text must score alike alone and beside a longer one. Whether padding decides that, is found out by trying:
        decoders look for the last token that is no padding, encoders follow the mask."""
        token, config = self.tokenizer.pad_token_id, self.module.config.get_text_config()
        padded = getattr(config, "pad_token_id", None)
        if token is None:
            raise ConfigError(
                f"the tokenizer of the reward {self.__name__!r} has no pad token, so texts of different lengths cannot "
                f"be scored together; {_GIVE_PADDING}"
            )
        if padded == token:
            return
        word = next(index for index in range(len(self.tokenizer)) if index not in (token, padded))
        rows = torch.tensor([[word, token, token], [word, word, word]], device=next(self.module.parameters()).device)
        alone = self.module(input_ids=rows[:1, :1], attention_mask=torch.ones_like(rows[:1, :1])).logits[0, 0]
        try:
            beside = self.module(input_ids=rows, attention_mask=(rows == word).long()).logits[0, 0]
        except ValueError as error:  # what transformers' decoders say of a batch without a pad token
            if padded is not None:
                raise
            raise ConfigError(
                f"the reward {self.__name__!r} has no pad_token_id in its config, and {type(self.module).__name__} "
                f"needs one to score several texts together; {_GIVE_PADDING}"
            ) from error
        if not torch.isclose(alone.float(), beside.float(), rtol=0.02, atol=0.02):
            raise ConfigError(
                f"the reward {self.__name__!r} scores a text otherwise beside a longer one ({alone:.3g} and "
                f"{beside:.3g}): its config has pad_token_id={padded}, its tokenizer pads with {token}; {_GIVE_PADDING}"
            )

    def _text(self, prompt: Text, completion: Text) -> str:
        if is_conversational(prompt) and self.tokenizer.chat_template:
            return self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        return joined_text(prompt, completion)
