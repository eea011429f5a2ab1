"""A search as a proposal: completions for training, with their log-density under the search and under the policy."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from alignkit.decoding.sampling import Completions, mask_is_not_forgotten, weights_are_shared
from alignkit.errors import ConfigError
from alignkit.models.scoring import padded_right
from alignkit.text import Text


class SearchProposal:
    """A `Decoder` that takes its completions from a search which samples.

        proposal = SearchProposal(MCTS(reward, tokenizer, visit_temperature=1.0, policy_share=0.1))
        completions = proposal(model, prompt_ids, prompt_mask, generation_config, prompts=texts)

    `log_probs` are the policy's as such (temperature 1, no truncation), whatever the search does; `log_density` is
    that of the whole completion under the search.

    Args:
        search: an `MCTS` or a `DAS` whose settings let it sample.

    Raises:
        ConfigError: the search always takes the best token: its completions have no density.
    """

    def __init__(self, search: Any):
        if not search.samples:
            raise ConfigError(
                f"as a proposal, {type(search).__name__} must sample: its best completion alone has no density. Give "
                "it visit_temperature above 0 (MCTS) or sample=True (DAS), and a policy_share above 0, so that nothing "
                "that the policy can write is left out"
            )
        self.search = search

    @property
    def has_full_support(self) -> bool:
        """Whether every completion that the policy can write can be drawn."""
        return self.search.policy_share > 0

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
        """Complete `prompt_ids` (B, P), padded on the left, with `prompt_mask` (B, P).

        Args:
            model: the policy.
            prompt_ids, prompt_mask: the prompts' tokens.
            generation_config: how long, and what the policy's own truncation is.
            prompts: B prompts as the reward reads them; by default the text of the tokens.
            columns: further columns for the reward, B values each.
            synced_gpus: whether a forward is a meeting of all processes (FSDP, ZeRO-3).

        Raises:
            ConfigError: a forward gathers weights from other processes: searches do not ask equally often.
        """
        if weights_are_shared(model) if synced_gpus is None else synced_gpus:
            raise ConfigError(
                f"{type(self.search).__name__} asks the policy as often as its tree needs, and with FSDP or ZeRO-3 "
                "every process must ask equally often; use DDP, or the proposal `policy`"
            )
        was_training = model.training
        model.eval()
        encoded = model.config.is_encoder_decoder
        ids, mask = padded_right(prompt_ids, prompt_mask) if encoded else (prompt_ids, prompt_mask)
        config = GenerationConfig.from_dict({**generation_config.to_dict(), "return_dict_in_generate": True})
        try:
            with mask_is_not_forgotten(model):
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=config,
                    custom_generate=self.search,
                    prompts=prompts,
                    columns=columns,
                )
        finally:
            model.train(was_training)
        lengths = torch.tensor([len(row) for row in out.completion_ids], device=ids.device)
        width = int(lengths.max())
        return Completions(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=out.sequences[:, -width:],
            completion_mask=(torch.arange(width, device=ids.device) < lengths[:, None]).long(),
            log_probs=out.log_probs,
            log_density=out.log_density,
        )
