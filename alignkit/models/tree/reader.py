"""`TreeReader`: a model's output at every token of a tree, each token read once."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from alignkit.errors import ModelError
from alignkit.models.faster import attention_for
from alignkit.models.recurrent.state import RecurrentState
from alignkit.models.scoring import accepts_position_ids, padded_right, position_ids_of
from alignkit.models.shared_prompts import SharedPrompts, equal_rows
from alignkit.models.tree.keys import KeysAndValues, holds_keys_and_values
from alignkit.models.tree.nodes import Nodes
from alignkit.models.tree.others import Prompts, States, WholePaths

logger = logging.getLogger(__name__)
_TRIED = "_alignkit_reads_trees"
_ROWS = 256


class TreeReader:
    """Reads a tree of token sequences below B prompts, and remembers what a model keeps of each token.

    Nodes 0 to B - 1 are the empty completions; each call of `extend` adds nodes, numbered on from the last. A policy's
    output at a node is the logits of the next token, a token classifier's is the label's.

    Transformers keep keys and values: `bytes_per_token` for each token of the tree and of the prompts, and as much for
    each token of a row that is read at a time (at most `rows` rows). Recurrent models keep a state a node. Of a model
    that keeps anything else each path is read as a whole, which is said once.

        reader = TreeReader.of(model, input_ids, attention_mask)
        logits = reader.extend([0, 0, 1], [5, 7, 7])        # (3, V): nodes B, B + 1, B + 2
        reader.keep([B + 1])

    Attributes:
        outputs: (B, V) the outputs at the last token of each prompt.
        nodes: the tree.
    """

    def __init__(self, memory: KeysAndValues | States | WholePaths, nodes: Nodes, outputs: torch.Tensor, rows: int):
        self.memory, self.nodes, self.outputs, self.rows = memory, nodes, outputs, rows

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: PreTrainedModel,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        *,
        encoder_outputs: Any = None,
        decoder_input_ids: torch.Tensor | None = None,
        limit: int | None = None,
        rows: int = _ROWS,
    ) -> "TreeReader":
        """Read the prompts; equal ones are read once.

        Args:
            model: a causal LM, a token classifier or an encoder-decoder. It is read in the mode it is in.
            input_ids: (B, P) prompts, padded on the left.
            attention_mask: (B, P), 1 for real tokens; all of them by default.
            encoder_outputs: of an encoder-decoder, in the place of `input_ids`; `attention_mask` is the encoder's then.
            decoder_input_ids: (B, S) with which the decoder begins; its start token by default.
            limit: most tokens of the tree that may be kept at a time; as many as memory has by default.
            rows: most rows of a forward; more are read one part after the other.

        Raises:
            ModelError: neither prompts nor what an encoder made of them; no start token.
        """
        prompts = _prompts(model, input_ids, attention_mask, encoder_outputs, decoder_input_ids)
        return cls._made(prompts, limit, rows, trusted=False)

    @classmethod
    def _made(cls, prompts: Prompts, limit: int | None, rows: int, trusted: bool) -> "TreeReader":
        nodes = Nodes(len(prompts.mask), prompts.start.cpu().numpy(), limit)
        cache, outputs, copies = _read_prompts(prompts)
        memory: KeysAndValues | States | WholePaths
        if isinstance(cache, RecurrentState):
            memory = States(prompts, nodes, cache)
        elif holds_keys_and_values(cache) and (trusted or _reads_trees(prompts.model)):
            memory = KeysAndValues(prompts, nodes, cache, copies)
        else:
            memory = WholePaths(prompts, nodes)
            _say_once(prompts.model)
        return cls(memory, nodes, outputs, rows)

    @torch.no_grad()
    def extend(self, parents: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Add a node below each of `parents` (n,), and read its token: the outputs at it (n, V).

        Raises:
            ModelError: a parent that was forgotten or never was, not one token for each parent, more tokens kept than
                `limit`.
        """
        if len(parents) != len(tokens) or not len(parents):
            raise ModelError(f"expected a token for each of one or more parents, got {len(parents)} and {len(tokens)}")
        before = self.nodes.slots(parents)
        new = self.nodes.add(before, tokens)
        parts = [slice(first, first + self.rows) for first in range(0, len(new), self.rows)]
        outputs = [self.memory.read(before[part], new[part]) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def keep(self, nodes: Sequence[int] | np.ndarray) -> None:
        """Forget every other node; tokens that nothing kept stands behind give their slots back."""
        self.nodes.keep(nodes)

    @property
    def bytes(self) -> int:
        """Memory that is held for prompts, tree and the rows that are read at a time, now."""
        return self.memory.bytes

    @property
    def bytes_per_token(self) -> int:
        """Memory that one token of the tree takes."""
        return self.memory.bytes_per_token


def _prompts(model: PreTrainedModel, ids: Any, mask: Any, encoder_outputs: Any, start: Any) -> Prompts:
    given = ids if ids is not None else (None if encoder_outputs is None else encoder_outputs[0])
    if given is None:
        raise ModelError("a tree is read behind prompts: give input_ids (B, P), or what an encoder made of them")
    if mask is None:
        mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
    if not model.config.is_encoder_decoder:
        return Prompts(model, ids, mask.long(), None, mask.new_zeros((len(mask), 0), dtype=torch.long))
    if encoder_outputs is None:
        ids, mask = padded_right(ids, mask)
        encoder_outputs = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
    if start is None:
        first = model.generation_config.decoder_start_token_id if model.generation_config is not None else None
        first = model.config.decoder_start_token_id if first is None else first
        if first is None:
            raise ModelError(f"{type(model).__name__} names no decoder_start_token_id; give decoder_input_ids (B, S)")
        start = torch.full((len(mask), 1), first, dtype=torch.long, device=mask.device)
    return Prompts(model, ids, mask.long(), encoder_outputs, start)


def _read_prompts(prompts: Prompts) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """What the model keeps of the prompts, its outputs (B, V) at their ends, and where each row's are kept (B,)."""
    model = prompts.model
    taken = inspect.signature(type(model).forward).parameters
    rows = torch.arange(len(prompts.mask), device=prompts.mask.device)
    shared = SharedPrompts(rows, rows)
    inputs: dict[str, Any] = {"use_cache": True}
    if prompts.encoded:
        inputs |= prompts.of_rows(rows.cpu().numpy()) | {"decoder_input_ids": prompts.start}
    else:
        shared = equal_rows(prompts.ids, prompts.mask) or shared
        mask = prompts.mask.index_select(0, shared.first)
        inputs |= {"input_ids": prompts.ids.index_select(0, shared.first), "attention_mask": mask}
        if accepts_position_ids(model):
            inputs["position_ids"] = position_ids_of(mask)
    if "logits_to_keep" in taken:
        inputs["logits_to_keep"] = 1
    if "past_key_values" not in taken:
        inputs.pop("use_cache")
    elif _takes_keys_and_values(model):  # given, because a token classifier's output has none
        cache = DynamicCache(config=model.config)
        both = EncoderDecoderCache(cache, DynamicCache(config=model.config)) if prompts.encoded else cache
        inputs["past_key_values"] = both
    with attention_for(model, prompts.mask.shape[1]):
        out = model(**inputs)
    cache = inputs.get("past_key_values", getattr(out, "past_key_values", None))
    if isinstance(cache, RecurrentState):
        cache.batch_select_indices(shared.copies)
    return cache, out.logits[:, -1].index_select(0, shared.copies), shared.copies


def _takes_keys_and_values(model: PreTrainedModel) -> bool:
    generates = getattr(model, "_supports_default_dynamic_cache", None)
    return hasattr(model.config, "num_attention_heads") if generates is None else generates()


@torch.no_grad()
def _reads_trees(model: PreTrainedModel) -> bool:
    """Whether a path's gathered keys and values can stand for it: found out once, by trying two depths at a time."""
    device = model.device.type
    computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    known = model.__dict__.setdefault(_TRIED, {})
    if computed in known:
        return known[computed]
    size = model.config.get_text_config().vocab_size
    ids = torch.tensor([[0, 3, 5], [7, 11, 13]], device=model.device) % size
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]], device=model.device)
    was_training = model.training
    model.eval()
    prompts = _prompts(model, ids, mask, None, None)
    tried = TreeReader._made(prompts, None, _ROWS, trusted=True)
    plain_nodes = Nodes(2, prompts.start.cpu().numpy())
    plain = TreeReader(WholePaths(prompts, plain_nodes), plain_nodes, tried.outputs, _ROWS)
    alike = True
    for parents, tokens in (([0, 1], [2, 4]), ([2, 2], [6, 8]), ([5, 3, 0], [9, 3, 1])):
        mine, whole = (reader.extend(parents, [t % size for t in tokens]) for reader in (tried, plain))
        # by the precision of what is computed: a bias in single precision makes outputs that are no more exact
        limit = 3e-2 if computed in (torch.bfloat16, torch.float16) else 1e-4
        alike &= bool((mine - whole).abs().max() <= limit * whole.abs().max())
    model.train(was_training)
    known[computed] = alike
    return alike


def _say_once(model: PreTrainedModel) -> None:
    if not model.__dict__.get(_TRIED + "_said"):
        model.__dict__[_TRIED + "_said"] = True
        logger.warning(
            "%s keeps something else of a text than each token's keys and values, or a state: every path of a tree is "
            "read as a whole",
            type(model).__name__,
        )
