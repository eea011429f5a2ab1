"""Best of n: the completion that a reward likes most among n samples of each prompt.

No weight changes, so it shows what a reward asks for before anything is trained with it, and how much of a training
run's gain plain choosing would have given.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from alignkit.compose import as_reward
from alignkit.decoding.policy_tree import BY_SCORES
from alignkit.decoding.prompts import behind, decode_completions, texts_of_rows
from alignkit.decoding.sampling import SamplingLoop, mask_is_not_forgotten, only_tempered, weights_are_shared
from alignkit.decoding.warn_once import NoSay
from alignkit.errors import ConfigError
from alignkit.reward import call_reward, in_evaluation, scalar_score
from alignkit.text import Text, is_conversational

logger = logging.getLogger(__name__)


@dataclass
class BestOfNOutput(ModelOutput):
    """What `generate` gives for B prompts with `return_dict_in_generate=True`.

    Attributes:
        sequences: (B, L) the chosen sequences, as `generate` returns them without it.
        rewards: (B,) the reward of the chosen ones; NaN where the reward had no opinion on any candidate.
        chosen: (B,) the place of the chosen one among its n candidates.
        candidates: (B, n, M) all sequences, in the order in which they were drawn.
        candidate_rewards: (B, n) their rewards; NaN where the reward had no opinion.
        candidate_log_weights: (B, n) logarithms of the weights that one was drawn by; None where none is drawn, or
            where more than a temperature lies between the policy and the candidates (top-k, top-p, a penalty).
        completions: B completions, the chosen ones, in the form in which the reward read them.
        completion_ids: their token ids, end-of-sequence token included and padding left out.
        candidate_completions, candidate_completion_ids: the same of all candidates, B lists of n.
    """

    sequences: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    chosen: torch.Tensor | None = None
    candidates: torch.Tensor | None = None
    candidate_rewards: torch.Tensor | None = None
    candidate_log_weights: torch.Tensor | None = None
    completions: list[Text] | None = None
    completion_ids: list[list[int]] | None = None
    candidate_completions: list[list[Text]] | None = None
    candidate_completion_ids: list[list[list[int]]] | None = None


class BestOfN:
    """A `custom_generate` callable: draw n samples of each prompt, return the one with the highest reward.

    It takes causal LMs and encoder-decoders. Samples are drawn as training draws them, with the temperature, top-k and
    top-p of the generation config. Of equal rewards the first drawn counts; a candidate on which the reward has no
    opinion (`None`) comes after all others, and where it has none at all the first is taken. Rewards for each turn or
    token are summed.

        model.generate(**inputs, custom_generate=BestOfN(reward, tokenizer, n=8), prompts=texts, do_sample=True)

    Args:
        reward: a reward, a name for `load_reward`, or a mapping with `use`.
        processing_class: the tokenizer of the model that generates.
        n: samples of each prompt.

    Raises:
        ConfigError: n is no whole number of 1 or more.
    """

    asks_unequally = False  # every process takes as many steps as the others: it works where weights are shared

    def __init__(self, reward: Any, processing_class: PreTrainedTokenizerBase, n: int = 8):
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigError(
                f"best of n draws n samples of each prompt; expected a whole number of 1 or more, got {n!r}"
            )
        self.reward = as_reward(reward)
        self.processing_class = processing_class
        self.n = n
        self.no_say = NoSay(type(self).__name__, logger)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        prompts: list[Text] | None = None,
        columns: Mapping[str, list[Any]] | None = None,
        uniform: torch.Tensor | None = None,
        choice_uniform: torch.Tensor | None = None,
        inputs_tensor: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> torch.Tensor | BestOfNOutput:
        """What `generate` calls; the first three of these are for its caller, the rest is the host's.

        Args:
            prompts: B prompts as the reward shall read them, strings or message lists; by default the text of the
                prompts' tokens.
            columns: further columns of the data for the reward, B values each.
            uniform: (B * n, T) numbers in [0, 1) to draw by, see `SamplingDecoder`.
            choice_uniform: (B,) the same for the choice, where that is drawn.
            model, input_ids, logits_processor, stopping_criteria, generation_config: see transformers' `generate`.
            inputs_tensor: (B, P) the prompts' token ids.
            model_kwargs: inputs of the model's forward.

        Returns:
            (B, L) prompt and completion, or of an encoder-decoder the decoder's tokens, padded on the right; a
            `BestOfNOutput` with `return_dict_in_generate=True`.

        Raises:
            ConfigError: n above 1 without sampling, beams, or a cache that has already read something.
            DataError: prompts or columns that do not fit the number of rows.
        """
        self._check(generation_config, model_kwargs)
        returned = (generation_config.num_return_sequences or 1) * self.n
        texts, columns = texts_of_rows(
            "best of n", self.processing_class, len(input_ids) * self.n, returned, prompts, columns, inputs_tensor
        )
        start = input_ids.shape[1]
        ids, model_kwargs = model._expand_inputs_for_generation(
            expand_size=self.n,
            is_encoder_decoder=model.config.is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        loop = SamplingLoop(with_values=False, synced_gpus=weights_are_shared(model), uniform=uniform)
        with mask_is_not_forgotten(model):
            processors = logits_processor
            if not all(isinstance(processor, BY_SCORES) for processor in logits_processor):
                processors = _ByCandidate(logits_processor, self.n)
            sequences = loop(model, ids, processors, stopping_criteria, generation_config, **model_kwargs)
        drawn, mask = loop.drawn()
        rows = [row[keep].tolist() for row, keep in zip(drawn.cpu(), mask.bool().cpu(), strict=True)]
        completions = decode_completions(self.processing_class, rows, is_conversational(texts[0]), behind(model, texts))
        with in_evaluation([self.reward]):
            found = call_reward(self.reward, texts, completions, columns=columns, completion_ids=rows)
            scores = [scalar_score(score) for score in found]
            chosen, log_weights = self._choose(scores, texts, completions, columns, choice_uniform)
            chosen = chosen.to(sequences.device)
        groups = self._grouped(scores)
        at = torch.arange(len(groups), device=sequences.device) * self.n + chosen
        best = sequences[at, : start + int(mask[at].sum(1).max())]
        if not generation_config.return_dict_in_generate:
            return best
        rewards = torch.tensor([[float("nan") if score is None else score for score in group] for group in groups])
        taken = (torch.arange(len(groups)) * self.n + chosen.cpu()).tolist()
        return BestOfNOutput(
            sequences=best,
            rewards=rewards.gather(1, chosen.cpu()[:, None]).squeeze(1),
            chosen=chosen,
            candidates=sequences.view(len(groups), self.n, -1),
            candidate_rewards=rewards,
            candidate_log_weights=log_weights if only_tempered(logits_processor) else None,
            completions=[completions[row] for row in taken],
            completion_ids=[rows[row] for row in taken],
            candidate_completions=self._grouped(completions),
            candidate_completion_ids=self._grouped(rows),
        )

    def _choose(
        self,
        scores: list[float | None],
        prompts: list[Text],
        completions: list[Text],
        columns: Mapping[str, list[Any]],
        uniform: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The place (B,) of the chosen one among the n candidates of each prompt; and (B, n) the logarithms of what it
        was drawn by, None where it is not drawn.

        Args:
            scores: B * n, of the candidates.
            prompts, completions: B * n, as the reward read them.
            columns: B * n values each.
            uniform: (B,) numbers in [0, 1) for a choice that is drawn.
        """
        groups = self._grouped(scores)
        silent = sum(all(score is None for score in group) for group in groups)
        self.no_say.look(self.reward, silent, len(groups))
        return torch.tensor([_best(group) for group in groups]), None

    def _grouped(self, values: list[Any]) -> list[list[Any]]:
        return [values[first : first + self.n] for first in range(0, len(values), self.n)]

    def _check(self, config: GenerationConfig, model_kwargs: Mapping[str, Any]) -> None:
        if config.num_beams not in (None, 1):
            raise ConfigError(f"best of n samples, and num_beams={config.num_beams} searches; leave num_beams out")
        if self.n == 1:
            return
        if not config.do_sample:
            raise ConfigError(
                f"the {self.n} candidates of a prompt are all the same without sampling; pass do_sample=True "
                "(and a temperature above 0)"
            )
        cache = model_kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            raise ConfigError(
                "best of n reads each prompt from its beginning; leave past_key_values out (it holds "
                f"{cache.get_seq_length()} tokens)"
            )


class _ByCandidate(LogitsProcessorList):
    """Logits processors that know something of each prompt of the batch, such as where its padding ends: they get what
    `generate` made them for, a row for every prompt, once for each of the n candidates."""

    def __init__(self, processors: Iterable[Any], n: int):
        super().__init__(processors)
        self.n = n

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        """(B * n, V) scores of the rows, the n candidates of a prompt one after the other."""
        whole = super().__call__
        made = [whole(input_ids[i :: self.n], scores[i :: self.n], **more) for i in range(self.n)]
        return torch.stack(made, 1).flatten(0, 1)


def _best(scores: list[float | None]) -> int:
    """The place of the highest score, the first of equal ones; None is below every number."""
    return max(range(len(scores)), key=lambda place: float("-inf") if (score := scores[place]) is None else score)
