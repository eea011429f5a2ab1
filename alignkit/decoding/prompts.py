"""Prompts to token ids and completions back to text, plain or conversational, for trainers and decoders alike."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignkit.errors import DataError
from alignkit.text import Text, is_conversational


def encode_prompts(
    processing_class: PreTrainedTokenizerBase, prompts: list[Text], chat_template_kwargs: dict[str, Any] | None = None
) -> list[list[int]]:
    """Token ids of each prompt; messages go through the chat template with the generation prompt added.

    Raises:
        DataError: a prompt without tokens, from which a causal model cannot begin.
    """
    if is_conversational(prompts[0]):
        encoded = processing_class.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )["input_ids"]
    else:
        encoded = processing_class(text=prompts)["input_ids"]
    for index, ids in enumerate(encoded):
        if not len(ids):
            raise DataError(
                f"prompt {index} of the batch has no tokens ({prompts[index]!r}); a prompt needs at least one: "
                "filter empty prompts, or put a beginning-of-sequence token there"
            )
    return [list(ids) for ids in encoded]


def pad_left(rows: list[list[int]], pad_token_id: int, device: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, P) ids padded on the left, and their mask."""
    return _pad(rows, pad_token_id, device, left=True)


def pad_right(rows: list[list[int]], pad_token_id: int, device: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids padded on the right, and their mask."""
    return _pad(rows, pad_token_id, device, left=False)


def _pad(rows: list[list[int]], pad_token_id: int, device: Any, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row, dtype=torch.long)
        mask[index, where] = 1
    return ids.to(device), mask.to(device)


def decode_completions(
    processing_class: PreTrainedTokenizerBase, completion_ids: list[list[int]], conversational: bool
) -> list[Text]:
    """Text of each completion without special tokens; one assistant message each if `conversational`."""
    texts = processing_class.batch_decode(completion_ids, skip_special_tokens=True)
    return [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts
