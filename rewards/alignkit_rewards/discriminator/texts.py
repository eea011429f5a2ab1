"""How a discriminator reads: texts to token ids once, token ids to log-odds in batches of similar length."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from alignkit.decoding.prompts import pad_right
from alignkit.errors import RewardError
from alignkit.text import completion_text, joined_text, prompt_text
from alignkit_rewards.network import even_batches
from alignkit_rewards.words import references as texts_of

# Fewer texts may begin alike by chance.
_ENOUGH = 8


class Row(NamedTuple):
    """One text as token ids.

    Attributes:
        ids: prompt and completion.
        begins: place of the completion's first token.
        types: 0 for the prompt's tokens, 1 for the completion's; None where the network knows no such thing.
    """

    ids: list[int]
    begins: int
    types: list[int] | None


class Reader:
    """A network, its tokenizer, and how the two read a prompt and a completion.

    `causal` and `cnn` read the prompt's tokens, the completion's and the end token, each part tokenised apart, as a
    policy writes them. `bidirectional` reads prompt and completion as the tokenizer joins a pair of texts.

    What is too long is cut so that a beginning is read as it will be in the whole text: the prompt keeps its last
    `limit - reserve` tokens, where `reserve` is `max_completion_tokens` (or half the limit), and the completion has
    the rest, at most `max_completion_tokens`; one that is cut has no end token.

    Args:
        model: one output for each token (causal) or each text.
        tokenizer: with a pad token.
        kind: "causal", "bidirectional" or "cnn".
        of: "both" or "completion"; see `Discriminator`.
        limit: tokens of a text.
        max_completion_tokens: tokens of a completion, its end token included.
        batch_size: texts per forward.
        autocast: precision of computations, where the weights have another one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        kind: str,
        of: str,
        limit: int,
        max_completion_tokens: int | None,
        batch_size: int,
        autocast: torch.dtype | None,
    ):
        room = limit - (of == "both")
        if max_completion_tokens is not None and max_completion_tokens > room:
            beside = " leaves no room for a prompt" if of == "both" else " is more than is read"
            raise RewardError(
                f"discriminator: max_completion_tokens={max_completion_tokens}{beside}: the network's positions, "
                f"max_length and the tokenizer's model_max_length allow {limit} tokens; lower it, or raise those"
            )
        self.model, self.tokenizer, self.kind, self.of = model, tokenizer, kind, of
        self.limit, self.longest = limit, max_completion_tokens
        self.batch_size, self.autocast = batch_size, autocast
        told_apart = "token_type_ids" in inspect.signature(model.forward).parameters
        self.typed = kind != "causal" and told_apart and getattr(model.config, "type_vocab_size", 1) > 1

    @property
    def context(self) -> int:
        """Tokens that a prompt may have."""
        return self.limit - (self.limit // 2 if self.longest is None else self.longest)

    def room(self, prompt: int) -> int:
        """Tokens that a completion may have behind a prompt of so many."""
        return min(self.limit - prompt, self.limit if self.longest is None else self.longest)

    def encode(
        self, prompts: Sequence[Any], completions: Sequence[Any], ended: Sequence[bool] | None = None
    ) -> list[Row]:
        """Each text as token ids; a row may have no completion, where there is neither a word nor an end token.

        Args:
            prompts, completions: N each.
            ended: which of the completions have come to their end and get the end token; by default all. A
                `bidirectional` network reads every text as a whole.
        """
        if not len(completions):
            return []
        texts = [completion_text(completion) for completion in completions]
        if self.kind == "bidirectional":
            return self._pairs(prompts, texts)
        given = self.encode_prompts(prompts)
        end = self.tokenizer.eos_token_id
        ended = [True] * len(texts) if ended is None else ended
        written_ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = []
        for context, written, over in zip(given, written_ids, ended, strict=True):
            ends = [end] if over and end is not None else []
            written = (list(written) + ends)[: self.room(len(context))]
            types = [0] * len(context) + [1] * len(written) if self.typed else None
            rows.append(Row(context + written, len(context), types))
        return rows

    def encode_prompts(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Token ids of each prompt, at least one, the last `context` of them."""
        tokenizer = self.tokenizer
        marks = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        start = [next(mark for mark in marks if mark is not None)]
        if self.of == "completion":
            return [list(start) for _ in prompts]
        texts = [joined_text(prompt, "") for prompt in prompts]
        unique = list(dict.fromkeys(texts))  # completions of one prompt stand side by side
        encoded = tokenizer(unique, return_special_tokens_mask=True)
        known = {}
        for text, ids, special in zip(unique, encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            # marks that a tokenizer puts behind a text say that it is over, which a prompt is not
            last = max((i + 1 for i, mark in enumerate(special) if not mark), default=0)
            known[text] = list(ids[:last][-self.context :]) or start
        return [list(known[text]) for text in texts]

    def _pairs(self, prompts: Sequence[Any], texts: list[str]) -> list[Row]:
        """Rows with the tokenizer's own marks; the prompt loses its beginning, then the completion its end."""
        if self.of == "completion":
            encoded = self.tokenizer(texts, return_token_type_ids=True)
        else:
            given = [prompt_text(prompt) for prompt in prompts]
            encoded = self.tokenizer(given, texts, return_token_type_ids=True)
        rows = []
        for i, ids in enumerate(encoded["input_ids"]):
            part = encoded.sequence_ids(i)
            if self.of == "completion":
                part = [None if side is None else 1 for side in part]
            marks, asked = part.count(None), part.count(0)
            cut = max(asked - max(self.context - marks, 1), 0)
            room = self.room(marks + asked - cut)
            kept, seen = [], {0: 0, 1: 0}
            for place, side in enumerate(part):
                if side is not None:
                    seen[side] += 1
                if side is None or (seen[0] > cut if side == 0 else seen[1] <= room):
                    kept.append(place)
            types = encoded["token_type_ids"][i] if self.typed else None
            begins = next((new for new, place in enumerate(kept) if part[place] == 1), len(kept))
            rows.append(Row([ids[p] for p in kept], begins, types and [types[p] for p in kept]))
        return rows

    def precision(self) -> AbstractContextManager:
        """The precision in which the network computes."""
        return torch.autocast(self.model.device.type, self.autocast, enabled=self.autocast is not None)

    def logits(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds that a person wrote the texts, (B, L) for each token or (B, 1); and where they count, alike."""
        padding = self.tokenizer.pad_token_id
        ids, mask = pad_right([row.ids for row in rows], padding, self.model.device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if rows[0].types is not None:
            inputs["token_type_ids"] = pad_right([row.types or [] for row in rows], 0, ids.device)[0]
        if self.kind == "causal":
            inputs["use_cache"] = False
        with self.precision():
            logits = self.model(**inputs).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).squeeze(-1)
        if self.kind != "causal":
            return logits[:, None], torch.ones_like(logits, dtype=torch.bool)[:, None]
        begins = torch.tensor([row.begins for row in rows], device=ids.device)[:, None]
        return logits, mask.bool() & (torch.arange(ids.shape[1], device=ids.device) >= begins)

    def readable(self, row: Row) -> bool:
        """Whether there is anything to give a label to."""
        return len(row.ids) > (row.begins if self.kind != "bidirectional" else 0)

    def batches(self, rows: Sequence[Row]) -> Any:
        """Places of the readable rows, in batches of similar length."""
        kept = [i for i, row in enumerate(rows) if self.readable(row)]
        for batch in even_batches([len(rows[i].ids) for i in kept], self.batch_size):
            yield [kept[i] for i in batch]

    @torch.inference_mode()
    def log_odds(self, rows: Sequence[Row]) -> torch.Tensor:
        """(B,) log-odds of whole texts in float64, at the last token of a causal network; NaN where there is none."""
        found = torch.full((len(rows),), torch.nan, dtype=torch.float64)
        for places in self.batches(rows):
            logits, mask = self.logits([rows[i] for i in places])
            found[places] = last_of(logits, mask).cpu().double()
        return found


def last_of(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,) the last of each row's labelled values: (B, L) logits and mask."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return logits.gather(1, (mask * places).argmax(1, keepdim=True)).squeeze(1)


def unlike_beginnings(people: Sequence[str], policy: Sequence[str]) -> str | None:
    """In words, that all texts of one kind begin with a blank and none of the other do: a slip in the data, mostly.

    >>> unlike_beginnings(["good"] * 8, [" bad"] * 8)
    'all 8 completions begin with a blank and no reference does'
    """
    kinds = [{text[0].isspace() for text in side if text} for side in (people, policy)]
    if len(policy) < _ENOUGH or any(len(kind) != 1 for kind in kinds) or kinds[0] == kinds[1]:
        return None
    with_blank, without = ("references", "completion") if True in kinds[0] else ("completions", "reference")
    return f"all {len(policy)} {with_blank} begin with a blank and no {without} does"


def peoples_texts(references: Sequence[Any], column: str) -> list[list[str]]:
    """What people wrote in each row, one text or several.

    Raises:
        RewardError: a row has none.
    """
    given = [texts_of(value) for value in references]
    without = sum(not texts for texts in given)
    if without:
        raise RewardError(
            f"discriminator learns to tell people's texts from the policy's, but {without} of {len(references)} "
            f"references are None: the data need a text in column {column!r} of every row (or set reference_column). "
            "To score with a trained discriminator that does not learn, set updates: 0"
        )
    return given
