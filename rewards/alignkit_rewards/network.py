"""What the rewards with a network share: they load it late, keep it out of pickles, and run it in even batches."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from alignkit.errors import RewardError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class NetworkReward:
    """Holds a frozen network; it is loaded at the first score, so that building and checking a reward costs nothing.

    Args:
        model: a name (see `alignkit.models.loading.resolve_model`) or a loaded model.
        tokenizer: for a loaded model, its tokenizer; None for a name.
        batch_size: texts per forward.
        max_length: tokens per text, special ones included; the model's own limit if that is lower.
        device: where the network runs; by default the accelerator of this process, else the CPU. A loaded model stays
            where it is.
        dtype: of the weights, such as "bfloat16".
        trust_remote_code: run Python code that the checkpoint brings along.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        batch_size: int = 32,
        max_length: int = 512,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ):
        if not isinstance(model, str) and tokenizer is None:
            raise RewardError(f"a loaded {type(model).__name__} needs its tokenizer: pass tokenizer= as well")
        if batch_size < 1 or max_length < 2:
            raise RewardError(f"expected batch_size >= 1 and max_length >= 2, got {batch_size} and {max_length}")
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.max_length = batch_size, max_length
        self.device, self.dtype, self.trust_remote_code = device, dtype, trust_remote_code
        self._ready: tuple[Any, Any] | None = None

    def load(self, name: str) -> tuple[Any, Any]:
        """Model and tokenizer of a name; each reward says which kind of model that is."""
        raise NotImplementedError(f"{type(self).__name__} must say in load(name) which kind of model it scores with")

    def network(self) -> tuple[Any, Any]:
        """The model in eval mode, where it runs, and a tokenizer of its own; loaded on first use."""
        if self._ready is None:
            import copy

            import torch

            model: Any
            if isinstance(self.model, str):
                model, tokenizer = self.load(self.model)
                device = self.device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
                model = model.to(device)
            else:
                # The tokenizer may be the policy's too: padding and truncation sides are set on a copy.
                model, tokenizer = self.model, copy.deepcopy(self.tokenizer)
                model = model if self.device is None else model.to(self.device)
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            # On the left padding would shift the positions of encoders.
            tokenizer.padding_side = "right"
            self._ready = (model.eval(), tokenizer)
        return self._ready

    def limit(self) -> int:
        """Tokens per text: `max_length`, or what tokenizer and positions allow if that is less."""
        model, tokenizer = self.network()
        positions = getattr(model.config, "max_position_embeddings", None) or self.max_length
        table: Any = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
        if getattr(table, "padding_idx", None) is not None:
            # The RoBERTa family counts positions from behind its padding index.
            positions -= table.padding_idx + 1
        return min(self.max_length, tokenizer.model_max_length, positions)

    def __getstate__(self) -> dict[str, Any]:
        """A network that has a name is left out and loaded again; a loaded one goes as configuration and weights.

        The model object itself may carry hooks and patched methods, which do not pickle.
        """
        state = {**self.__dict__, "_ready": None}
        if not isinstance(self.model, str):
            weights = {key: value.cpu() for key, value in self.model.state_dict().items()}
            state["model"] = (type(self.model), self.model.config, weights)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Puts a network that went as weights together again, on the CPU or the `device` that was asked for."""
        if isinstance(state["model"], tuple):
            kind, config, weights = state["model"]
            model = kind(config).to(next(iter(weights.values())).dtype)
            model.load_state_dict(weights)
            state = {**state, "model": model.eval()}
        self.__dict__.update(state)


def even_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first, so that little is computed on padding.

    >>> list(even_batches([2, 9, 3, 8], batch_size=2))
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
