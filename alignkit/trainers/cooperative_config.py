"""Settings of the cooperative trainer, and the combinations that cannot learn anything."""

from dataclasses import dataclass, field
from typing import Any

from alignkit.settings import did_you_mean
from alignkit.trainers.on_policy_config import OnPolicyConfig, Range
from alignkit.trainers.proposals import PROPOSALS

WEIGHTINGS = ("importance", "uniform", "best", "reward")
BASELINES = ("batch_mean", "leave_one_out", "none")
REWARD_AS = ("probability", "odds", "exponential")
# The policy is p at temperature 1, whole: how completions are drawn stands in `proposal_settings`.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1, 1.0),
    "top_p": (1, 1.0, None),
    "top_k": (0, None),
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (1, 1.0, None),
}
_NO_PLACE = {
    "kl_coef": (0, "the target q is p * D; a KL to the reference belongs to ReinforceTrainer and PPOTrainer"),
    "kl_target": (None, "there is no KL penalty whose coefficient could adapt"),
    "gamma": (1, "a completion has one weight, and nothing to discount"),
    "whiten_rewards": (False, "scores are probabilities or log-weights here; use weight_temperature"),
    "entropy_coef": (0, "the target is q; to keep it wide use weight_temperature or reward_temperature"),
    "use_vllm": (False, "completions come from a proposal, whose density must be known; leave it out"),
}


@dataclass
class CooperativeConfig(OnPolicyConfig):
    """Settings of `CooperativeTrainer`.

    One outer step: the learned rewards are updated on samples of the policy, `num_generations` completions of each
    prompt are drawn from the proposal and weighted, and the policy learns from them for `num_iterations` passes. The
    policy that is weighted against stays that of the step's beginning.

    Args:
        proposal: what draws completions: `policy`, `mixture` (of the policy and its nucleus, see `MixtureDecoder`),
            `mcts` or `das` (searches guided by the reward, which sample), `exact` (all completions of a small space,
            see `EnumerationDecoder`) or `own` (the trainer's `decoder`, which knows the reward).
        proposal_settings: of the proposal, such as `{policy_share: 0.1, top_p: 0.8}`.
        weighting: `importance` (log p + log D - log q^, normalised over a prompt's completions: GCN), `uniform` (plain
            likelihood of what a guided proposal found), `best` (likelihood of the one completion that q likes most:
            SelfGAN) or `reward` (policy gradient with the reward less a baseline, weighted by p / q^ where the proposal
            is not the policy: GAN, ColdGAN).
        weight_clip: nats above the mean weight of the prompt at which a log-weight is cut; None cuts nothing.
        weight_temperature: divides the log-weights before that; above 1 evens them out.
        reward_as: what a score is to the target: `probability` (q = p * D, scores from 0 to 1), `odds`
            (q = p * D / (1 - D), which is the data's density itself where D is the best discriminator) or
            `exponential` (q = p * exp(score / reward_temperature), any score).
        reward_temperature: beta of `exponential`, in units of the reward.
        control_variate: subtract from the weights of `importance` those that the completions would have without a
            score (p / q^, normalised alike). This removes the part of the sampling noise that does not depend on the
            score: with equal scores nothing moves. Where a rollout serves several optimiser steps, what is subtracted
            is added again as its expectation, so that the policy is held where the target says nothing.
        control_variate_tokens: likeliest next tokens of each place over which that expectation is summed; for the
            others the sampled token stands. Each takes 12 bytes a token of the rollout.
        baseline: of `weighting="reward"`: `batch_mean`, `leave_one_out` or `none`.
        discriminator_samples: completions of each prompt that the policy writes for the learned rewards to learn from;
            0 takes those of the proposal, which must be the policy then (a `decoder` of yours is taken at its word).
        discriminator_updates: how often a learned reward learns from them: once by `update`, then by `update_again`.
        min_effective_share: the health check speaks when the effective sample size stays below this share of
            `num_generations`.
    """

    num_generations: int | None = field(default=8, metadata={"help": "Completions sampled for each prompt."})
    kl_coef: float = field(default=0.0, metadata={"help": "Must be 0: the target is p * D."})
    whiten_advantages: bool = field(default=False, metadata={"help": "Scale the policy gradient's advantages."})
    proposal: str = field(default="policy", metadata={"help": f"What draws completions: {', '.join(PROPOSALS)}."})
    proposal_settings: dict[str, Any] | str | None = field(default=None, metadata={"help": "Settings of the proposal."})
    weighting: str = field(default="importance", metadata={"help": f"One of {', '.join(WEIGHTINGS)}."})
    weight_clip: float | None = field(default=None, metadata={"help": "Nats above the mean weight."})
    weight_temperature: float = field(default=1.0, metadata={"help": "Divides the log-weights."})
    reward_as: str = field(default="probability", metadata={"help": f"One of {', '.join(REWARD_AS)}."})
    reward_temperature: float = field(default=1.0, metadata={"help": "Beta of exponential scores."})
    control_variate: bool = field(default=False, metadata={"help": "Subtract the policy's own weights."})
    control_variate_tokens: int = field(default=64, metadata={"help": "Next tokens that it sums over."})
    baseline: str = field(default="batch_mean", metadata={"help": "Of weighting=reward."})
    discriminator_samples: int = field(default=1, metadata={"help": "Completions a prompt for learned rewards."})
    discriminator_updates: int = field(default=1, metadata={"help": "Updates of learned rewards in an outer step."})
    min_effective_share: float = field(default=0.1, metadata={"help": "Effective sample size to be warned below."})

    # as transformers reads a dict on a command line
    _VALID_DICT_FIELDS = [*OnPolicyConfig._VALID_DICT_FIELDS, "proposal_settings"]  # noqa: RUF012
    _ranges = {  # noqa: RUF012  (a table for all, no setting)
        **OnPolicyConfig._ranges,
        "weight_clip": Range(above=True, optional=True, advice="None cuts nothing"),
        "weight_temperature": Range(above=True, advice="1 leaves the weights as they are"),
        "reward_temperature": Range(above=True, advice="smaller follows the reward more closely"),
        "discriminator_samples": Range(whole=True, advice="0 takes the proposal's"),
        "discriminator_updates": Range(low=1, whole=True),
        "control_variate_tokens": Range(low=1, whole=True),
        "min_effective_share": Range(high=1, advice="0 never speaks"),
    }

    def _contradictions(self) -> list[str]:
        problems = super()._contradictions()
        for name, known in (("weighting", WEIGHTINGS), ("reward_as", REWARD_AS), ("baseline", BASELINES)):
            if getattr(self, name) not in known:
                problems.append(f"{name}={getattr(self, name)!r}; expected one of {', '.join(known)}")
        for name, (neutral, why) in _NO_PLACE.items():
            if getattr(self, name) != neutral:
                problems.append(f"{name}={getattr(self, name)!r} has no place here: {why}")
        if self.whiten_advantages and self.weighting != "reward":
            problems.append("whiten_advantages=True: only weighting='reward' has advantages")
        problems += self._without_effect() + self._sampling()
        if self.proposal not in PROPOSALS:
            hint = did_you_mean(self.proposal, PROPOSALS, 99)
            return [*problems, f"there is no proposal {self.proposal!r}{hint}"]
        settings = self.proposal_settings or {}
        if not isinstance(settings, dict):
            return [*problems, f"proposal_settings={settings!r}; expected a mapping of settings, or None"]
        weighted = self.weighting in ("importance", "reward")
        problems += PROPOSALS[self.proposal].problems(self.proposal, settings, needs_density=weighted)
        return problems + self._nothing_to_learn()

    @property
    def steps_of_a_rollout(self) -> int:
        """Optimiser steps that are taken on one rollout."""
        return self.num_iterations * max((self.steps_per_generation or 0) // self.gradient_accumulation_steps, 1)

    def _without_effect(self) -> list[str]:
        """Settings that the others leave nothing to do for."""
        weighted = self.weighting in ("importance", "reward")
        idle = (
            ("reward_temperature", 1.0, self.reward_as == "exponential", "divides scores with reward_as='exponential'"),
            ("baseline", "batch_mean", self.weighting == "reward", "belongs to weighting='reward'"),
            ("weight_clip", None, weighted, "belongs to weighting='importance' and 'reward'"),
            ("weight_temperature", 1.0, weighted, "belongs to weighting='importance' and 'reward'"),
        )
        return [
            f"{name}={getattr(self, name)!r} {why}, and would do nothing with weighting={self.weighting!r} and "
            f"reward_as={self.reward_as!r}; leave it out"
            for name, neutral, used, why in idle
            if not used and getattr(self, name) != neutral
        ]

    def _sampling(self) -> list[str]:
        given = {**{name: getattr(self, name) for name in _NEUTRAL}, **(self.generation_kwargs or {})}
        truncating = {"typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"} & set(given)
        return [
            f"{name}={value!r} would change what is drawn and leave the policy as it is; say how the proposal draws in "
            "proposal_settings (proposal: mixture, proposal_settings: {policy_share: 0.1, top_p: 0.8})"
            for name, value in given.items()
            if (name in _NEUTRAL and value not in _NEUTRAL[name]) or name in truncating
        ]

    def _nothing_to_learn(self) -> list[str]:
        """Combinations whose gradient is zero in expectation, or does not know the reward."""
        problems = []
        # what a decoder of the user's knows of the reward cannot be told
        guided = PROPOSALS[self.proposal].guided or self.proposal == "own"
        if self.num_generations == 1 and not guided and self.weighting in ("importance", "best"):
            problems.append(
                f"num_generations=1 with weighting={self.weighting!r}: the one completion of a prompt has the weight 1 "
                "whatever its score, so there is nothing to learn in expectation; set num_generations to 2 or more"
            )
        if self.num_generations == 1 and guided and self.weighting == "importance":
            problems.append(
                "num_generations=1 with weighting='importance': the one completion of a prompt has the weight 1 "
                "whatever its density; set num_generations to 2 or more, or weighting to 'uniform'"
            )
        if (
            self.num_generations == 1
            and self.weighting == "reward"
            and (self.proposal_settings or self.proposal != "policy")
        ):
            problems.append(
                f"num_generations=1 with weighting='reward' and proposal={self.proposal!r}: the weights p / q^ are "
                "normalised over a prompt's completions, and the one completion would have the weight 1 whatever its "
                "density; set num_generations to 2 or more, or let the policy draw (proposal='policy')"
            )
        if self.num_generations == 1 and self.weighting == "reward" and self.baseline == "leave_one_out":
            problems.append(
                "baseline='leave_one_out' compares the completions of a prompt; num_generations=1 leaves none to "
                "compare with: set num_generations to 2 or more, or baseline to batch_mean"
            )
        if self.weighting == "uniform" and not guided:
            problems.append(
                f"weighting='uniform' with proposal={self.proposal!r}: these completions know nothing of the reward, "
                "and neither would their weights; set weighting to 'importance', or (with a decoder of your own) "
                "proposal to 'own'"
            )
        if self.reward_as == "odds" and self.weighting in ("uniform", "reward"):
            problems.append(
                f"reward_as='odds' with weighting={self.weighting!r}: there are no log-weights for the odds to be in; "
                "set weighting to 'importance' or 'best', or leave reward_as out"
            )
        several = self.steps_of_a_rollout > 1
        if self.weighting == "reward" and several:
            problems.append(
                f"num_iterations={self.num_iterations} and steps_per_generation={self.steps_per_generation} with "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: several optimiser steps a rollout, "
                "but the gradient of weighting='reward' holds only for the policy that sampled; make it one, or set "
                "weighting to 'importance', whose target stays where it is"
            )
        if self.control_variate and self.weighting != "importance":
            problems.append(
                f"control_variate=True: weighting={self.weighting!r} has no importance weights to subtract from"
            )
        if self.control_variate and several and self.rl_weight < 1:
            problems.append(
                f"control_variate=True with several optimiser steps a rollout and rl_weight={self.rl_weight}: "
                "references are not scored along; set rl_weight to 1, take one step a rollout, or leave it out"
            )
        if self.num_generations and self.discriminator_samples > self.num_generations:
            problems.append(
                f"discriminator_samples={self.discriminator_samples} is more than "
                f"num_generations={self.num_generations}; a step has that many rows for a prompt"
            )
        if self.discriminator_samples == 0 and (self.proposal != "policy" or self.proposal_settings):
            problems.append(
                f"discriminator_samples=0 takes what the proposal {self.proposal!r} drew for samples of the policy, "
                "which they are not; set it to 1 or more"
            )
        return problems
