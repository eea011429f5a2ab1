"""Discriminative adversarial search: a beam search that ranks by the policy and by a reward of the text so far.

Source: Scialom, Dray, Lamprier, Piwowarski and Staiano (2020), "Discriminative adversarial search for abstractive
summarization", equation 3.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from alignkit.compose import as_reward
from alignkit.decoding.beams import BeamReading
from alignkit.decoding.policy_tree import check_number, check_whole, search_of
from alignkit.decoding.prefix_scores import TextScorer
from alignkit.decoding.prompts import decode_completions
from alignkit.decoding.warn_once import NoSay
from alignkit.errors import ConfigError
from alignkit.reward import in_evaluation
from alignkit.text import Text, is_conversational

READINGS = ("probability", "exponential")
logger = logging.getLogger(__name__)


@dataclass
class DASOutput(ModelOutput):
    """What `generate` gives for B prompts with `return_dict_in_generate=True`.

    Attributes:
        sequences: (B, L) as `generate` returns them without it.
        rewards: (B,) the reward of each completion; NaN where it had no opinion.
        scores: (B,) what the search ranked it by: log p + alpha * log D; None where it sampled.
        log_probs: (B, T) log-probability of each token under the policy as such (temperature 1, no truncation).
        log_density: (B,) log-density of the completion where the search samples; None where it does not.
        completions: B completions in the form in which the reward read them.
        completion_ids: their token ids, end-of-sequence token included and padding left out.
    """

    sequences: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    log_density: torch.Tensor | None = None
    completions: list[Text] | None = None
    completion_ids: list[list[int]] | None = None


class DAS:
    """A `custom_generate` callable: beams whose next tokens are ranked by `log p(text) + alpha * log D(text)`.

        model.generate(**inputs, custom_generate=DAS(reward, tokenizer, beams=3), prompts=texts, max_new_tokens=32)

    At each step the `candidates` likeliest tokens of each beam, by what the processors of `generate` leave, are ranked,
    and the `beams` best texts go on. A text that has ended keeps its place as long as it is among them; the search ends
    when all are such, or at the greatest length. Of equals the likelier token of the earlier beam comes first. `alpha`
    0 is a plain beam search without a length penalty.

    Args:
        reward: a reward, a name for `load_reward`, or a mapping with `use`. A `PrefixReward` reads each token once; any
            other is called on the text of the beginnings. Texts on which it has no opinion come after all others, the
            likeliest first.
        processing_class: the tokenizer of the model that generates.
        beams: texts that are followed, of each prompt.
        candidates: tokens of each that the reward is asked about.
        alpha: weight of the reward.
        reward_as: `probability`: the reward is D, in [0, 1]; `exponential`: the reward is log D, so that any fits.
        sample: draw each token from the candidates by p * D^alpha, renormalised, instead of following beams.
        policy_share: share of the policy in what is drawn; above 0 every completion that the policy as such can write
            has a density.

    Raises:
        ConfigError: a setting that is out of its range, beams or a share that do not go with `sample`.
    """

    def __init__(
        self,
        reward: Any,
        processing_class: PreTrainedTokenizerBase,
        beams: int | None = None,
        candidates: int = 10,
        alpha: float = 1.0,
        reward_as: str = "probability",
        sample: bool = False,
        policy_share: float = 0.0,
    ):
        if sample and beams not in (None, 1):
            raise ConfigError(f"sample=True draws one token after the other; leave beams={beams} out")
        if policy_share and not sample:
            raise ConfigError(f"policy_share={policy_share} is a share in what is drawn; set sample=True (--sample)")
        beams = beams if beams is not None else (1 if sample else 3)
        check_whole("beams", beams)
        check_whole("candidates", candidates)
        check_number("alpha", alpha)
        check_number("policy_share", policy_share, 0.0, 1.0)
        if reward_as not in READINGS:
            raise ConfigError(f"reward_as is one of {', '.join(READINGS)}; got {reward_as!r}")
        self.reward = as_reward(reward)
        self.processing_class = processing_class
        self.beams, self.candidates, self.alpha, self.reward_as = beams, candidates, float(alpha), reward_as
        self.samples, self.policy_share = bool(sample), float(policy_share)
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
        inputs_tensor: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> torch.Tensor | DASOutput:
        """What `generate` calls; the first three of these are for its caller, the rest is the host's.

        Args:
            prompts: B prompts as the reward shall read them; by default the text of the prompts' tokens.
            columns: further columns of the data for the reward, B values each.
            uniform: (B, T, 3) numbers in [0, 1) to draw by instead of the random state's.
            model, input_ids, logits_processor, stopping_criteria, generation_config: see transformers' `generate`.
            inputs_tensor: (B, P) the prompts' token ids.
            model_kwargs: inputs of the model's forward.

        Returns:
            (B, L) prompt and completion, or of an encoder-decoder the decoder's tokens, padded on the right; a
            `DASOutput` with `return_dict_in_generate=True`.

        Raises:
            ConfigError, DataError: see `alignkit.decoding.policy_tree.search_of`.
            RewardValueError: a reward below 0 or above 1 that was to be read as a probability.
        """
        search = search_of(
            "DAS", self.processing_class, model, input_ids, logits_processor, stopping_criteria, generation_config,
            prompts, columns, inputs_tensor, model_kwargs,
        )  # fmt: skip
        if uniform is None and self.samples:
            uniform = torch.rand((len(input_ids), search.length, 3), dtype=torch.float64)
        uniform = uniform if self.samples else None
        with in_evaluation([self.reward]):
            reading = BeamReading(self, search)
            best = reading.beams() if uniform is None else reading.drawn(uniform.double().cpu().numpy())
            if self.alpha:
                self.no_say.look(self.reward, len(best) - len(reading.weighed), len(best))
            ids = [text.ids for text in best]
            sequences = search.padded(ids)
            if not generation_config.return_dict_in_generate:
                return sequences
            scorer = TextScorer(
                self.reward, search.prompts, self.processing_class, search.columns, search.behind is not None
            )
            rewards = scorer.scores(range(len(search.prompts)), ids)
        log_probs = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.float64)
        for row, text in enumerate(best):
            log_probs[row, : len(text.ids)] = torch.tensor(text.log_probs, dtype=torch.float64)
        density = torch.tensor([text.log_density for text in best], dtype=torch.float64, device=input_ids.device)
        return DASOutput(
            sequences=sequences,
            rewards=torch.tensor(rewards),
            scores=None if self.samples else torch.tensor([text.score for text in best], dtype=torch.float64),
            log_probs=log_probs.to(input_ids.device, torch.promote_types(model.dtype, torch.float32)),
            log_density=density if self.samples else None,
            completions=decode_completions(
                self.processing_class, ids, is_conversational(search.prompts[0]), search.behind
            ),
            completion_ids=ids,
        )
