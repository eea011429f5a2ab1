"""What a search asks of the host's `generate`: prompts, limits, and the policy's next tokens at a tree's nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from alignkit.decoding.prompts import behind, check_room, texts_of_rows
from alignkit.errors import ConfigError
from alignkit.models.tree import TreeReader
from alignkit.text import Text

# These look at the scores alone, so that any rows go through them together.
BY_SCORES = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
)
# These leave out what is unlikely; what the others leave out is forbidden.
_TRUNCATING = (
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)


class NextTokens(NamedTuple):
    """What may follow n texts; all in single precision at least.

    Attributes:
        logits: (n, V) of the policy.
        scores: (n, V) what the processors make of them.
        allowed: (n, V) the logits, -inf where a token is forbidden (`min_new_tokens`, `bad_words_ids` and the like) and
            not only truncated away; the logits themselves where nobody asked for more.
    """

    logits: torch.Tensor
    scores: torch.Tensor
    allowed: torch.Tensor


@dataclass
class Search:
    """What is searched for: completions of B prompts.

    Attributes:
        model: the policy.
        ids: (B, L) what each sequence begins with: the prompt, or an encoder-decoder's first decoder tokens.
        prompts: B prompts as the reward reads them.
        columns: further columns for the reward.
        length: most tokens of a completion.
        ends: token ids that end one.
        pad: what stands behind the end.
        processors: the host's logits processors.
        inputs: of `TreeReader.of`.
    """

    model: PreTrainedModel
    ids: torch.Tensor
    prompts: list[Text]
    columns: dict[str, list[Any]]
    length: int
    ends: frozenset[int]
    pad: int
    processors: Any
    inputs: dict[str, Any]

    @property
    def behind(self) -> Sequence[Text] | None:
        """The prompts, where completions go on from them; see `decode_completions`."""
        return behind(self.model, self.prompts)

    def padded(self, completion_ids: list[list[int]], begun: bool = True) -> torch.Tensor:
        """(B, L + T) sequences padded on the right; (B, T) completions alone where they have not `begun`."""
        width = max(len(ids) for ids in completion_ids)
        rows = [[*ids, *[self.pad] * (width - len(ids))] for ids in completion_ids]
        made = torch.tensor(rows, dtype=torch.long, device=self.ids.device)
        return torch.cat([self.ids, made], 1) if begun else made


def search_of(
    name: str,
    processing_class: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    processors: Any,
    stopping_criteria: Any,
    config: GenerationConfig,
    prompts: list[Text] | None,
    columns: Mapping[str, list[Any]] | None,
    inputs_tensor: torch.Tensor | None,
    model_kwargs: dict[str, Any],
) -> Search:
    """What `generate` gives a `custom_generate` callable, as a search reads it.

    Raises:
        ConfigError: beams, a cache that has read something, embeddings in the place of tokens, a stopping criterion
            other than length and end-of-sequence tokens.
        DataError: prompts or columns that do not fit the number of rows.
    """
    if config.num_beams not in (None, 1):
        raise ConfigError(f"{name} searches by itself; leave num_beams={config.num_beams} out")
    others = [type(c).__name__ for c in stopping_criteria if not isinstance(c, MaxLengthCriteria | EosTokenCriteria)]
    if others:
        raise ConfigError(
            f"{name} ends a completion at its end-of-sequence token and at its greatest length, and has no use for "
            f"{', '.join(others)}; leave it out"
        )
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise ConfigError(
            f"{name} reads each prompt from its beginning; leave past_key_values out (it holds "
            f"{cache.get_seq_length()} tokens)"
        )
    encoded = model.config.is_encoder_decoder
    if not encoded and (input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None):
        raise ConfigError(f"{name} reads tokens; pass input_ids to generate, not inputs_embeds")
    texts, more = texts_of_rows(
        name, processing_class, len(input_ids), config.num_return_sequences or 1, prompts, columns, inputs_tensor
    )
    length = config.max_length - input_ids.shape[1]
    if length < 1:
        raise ConfigError(f"there is no room for a token: max_length={config.max_length}; raise max_new_tokens")
    check_room(model, input_ids.shape[1], length)
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pad = config.pad_token_id if config.pad_token_id is not None else (ends[0] if ends else 0)
    mask = model_kwargs.get("attention_mask")
    if encoded:
        inputs = {
            "input_ids": None,
            "attention_mask": mask,
            "encoder_outputs": model_kwargs["encoder_outputs"],
            "decoder_input_ids": input_ids,
        }
    else:
        inputs = {"input_ids": input_ids, "attention_mask": mask}
    return Search(model, input_ids, texts, more, length, frozenset(ends), int(pad), processors, inputs)


class PolicyTree:
    """The policy's distribution of the next token at every node of a tree below B prompts.

    Args:
        search: what is searched for.
        limit: most tokens that are kept at a time.
        with_allowed: whether it matters which tokens are forbidden.
    """

    def __init__(self, search: Search, limit: int, with_allowed: bool = False):
        starts = 0 if search.inputs.get("decoder_input_ids") is None else search.ids.numel()
        self.search = search
        self.reader = TreeReader.of(search.model, **search.inputs, limit=limit + max(starts, len(search.ids)))
        cut = max((i + 1 for i, each in enumerate(search.processors) if not isinstance(each, BY_SCORES)), default=0)
        self._readers = LogitsProcessorList(search.processors[:cut])
        self._warpers = LogitsProcessorList(search.processors[cut:])
        forbidding = [each for each in search.processors if not isinstance(each, _TRUNCATING)]
        self._forbidding = LogitsProcessorList(forbidding if with_allowed else [])

    def begin(self) -> NextTokens:
        """What `extend` gives, at nodes 0 to B - 1, the empty completions."""
        return self._processed(np.arange(len(self.search.ids)), self.reader.outputs)

    def extend(self, parents: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> NextTokens:
        """Add a node below each of `parents` (n,), with the last of `tokens` (n,); what may follow."""
        first = self.reader.nodes.made
        logits = self.reader.extend(parents, tokens)
        return self._processed(np.arange(first, self.reader.nodes.made), logits)

    def keep(self, nodes: Sequence[int] | np.ndarray) -> None:
        """Forget every other node."""
        self.reader.keep(nodes)

    @property
    def made(self) -> int:
        """The number of the next node."""
        return self.reader.nodes.made

    def _processed(self, nodes: np.ndarray, logits: torch.Tensor) -> NextTokens:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not len(self.search.processors):
            return NextTokens(logits, logits, logits)
        read = self._by_text(nodes, logits, self._readers) if self._readers else logits.clone()
        scores = self._warpers(self.search.ids, read) if self._warpers else read
        if not self._forbidding:
            return NextTokens(logits, scores, logits)
        left = scores
        if len(self._forbidding) < len(self.search.processors):
            left = self._by_text(nodes, logits, self._forbidding)
        return NextTokens(logits, scores, torch.where(left == -torch.inf, -torch.inf, logits))

    def _by_text(self, nodes: np.ndarray, logits: torch.Tensor, processors: LogitsProcessorList) -> torch.Tensor:
        """Scores by the processors that read a row's tokens, or know something of each row of the batch: they get what
        `generate` gives them, a row for every prompt, all of one length; rows that nobody asks about are made up."""
        slots = self.reader.nodes.slots(nodes)
        texts, rows = self.reader.nodes.tokens_of(nodes), self.reader.nodes.row[slots]
        scores = torch.empty_like(logits)
        groups: dict[tuple[int, int], list[int]] = {}
        taken: dict[tuple[int, int], int] = {}
        for place, (text, row) in enumerate(zip(texts, rows.tolist(), strict=True)):
            turn = taken.get((len(text), row), 0)
            taken[len(text), row] = turn + 1
            groups.setdefault((len(text), turn), []).append(place)
        for (length, _), places in groups.items():
            at, of = (torch.tensor(part, device=logits.device) for part in (places, rows[places].tolist()))
            written = torch.full((len(self.search.ids), length), self.search.pad, device=logits.device)
            written[of] = torch.tensor([texts[i] for i in places], dtype=torch.long, device=logits.device)
            whole = logits.new_zeros((len(written), logits.shape[1]))
            whole[of] = logits[at]
            scores[at] = processors(torch.cat([self.search.ids, written], 1), whole)[of]
        return scores


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Hold a setting against whole numbers of `least` or more.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is a whole number of {least} or more, got {value!r}")


def check_number(name: str, value: Any, least: float = 0.0, most: float = float("inf")) -> None:
    """Hold a setting against finite numbers between `least` and `most`.

    Raises:
        ConfigError: it is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most or value == float("inf"):
        bounds = f"of {least:g} or more" if most == float("inf") else f"between {least:g} and {most:g}"
        raise ConfigError(f"{name} is a finite number {bounds}, got {value!r}")
