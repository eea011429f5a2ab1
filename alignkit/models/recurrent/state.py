"""What a recurrent network carries from token to token, and how it reads padded rows."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class RecurrentState:
    """The hidden state after the tokens so far, where a transformer has keys and values.

    It answers what `generate` and beam search ask of a cache; its size does not grow with the text.

    Args:
        tensors: each (layers, B, H): one for a GRU, two for an LSTM.
        length: tokens read so far.
    """

    is_compileable = False
    is_croppable = False  # what was read cannot be taken back

    def __init__(self, tensors: tuple[torch.Tensor, ...], length: int):
        self.tensors = tensors
        self.length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows `beam_idx` (B,), as beam search goes on with them."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only the rows `indices`, in that order."""
        self.tensors = tuple(tensor.index_select(1, indices.to(tensor.device)) for tensor in self.tensors)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self.tensors = tuple(tensor.repeat_interleave(repeats, dim=1) for tensor in self.tensors)


def read_padded(
    network: nn.GRU | nn.LSTM, inputs: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Read the real tokens of each row one after the other, wherever its padding is.

    Args:
        network: batch first.
        inputs: (B, L, D).
        mask: (B, L), 1 for real tokens; a row may have none.

    Returns:
        (B, L, directions * H) states, 0 at padding, and the state after each row's last real token, every tensor
        (layers * directions, B, H).
    """
    mask = mask.bool()
    order = (~mask).long().argsort(dim=1, stable=True)  # real tokens to the front, in their order
    lengths = mask.sum(1).clamp(min=1)
    ahead = inputs.gather(1, order[:, :, None].expand_as(inputs))
    packed = pack_padded_sequence(ahead, lengths.cpu(), batch_first=True, enforce_sorted=False)
    read, last = network(packed)
    states, _ = pad_packed_sequence(read, batch_first=True, total_length=inputs.shape[1])
    back = order.argsort(dim=1)[:, :, None].expand(-1, -1, states.shape[-1])
    tensors: Any = last if isinstance(last, tuple) else (last,)
    return states.gather(1, back) * mask[:, :, None], tensors
