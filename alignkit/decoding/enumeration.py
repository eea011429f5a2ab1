"""Every sequence of a small space, once for each prompt: in place of sampling where q can be computed exactly."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from alignkit.decoding.sampling import Completions
from alignkit.errors import ConfigError
from alignkit.text import Text


class EnumerationDecoder:
    """A decoder that draws nothing: the rows of a prompt get all completions that there are, in a fixed order.

    A completion ends with an end-of-sequence token or with `max_new_tokens` tokens. Each prompt must stand in as many
    consecutive rows as the space has completions. The density is uniform, so that importance weights are exact: with
    it a cooperative trainer is RML-GAN, its sums over samples are the expectations themselves.

    Args:
        limit: refuse spaces with more completions than this.
    """

    def __init__(self, limit: int = 4096):
        self.limit = limit

    def check(self, model: PreTrainedModel, generation_config: GenerationConfig, num_generations: int) -> None:
        """Refuse, before anything is trained, a space that is too large or not as large as the groups of rows.

        Raises:
            ConfigError: with the number of completions.
        """
        size = self.size(model, generation_config)
        if num_generations != size:
            raise ConfigError(
                f"the proposal 'exact' gives each prompt all of the {size} completions that there are; "
                f"set num_generations={size} (it is {num_generations})"
            )

    def size(self, model: PreTrainedModel, generation_config: GenerationConfig) -> int:
        """How many completions there are.

        Raises:
            ConfigError: more than `limit`.
        """
        tokens, ends, length = _space(model, generation_config)
        going_on = tokens - len(ends)
        size = sum(going_on**k * len(ends) for k in range(length)) + going_on**length
        if size > self.limit:
            shown = f"{size}" if size < 10**9 else f"{float(size):.2g}" if size < 10**300 else "more than 1e300"
            raise ConfigError(
                f"{tokens} tokens and completions of at most {length} make {shown} completions, more than the "
                f"{self.limit} that are enumerated; the proposal 'exact' is for small spaces: shorten "
                "max_completion_length, or take 'policy' or 'mixture'"
            )
        return size

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        generation_config: GenerationConfig,
        *,
        prompts: list[Text] | None = None,
        columns: Mapping[str, list[Any]] | None = None,
        synced_gpus: bool | None = None,
    ) -> Completions:
        """All completions of each prompt; their log-probabilities are left to scoring.

        Raises:
            ConfigError: rows that are no whole groups of one prompt.
        """
        size = self.size(model, generation_config)
        rows = len(prompt_ids)
        groups = prompt_ids.view(-1, size, prompt_ids.shape[1]) if rows % size == 0 else None
        if groups is None or not bool((groups == groups[:, :1]).all()):
            raise ConfigError(
                f"the proposal 'exact' needs each prompt in {size} consecutive rows of one process, and got {rows} "
                f"rows; set num_generations={size}, and per_device_train_batch_size * steps_per_generation to a "
                f"multiple of it"
            )
        ids, mask = self._all(model, generation_config, prompt_ids.device)
        times = rows // size
        dtype = torch.promote_types(model.dtype, torch.float32)
        density = -torch.full((rows,), float(size), dtype=dtype, device=ids.device).log()
        return Completions(prompt_ids, prompt_mask, ids.repeat(times, 1), mask.repeat(times, 1), log_density=density)

    def _all(
        self, model: PreTrainedModel, config: GenerationConfig, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, ends, length = _space(model, config)
        going_on = [token for token in range(tokens) if token not in ends]
        whole: list[list[int]] = []
        begun: list[list[int]] = [[]]
        for _ in range(length):
            whole += [[*row, end] for row in begun for end in ends]
            begun = [[*row, token] for row in begun for token in going_on]
        whole += begun
        pad = config.pad_token_id if config.pad_token_id is not None else 0
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in whole], device=device)
        lengths = torch.tensor([len(row) for row in whole], device=device)
        return ids, (torch.arange(length, device=device) < lengths[:, None]).long()


def _space(model: PreTrainedModel, config: GenerationConfig) -> tuple[int, list[int], int]:
    """Number of tokens, those that end a completion, and the longest completion's length."""
    tokens = model.config.get_text_config(decoder=True).vocab_size
    ends = config.eos_token_id
    listed = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if config.max_new_tokens is None:
        raise ConfigError("max_completion_length is None; the proposal 'exact' needs the length of the longest one")
    return tokens, [end for end in listed if end < tokens], config.max_new_tokens
