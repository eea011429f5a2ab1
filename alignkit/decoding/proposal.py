"""What `generate` calls as its `custom_generate`, in the place of a `Decoder`: a search that completes prompts for
evaluation, or proposes completions for training, then with their log-density under the search and the policy."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from alignkit.decoding.sampling import Completions, mask_is_not_forgotten, weights_are_shared
from alignkit.errors import ConfigError
from alignkit.models.scoring import padded_right
from alignkit.text import Text


def found_by(
    search: Any,
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    generation_config: GenerationConfig,
    prompts: list[Text] | None = None,
    columns: Mapping[str, list[Any]] | None = None,
) -> Any:
    """The whole output of a `custom_generate` callable that takes `prompts` and `columns`.

    Args:
        search: `BestOfN`, `MCTS`, `DAS`, or one like them.
        model: the policy, in the mode in which it is.
        prompt_ids, prompt_mask: (B, P) the prompts' tokens, padded on the left.
        generation_config: how long, and what the policy's own truncation is.
        prompts: B prompts as the reward reads them; by default the text of the tokens.
        columns: further columns for the reward, B values each.
    """
    # an encoder may count places
    padded = padded_right(prompt_ids, prompt_mask) if model.config.is_encoder_decoder else (prompt_ids, prompt_mask)
    config = GenerationConfig.from_dict({**generation_config.to_dict(), "return_dict_in_generate": True})
    with mask_is_not_forgotten(model):
        return model.generate(
            input_ids=padded[0],
            attention_mask=padded[1],
            generation_config=config,
            custom_generate=search,
            prompts=prompts,
            columns=columns,
        )


class SearchDecoder:
    """A `Decoder` that takes its completions from what chooses by a reward.

        decoder = SearchDecoder(MCTS(reward, tokenizer))
        rows = generate_rows(model, tokenizer, examples, generation_config=config, decoder=decoder)

    Its completions come without `log_probs`: whoever needs them scores the text under the policy.

    Args:
        search: `BestOfN`, `MCTS`, `DAS`, or another `custom_generate` callable that takes `prompts` and `columns`, and
            whose output has `sequences` and `completion_ids`.
    """

    def __init__(self, search: Any):
        self.search = search

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
        shared = weights_are_shared(model) if synced_gpus is None else synced_gpus
        if shared and getattr(self.search, "asks_unequally", True):
            raise ConfigError(
                f"{type(self.search).__name__} asks the policy as often as its tree needs, and with FSDP or ZeRO-3 "
                "every process must ask equally often; use DDP, or plain samples (in training the proposal `policy`)"
            )
        was_training = model.training
        model.eval()
        try:
            out = found_by(self.search, model, prompt_ids, prompt_mask, generation_config, prompts, columns)
        finally:
            model.train(was_training)
        begun = 1 if model.config.is_encoder_decoder else prompt_ids.shape[1]
        ids = out.sequences[:, begun:]
        lengths = torch.tensor([len(row) for row in out.completion_ids], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        return self._filled(Completions(prompt_ids, prompt_mask, ids, mask), out)

    def _filled(self, made: Completions, out: Any) -> Completions:
        """The completions with what the search's output says of them besides."""
        log_weights = getattr(out, "candidate_log_weights", None)
        if log_weights is not None:

            def ratios(
                prompts: list[Text], texts: list[Text], ids: list[list[int]], columns: Any, rows: list[int]
            ) -> Any:
                return self.search.log_density_ratios(log_weights[rows], prompts, texts, ids, columns)

            made.log_density_ratios = ratios
        return made


class SearchProposal(SearchDecoder):
    """A `Decoder` that takes a trainer's completions from a search.

        proposal = SearchProposal(MCTS(reward, tokenizer, visit_temperature=1.0, policy_share=0.1))
        completions = proposal(model, prompt_ids, prompt_mask, generation_config, prompts=texts)

    `log_probs` are the policy's as such (temperature 1, no truncation), whatever the search does; `log_density` is
    that of the whole completion under the search, None where it takes the best token and draws nothing: then no weight
    can be computed, and the completions serve as they are, as in SelfGAN.

    Args:
        search: an `MCTS` or a `DAS`.
    """

    @property
    def has_full_support(self) -> bool:
        """Whether every completion that the policy can write can be drawn."""
        return self.search.policy_share > 0

    def _filled(self, made: Completions, out: Any) -> Completions:
        made.log_probs, made.log_density = out.log_probs, out.log_density
        return made
