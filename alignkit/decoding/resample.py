"""Sampling by importance: of n samples of each prompt one is drawn, by weights that a reward gives them.

The more samples, the nearer what comes out is to `q ~ p * D^alpha` itself, which no network has to learn for that.

Sources: Rubin (1987), "The calculation of posterior distributions by data augmentation: comment" (sampling/importance
resampling); for language models Deng, Bakhtin, Ott, Szlam and Ranzato (2020), "Residual energy-based models for text
generation", whose energy is minus the log-odds of a discriminator.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignkit.decoding.best_of_n import BestOfN
from alignkit.decoding.log_scores import ScoredTexts, log_probabilities
from alignkit.decoding.policy_tree import check_number
from alignkit.errors import ConfigError, DataError
from alignkit.reward import call_reward, in_evaluation, reward_name, scalar_score
from alignkit.text import Text

READINGS = ("probability", "odds", "exponential")


class Resample(BestOfN):
    """A `custom_generate` callable: draw n samples of each prompt, return one drawn by the weights `D^alpha`.

        model.generate(**inputs, custom_generate=Resample(reward, tokenizer, n=16), prompts=texts, do_sample=True)

    Best of n always takes the one of highest reward, and with many samples all texts become alike; this keeps the
    variety that the target has. The samples are drawn with the temperature, top-k and top-p of the generation config,
    and p is what these make of the policy. What comes out is distributed as `p * D^alpha`, normalised, but for a bias
    of the order 1 / n: n has to be large where few texts have most of the weight.

    With the best discriminator of data and samples of p, `reward_as="odds"` makes the data's own distribution of it,
    `D / (1 - D) = p_data / p`.

    A candidate on which the reward has no opinion (`None`), or of weight 0, is not drawn; where that is all of them,
    the first is taken.

    Args:
        reward: a reward, a name for `load_reward`, or a mapping with `use`.
        processing_class: the tokenizer of the model that generates.
        n: samples of each prompt.
        reward_as: `probability`: the reward is D, from 0 to 1; `odds`: D / (1 - D) of such a reward takes the place of
            D; `exponential`: the reward is log D, so that any fits. Where a probability rounds to 0 or 1, a reward with
            a method `log_scores` is asked for its logarithm.
        alpha: the power.

    Raises:
        ConfigError: a setting that is out of its range.
    """

    def __init__(
        self,
        reward: Any,
        processing_class: PreTrainedTokenizerBase,
        n: int = 8,
        reward_as: str = "probability",
        alpha: float = 1.0,
    ):
        super().__init__(reward, processing_class, n)
        if reward_as not in READINGS:
            raise ConfigError(f"reward_as is one of {', '.join(READINGS)}; got {reward_as!r}")
        check_number("alpha", alpha)
        self.reward_as, self.alpha = reward_as, float(alpha)

    def log_density_ratios(
        self,
        candidate_log_weights: torch.Tensor | None,
        prompts: list[Text],
        completions: list[Text],
        completion_ids: list[list[int]],
        columns: Mapping[str, list[Any]],
    ) -> list[float]:
        """How much likelier resampling writes a text than the policy at the sampling temperature: log q_n(y) - log p(y)
        of each, in nats; see `log_density_ratio`.

        Args:
            candidate_log_weights: (B, n) of a `BestOfNOutput`: one set of candidates for each text.
            prompts, completions: B of each; any texts, such as people's. The reward is asked about them.
            completion_ids: their tokens, as the policy would have written them.
            columns: further columns for the reward, B values each.

        Raises:
            ConfigError: the candidates have no weights, for they are not the policy's at a temperature alone.
            DataError: another number of texts than of sets of candidates.
            RewardError: see `log_probabilities`.
        """
        if candidate_log_weights is None:
            raise ConfigError(
                "candidate_log_weights is None: more than a temperature lay between the policy and the candidates "
                "(top-k, top-p or a penalty; transformers' default is top_k=50); pass top_k=0 to generate"
            )
        if len(completions) != len(candidate_log_weights):
            raise DataError(
                f"each text needs candidates of its own prompt; got {len(completions)} texts and "
                f"{len(candidate_log_weights)} sets of candidates"
            )
        with in_evaluation([self.reward]):
            found = call_reward(self.reward, prompts, completions, columns=columns, completion_ids=completion_ids)
            own = self._log_weights([scalar_score(score) for score in found], prompts, completions, columns)
        return log_density_ratio(own, candidate_log_weights).tolist()

    def _choose(
        self,
        scores: list[float | None],
        prompts: list[Text],
        completions: list[Text],
        columns: Mapping[str, list[Any]],
        uniform: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw by the weights; see `BestOfN._choose`."""
        drawn_by = self._log_weights(scores, prompts, completions, columns).view(-1, self.n)
        logs = drawn_by.clone()
        nothing = ~logs.isfinite().any(1)
        self.no_say.look(self.reward, int(nothing.sum()), len(logs))
        logs[nothing, 0] = 0.0  # nothing to choose by: the first
        luck = torch.rand(len(logs), dtype=torch.float64) if uniform is None else uniform.double().cpu()
        cumulative = logs.softmax(1).cumsum(1)
        cumulative /= cumulative[:, -1:].clone()
        return (cumulative <= luck[:, None]).sum(1).clamp(max=self.n - 1), drawn_by

    def _log_weights(
        self,
        scores: list[float | None],
        prompts: list[Text],
        completions: list[Text],
        columns: Mapping[str, list[Any]],
    ) -> torch.Tensor:
        """`alpha * log D` of each text in double precision, -inf where it is not to be drawn.

        Raises:
            RewardError: a reward that is no probability, or has no odds, where it is taken for one.
        """
        found = torch.tensor([float("nan") if score is None else score for score in scores], dtype=torch.float64)
        if self.reward_as == "exponential":
            logs = found
        else:
            scored = ScoredTexts(prompts, completions, dict(columns), found[:, None])
            name, one = reward_name(self.reward), torch.ones(1, dtype=torch.float64)
            logs = log_probabilities(scored, [self.reward], [name], one, odds=self.reward_as == "odds")
        return torch.where(logs > -torch.inf, self.alpha * logs, -torch.inf)  # NaN is not above


def log_density_ratio(own: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """log q_n(y) / p(y), where q_n draws one of n samples of p by their weights w:

        q_n(y) / p(y) = E[n w(y) / (w(y) + w(y_2) + ... + w(y_n))],  y_2, ..., y_n drawn from p

    The expectation is the mean over one set of n candidates with each of them left out in turn. That mean errs to no
    side; its logarithm on average lies below that of q_n / p, the more the fewer candidates there are: a perplexity
    computed from it is too high rather than too low. A text that weighs nothing is drawn only in the first place and
    only where the others weigh nothing either. The candidates are samples of p as it is, not of p after top-k or top-p.

    Args:
        own: (B,) log w(y), -inf for no weight.
        candidates: (B, n) log w of candidates that were drawn from p without regard to y.

    Returns:
        (B,) nats, at most log n; -inf where a text of weight 0 met only candidates with weight.

    >>> float(log_density_ratio(torch.tensor([0.0]), torch.zeros(1, 4)).exp())
    1.0
    >>> float(log_density_ratio(torch.tensor([3.0]).log(), torch.tensor([[1.0, 3.0]]).log()).exp())  # 6/6 and 6/4
    1.25
    """
    n = candidates.shape[1]
    ends = candidates.new_full((len(candidates), 1), -torch.inf)
    before = torch.cat([ends, candidates.logcumsumexp(1)[:, :-1]], 1)
    behind = torch.cat([candidates.flip(1).logcumsumexp(1).flip(1)[:, 1:], ends], 1)
    others = torch.logaddexp(before, behind)
    both = torch.logaddexp(own[:, None], others)
    shares = torch.where(both > -torch.inf, own[:, None] - both, -math.log(n))  # nobody weighs anything: the first
    return shares.logsumexp(1)
