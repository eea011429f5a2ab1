"""Models without keys and values: recurrent networks keep a state a node; of others the whole path is read again."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from alignkit.models.recurrent.state import RecurrentState
from alignkit.models.scoring import accepts_position_ids, position_ids_of
from alignkit.models.tree.nodes import Nodes


class Prompts:
    """What a model reads before the first token of a completion, for B rows.

    Args:
        model: a causal LM, a token classifier or an encoder-decoder.
        ids, mask: (B, P) padded on the left; of an encoder-decoder the encoder's, or None where it has already read.
        encoder_outputs: of an encoder-decoder.
        start: (B, S) the decoder's first tokens; (B, 0) for a causal model.
    """

    def __init__(self, model: PreTrainedModel, ids: Any, mask: torch.Tensor, encoder_outputs: Any, start: torch.Tensor):
        self.model, self.ids, self.mask, self.encoder_outputs, self.start = model, ids, mask, encoder_outputs, start
        self.lengths = mask.sum(1).cpu().numpy()
        self._gathered: tuple[np.ndarray, dict[str, Any]] | None = None

    @property
    def encoded(self) -> bool:
        """Whether the prompts stand in an encoder."""
        return bool(self.model.config.is_encoder_decoder)

    def of_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """The encoder's inputs of the forward for rows (n,) of prompts; what they were last time is not made again."""
        if not self.encoded:
            return {}
        if self._gathered is None or not np.array_equal(self._gathered[0], rows):
            at = torch.from_numpy(rows).to(self.mask.device)
            outputs = {
                key: value.index_select(0, at)
                for key, value in self.encoder_outputs.items()
                if isinstance(value, torch.Tensor)
            }
            made = {
                "encoder_outputs": type(self.encoder_outputs)(**outputs),
                "attention_mask": self.mask.index_select(0, at),
            }
            self._gathered = (rows.copy(), made)
        return self._gathered[1]


class States:
    """A recurrent network's state at each node, one slot each."""

    def __init__(self, prompts: Prompts, nodes: Nodes, state: RecurrentState):
        self.prompts, self.nodes = prompts, nodes
        roots = torch.from_numpy(nodes.slots(np.arange(nodes.rows)))
        self.pools = []
        for tensor in state.tensors:
            pool = tensor.new_zeros((tensor.shape[0], nodes.capacity, tensor.shape[2]))
            pool[:, roots.to(tensor.device)] = tensor
            self.pools.append(pool)
        nodes.on_growth.append(self._grow)

    def _grow(self, capacity: int) -> None:
        self.pools = [
            torch.cat([pool, pool.new_zeros((pool.shape[0], capacity - pool.shape[1], pool.shape[2]))], 1)
            for pool in self.pools
        ]

    @property
    def bytes(self) -> int:
        """What the states take now."""
        return sum(pool.numel() * pool.element_size() for pool in self.pools)

    @property
    def bytes_per_token(self) -> int:
        """What one more slot takes."""
        return self.bytes // self.nodes.capacity

    def read(self, parents: np.ndarray, new: np.ndarray) -> torch.Tensor:
        """The outputs (n, ...) at the new slots, whose tokens follow the slots `parents`."""
        device = self.pools[0].device
        before, after = (torch.from_numpy(slots).to(device) for slots in (parents, new))
        tokens = torch.from_numpy(self.nodes.token[new])[:, None].to(device)
        state = RecurrentState(tuple(pool.index_select(1, before) for pool in self.pools), 1)
        name = "decoder_input_ids" if self.prompts.encoded else "input_ids"
        inputs = {name: tokens, "past_key_values": state, "use_cache": True}
        out = self.prompts.model(**inputs, **self.prompts.of_rows(self.nodes.row[new]))
        for pool, tensor in zip(self.pools, out.past_key_values.tensors, strict=True):
            pool.index_copy_(1, after, tensor)
        return out.logits[:, -1]


class WholePaths:
    """Keeps nothing: every token is read behind its prompt and its whole path."""

    bytes = 0
    bytes_per_token = 0

    def __init__(self, prompts: Prompts, nodes: Nodes):
        self.prompts, self.nodes = prompts, nodes

    def read(self, parents: np.ndarray, new: np.ndarray) -> torch.Tensor:
        """The outputs (n, ...) at the new slots."""
        device = self.prompts.mask.device
        depth, row = self.nodes.depth[new], self.nodes.row[new]
        width = int(depth.max())
        inside = np.arange(width) < depth[:, None]
        padding = self.prompts.model.config.pad_token_id or 0
        ids = np.where(inside, self.nodes.token[self.nodes.path[new, :width]], padding)
        paths, real = torch.from_numpy(ids).to(device), torch.from_numpy(inside).to(device).long()
        last = torch.from_numpy(depth - 1).to(device)
        if self.prompts.encoded:
            inputs = {**self.prompts.of_rows(row), "decoder_input_ids": paths}
        else:
            at = torch.from_numpy(row).to(device)
            mask = torch.cat([self.prompts.mask.index_select(0, at), real], 1)
            inputs = {"input_ids": torch.cat([self.prompts.ids.index_select(0, at), paths], 1), "attention_mask": mask}
            last = last + self.prompts.mask.shape[1]
            if accepts_position_ids(self.prompts.model):
                inputs["position_ids"] = position_ids_of(mask)
        logits = self.prompts.model(**inputs, use_cache=False).logits
        return logits[torch.arange(len(new), device=device), last]
