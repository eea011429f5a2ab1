"""Prompts to token ids and completions back to text, plain or conversational, for trainers and decoders alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.errors import ConfigError, DataError
from alignkit.text import Text, is_conversational

_LONGEST_WORD = 32  # in characters; some languages write no blanks


def encode_prompts(
    processing_class: PreTrainedTokenizerBase, prompts: list[Text], chat_template_kwargs: dict[str, Any] | None = None
) -> list[list[int]]:
    """Token ids of each prompt; messages go through the chat template with the generation prompt added.

    Raises:
        DataError: a prompt without tokens, from which a causal model cannot begin; messages for a tokenizer without a
            chat template.
    """
    if is_conversational(prompts[0]):
        given = "chat_template" in (chat_template_kwargs or {})
        if not given and getattr(processing_class, "chat_template", "") is None:
            raise DataError(
                f"the prompts are messages, and the tokenizer {getattr(processing_class, 'name_or_path', '')!r} has no "
                "chat template to write them by; give prompts as text, or take a model that was trained on messages"
            )
        encoded = processing_class.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )["input_ids"]
    else:
        encoded = processing_class(text=prompts)["input_ids"]
    for index, ids in enumerate(encoded):
        if not len(ids):
            first = processing_class.bos_token or processing_class.eos_token
            raise DataError(
                f"prompt {index} of the batch has no tokens ({prompts[index]!r}); a prompt needs at least one: "
                "filter empty prompts, or begin texts from nothing with a token that no text contains"
                + (f", such as {first!r}" if first else "")
            )
    return [list(ids) for ids in encoded]


def split_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, begins: int, *, apart: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of what stands before character `begins` and of what follows, which has no special tokens added.

    The text is encoded whole, as a model reads it: encoding the parts apart would put a token border where none is,
    and make ordinary text look unlikely. A token that reaches over the border belongs to what follows.

    Args:
        tokenizer: of the model that reads the text.
        text: what is given and what continues it.
        begins: first character of the continuation.
        apart: encode the parts apart after all, for encoder-decoders, which read them apart. Tokenizers without
            offsets (slow ones) can do nothing else.
    """
    if apart or not tokenizer.is_fast:
        return (
            list(tokenizer(text[:begins])["input_ids"]),
            list(tokenizer(text[begins:], add_special_tokens=False)["input_ids"]),
        )
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, special = list(encoded["input_ids"]), encoded["special_tokens_mask"]
    ends = [end for _, end in encoded["offset_mapping"]]
    first = next((i for i, end in enumerate(ends) if end > begins and not special[i]), len(ids))
    return ids[:first], [ids[i] for i in range(first, len(ids)) if not special[i]]


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
    processing_class: PreTrainedTokenizerBase,
    completion_ids: list[list[int]],
    conversational: bool,
    behind: Sequence[Text] | None = None,
) -> list[Text]:
    """Text of each completion without special tokens; one assistant message each if `conversational`.

    Args:
        processing_class: the tokenizer that wrote them.
        completion_ids: B lists of token ids.
        conversational: whether the prompts are messages.
        behind: B prompts that the completions go on from, where a causal model wrote them. Tokenizers of
            SentencePiece (Llama, Mistral, Gemma), of word pieces and of whole words write a text's first word otherwise
            than one that follows: mostly without a blank.
    """
    if conversational or behind is None:
        texts = processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        return [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts
    words = _last_words(processing_class, behind)
    starts = [
        _word_before(processing_class, words, prompt, ids) for prompt, ids in zip(behind, completion_ids, strict=True)
    ]
    rows = [[*start, *ids] for (start, _), ids in zip(starts, completion_ids, strict=True)]
    wholes = processing_class.batch_decode(rows, skip_special_tokens=True)
    return [
        whole[len(said) :] if whole.startswith(said) else processing_class.decode(ids, skip_special_tokens=True)
        for whole, (_, said), ids in zip(wholes, starts, completion_ids, strict=True)
    ]


def behind(model: PreTrainedModel, prompts: Sequence[Text]) -> Sequence[Text] | None:
    """The prompts, where the model's completions go on from them: not those of an encoder-decoder."""
    return None if model.config.is_encoder_decoder else prompts


def _last_words(processing_class: PreTrainedTokenizerBase, prompts: Sequence[Text]) -> dict[str, tuple[list[int], str]]:
    """Prompt -> tokens of its last word, and what they say; not of prompts behind which a text begins anew."""
    special = tuple(processing_class.all_special_tokens)
    ends = {
        prompt: prompt.rsplit(None, 1)[-1][-_LONGEST_WORD:]
        for prompt in prompts
        if isinstance(prompt, str) and prompt and not prompt[-1].isspace() and not prompt.endswith(special)
    }
    if not ends:
        return {}
    encoded = processing_class(list(ends.values()), add_special_tokens=False)["input_ids"]
    said = processing_class.batch_decode(encoded, skip_special_tokens=True)
    return {prompt: (list(ids), text) for prompt, ids, text in zip(ends, encoded, said, strict=True)}


def _word_before(
    processing_class: PreTrainedTokenizerBase, words: Mapping[str, tuple[list[int], str]], prompt: Text, ids: list[int]
) -> tuple[list[int], str]:
    """What to decode a completion behind: the prompt's last word, or its own first one where that is not known."""
    found = words.get(prompt, ([], "")) if isinstance(prompt, str) else ([], "")
    if not found[0] or found[1]:
        return found
    special = set(processing_class.all_special_ids)
    first = [token for token in ids if token not in special][:1]
    return first, processing_class.decode(first)


def texts_of_rows(
    name: str,
    processing_class: PreTrainedTokenizerBase,
    rows: int,
    times: int,
    prompts: list[Text] | None,
    columns: Mapping[str, list[Any]] | None,
    inputs_tensor: torch.Tensor | None,
) -> tuple[list[Text], dict[str, list[Any]]]:
    """Prompts and columns as a reward reads them, one for each row of a decoder that `generate` calls.

    Args:
        name: of the decoder, for messages.
        processing_class: the tokenizer of the model that generates.
        rows: how many completions there will be.
        times: rows of each prompt, one after the other.
        prompts: one for each of rows / times; by default the text of `inputs_tensor`.
        columns: further columns, as many values each.
        inputs_tensor: (rows / times, P) the prompts' token ids.

    Raises:
        DataError: not one value for each prompt, or no prompts that a reward could read.
    """
    if prompts is None:
        if inputs_tensor is None or inputs_tensor.is_floating_point():
            raise DataError(f"{name} was given no prompts that a reward could read; pass prompts=[...] to generate")
        prompts = processing_class.batch_decode(inputs_tensor, skip_special_tokens=True)
    wanted = rows // times
    lengths = {"prompts": len(prompts), **{key: len(values) for key, values in (columns or {}).items()}}
    uneven = {key: length for key, length in lengths.items() if length != wanted}
    if uneven:
        raise DataError(f"{name} completes {wanted} prompts, but got {uneven}: give one value for each prompt")

    def repeat(values: list[Any]) -> list[Any]:
        return [value for value in values for _ in range(times)]

    return repeat(list(prompts)), {key: repeat(list(values)) for key, values in (columns or {}).items()}


def check_room(model: PreTrainedModel, prompt_tokens: int, new_tokens: int) -> None:
    """Hold a prompt and its completion against the positions that the model has.

    Args:
        model: what will read them; of an encoder-decoder the decoder, for which `prompt_tokens` is what it begins with.
        prompt_tokens: of the longest prompt.
        new_tokens: most tokens of a completion.

    Raises:
        ConfigError: they are more than the model has positions for.
    """
    left = room_behind(model, prompt_tokens)
    if left is not None and new_tokens > left:
        lower = f"lower max_new_tokens (--max-new-tokens) to {left} or less"
        raise ConfigError(
            f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones make {prompt_tokens + new_tokens}, and "
            f"{type(model).__name__} has {prompt_tokens + left} positions; "
            + " or ".join([lower] * (left > 0) + ["shorten the prompts"] * (not model.config.is_encoder_decoder))
        )


def room_behind(model: PreTrainedModel, prompt_tokens: int) -> int | None:
    """How many tokens of a completion a model has positions for behind so many of a prompt, below 0 if it has none even
    for these; None where positions have no end."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions - prompt_tokens if positions else None
