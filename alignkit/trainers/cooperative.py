"""Cooperative training: maximum likelihood on samples of q, which is the policy times what a reward says of a text."""

from typing import Any

import torch

from alignkit.advantages import leave_one_out, masked_sum, moments, whiten
from alignkit.compose import WeightedProduct, WeightedSum
from alignkit.decoding.log_scores import log_probabilities
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError
from alignkit.importance import (
    best_of_group,
    clip_log_weights,
    effective_sample_size,
    log_mean_exp,
    log_weights,
    self_normalised,
    spread,
)
from alignkit.models.scoring import Scores, score_completions
from alignkit.reward import learned_rewards
from alignkit.trainers.cooperative_config import CooperativeConfig
from alignkit.trainers.on_policy import OnPolicyTrainer
from alignkit.trainers.pieces import in_pieces
from alignkit.trainers.proposals import make_proposal
from alignkit.trainers.rollout import Batch, Rollout


class CooperativeTrainer(OnPolicyTrainer):
    """The on-policy base with weighted maximum likelihood on a proposal's completions, whose weights bring them to
    q(y) = p(y) D(y) / Z (generative cooperative networks, Lamprier et al. 2022).

    p is the policy at the beginning of the outer step: its log-probabilities are those seen while sampling. D is the
    reward, of any kind; learned ones are updated first, on samples of p. Settings give GAN, RML-GAN, GCN, ColdGAN and
    SelfGAN, see `CooperativeConfig`.
    """

    _tag_names = ["alignkit", "cooperative"]  # noqa: RUF012
    _name = "Cooperative"
    config_class = CooperativeConfig
    rewards_learn_at_step_end = False

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: CooperativeConfig | None = None, *rest: Any, **named: Any
    ):
        own = named.get("decoder")
        if isinstance(args, CooperativeConfig):
            _check_decoder(own, args)
        super().__init__(model, reward_funcs, args, *rest, **named)
        if self.args.reward_as != "exponential" and bool((self.reward_weights < 0).any()):
            raise ConfigError(
                f"reward_weights={self.reward_weights.tolist()}: a weight is the power of a probability here and "
                "cannot be negative; turn the reward round, or set reward_as='exponential'"
            )
        if own is None:
            self.decoder = self._proposal()
        elif self.args.weighting in ("importance", "reward") and not getattr(self.decoder, "has_full_support", True):
            raise ConfigError(
                f"weighting={self.args.weighting!r}: {type(getattr(own, 'search', own)).__name__} never draws some "
                "texts that the policy writes, and no weight brings them back; give it a policy_share above 0, or set "
                "weighting='uniform' or 'best' with proposal='own'"
            )
        check = getattr(self.decoder, "check", None)
        if check is not None:
            check(self.accelerator.unwrap_model(self.model), self._sampling_config, self.num_generations)
        self._policy = SamplingDecoder()

    def _proposal(self) -> Any:
        """The proposal; a guided one asks for what the weights ask for, of several rewards their product or sum."""
        settings = dict(self.args.proposal_settings or {})
        weighted = [(r, w) for r, w in zip(self.rewards, self.reward_weights.tolist(), strict=True) if w]
        # all of weight 0: the target is the policy, whatever they say
        rewards, weights = zip(*weighted, strict=True) if weighted else (self.rewards, [0.0] * len(self.rewards))
        reward = rewards[0]
        if list(weights) != [1.0]:
            combined = WeightedSum if self.args.reward_as == "exponential" else WeightedProduct
            reward = combined(rewards, weights)
        if self.args.reward_as == "exponential" and self.args.proposal == "das":
            settings = {"reward_as": "exponential", "alpha": 1 / self.args.reward_temperature, **settings}
        return make_proposal(self.args.proposal, settings, reward, self.processing_class)

    # ---- 1. the learned rewards see what the policy writes ----------------------------------------------------------

    def sample(self, examples: list[dict[str, Any]]) -> Rollout:
        """Teach the learned rewards on samples of the policy, then take completions from the proposal."""
        learned = learned_rewards(self.rewards)
        if learned and self.args.discriminator_samples:
            mine = self._rows_for_rewards(examples)
            # a process that completes nothing would leave the others waiting where weights are sharded
            self._teach(self.completed(mine or examples[:1], self._policy), len(mine))
        rollout = super().sample(examples)
        if learned and not self.args.discriminator_samples:
            self._teach(rollout, len(rollout.prompts))
        return rollout

    def _rows_for_rewards(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`discriminator_samples` rows of each prompt, of those that are this process's share."""
        first = self.accelerator.process_index * len(examples)
        places = [(first + i) % self.num_generations for i in range(len(examples))]
        return [e for e, place in zip(examples, places, strict=True) if place < self.args.discriminator_samples]

    def _teach(self, rollout: Rollout, count: int) -> None:
        """Teach the learned rewards the first `count` completions."""
        prompts, own = rollout.prompts[:count], rollout.columns.get(self.args.reference_column)
        references = self.drawn_references(prompts, own[:count] if own else [None] * count)
        with self.phase("reward"):
            for reward in learned_rewards(self.rewards):
                reward.remember(prompts, rollout.completions[:count], references)
            seed = self.args.seed + self.state.global_step
            self.reward_states.update_now(seed, self.args.discriminator_updates)

    def score(self, rollout: Rollout) -> Rollout:
        """As the base; what the proposal wrote is not the policy's, and teaches no reward."""
        rollout = super().score(rollout)
        for reward in learned_rewards(self.rewards):
            reward.pending()
        return rollout

    # ---- 2. weights -------------------------------------------------------------------------------------------------

    def shape(self, rollout: Rollout) -> Batch:
        """Add (B,) `weights`: what each completion's negative log-likelihood is multiplied with, as its share of the
        mean over the prompts of an optimiser step. `advantages` shows them in the completions table."""
        batch = super().shape(rollout)
        made = rollout.made
        if made.log_density is None and self.args.weighting in ("importance", "reward"):
            raise ConfigError(
                f"weighting={self.args.weighting!r} needs the density of each completion, and "
                f"{type(self.decoder).__name__} gives none (log_density); let it give one, take another proposal, or "
                "weighting='best' or 'uniform' (with proposal='own')"
            )
        log_probs = masked_sum(made.log_probs, made.completion_mask, dim=1)
        scores = rollout.scores if self.args.weighting == "reward" else self.log_scores(rollout)
        weights, own = self._weights(rollout, log_probs, scores)
        known = self.accelerator.gather(~scores.isnan()).view(-1, self.num_generations).any(1)
        # of a pass over the rollout, an optimiser step sees this share of the prompts, or of each prompt's rows
        steps = self.args.steps_per_generation // self.args.gradient_accumulation_steps
        factor = self.accelerator.num_processes * steps / known.sum().clamp(min=1)
        batch["weights"] = weights * factor
        if own is not None and self.args.steps_of_a_rollout > 1:
            batch |= {"own_weights": own * factor, **self._next_tokens(rollout)}
        batch["advantages"] = (weights[:, None] * batch["learn_mask"]).to(made.log_probs.dtype)
        if self.args.rl_weight < 1:
            batch.update(self.references(rollout, batch))
        return batch

    @torch.no_grad()
    def _next_tokens(self, rollout: Rollout) -> Batch:
        """(B, T, K) the likeliest tokens in each place under the policy that sampled, and their probabilities."""
        made, size = rollout.made, self.args.per_device_train_batch_size
        whole = (made.prompt_ids, made.prompt_mask, made.completion_ids, made.completion_mask)
        self.model.eval()  # as it was while sampling
        with self.phase("reference"), self.accelerator.autocast():
            found = [
                score_completions(
                    self.model, *(t[start : start + size] for t in whole), entropy=False,
                    top=self.args.control_variate_tokens,
                )
                for start in range(0, len(whole[0]), size)
            ]  # fmt: skip
        self.model.train()
        log_probs = torch.cat([part["top_log_probs"] for part in found])
        return {"next_ids": torch.cat([part["top_ids"] for part in found]), "next_probs": log_probs.exp()}

    def _weights(
        self, rollout: Rollout, log_probs: torch.Tensor, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B,) the weight of each of this process's completions; those of a prompt may lie in several processes. With a
        control variate what it took off is the second, also (B,). `scores` are logarithms, but for weighting 'reward'.
        """
        size, gather = self.num_generations, self.accelerator.gather
        log_density = rollout.made.log_density if rollout.made.log_density is not None else log_probs
        if self.args.weighting == "reward":
            everyone = gather(log_weights(log_probs, torch.zeros_like(scores), log_density))
            scores = gather(scores)
            everyone = torch.where(scores.isnan(), torch.nan, everyone)
            return self._mine(self._shares(everyone) * self._advantages(scores)), None
        log_scores = scores
        if self.args.weighting == "best":
            return self._mine(best_of_group(gather(log_probs.to(log_scores.dtype) + log_scores), size)), None
        if self.args.weighting == "uniform":
            return self._mine(self_normalised(gather(torch.where(log_scores.isnan(), torch.nan, 0.0)), size)), None
        everyone = gather(log_weights(log_probs, log_scores, log_density))
        known = log_mean_exp(everyone, size)
        known = known[known.isfinite()]
        if len(known):
            self._metrics["train"]["weights/log_z"].append(float(known.mean()))
        shares = self._shares(everyone)
        taken = None
        if self.args.control_variate:
            unscored = torch.where(log_scores.isnan(), torch.nan, 0.0)
            own, _ = self._normalised(gather(log_weights(log_probs, unscored, log_density)))
            weighted = shares.view(-1, size).any(1, keepdim=True).expand(-1, size).reshape(-1)
            own = own * weighted  # a prompt without weights stays without
            shares, taken = shares - own, self._mine(own)
        return self._mine(shares), taken

    def _normalised(self, everyone: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) log-weights tempered, clipped and normalised over each prompt's completions; (B,) which were clipped."""
        tempered = everyone / self.args.weight_temperature
        held, clipped = clip_log_weights(tempered, self.num_generations, self.args.weight_clip)
        return self_normalised(held, self.num_generations), clipped

    def _shares(self, everyone: torch.Tensor) -> torch.Tensor:
        """The normalised weights (B,); logs how much they say."""
        size = self.num_generations
        shares, clipped = self._normalised(everyone)
        log = self._metrics["train"]
        effective = effective_sample_size(shares, size)
        if bool((effective > 0).any()):
            log["ess"].append(float(effective[effective > 0].mean()))
            log["ess/share"].append(log["ess"][-1] / size)
            log["weights/max"].append(float(shares.view(-1, size).amax(1)[effective > 0].mean()))
        spreads = spread(everyone, size)
        if not bool(spreads.isnan().all()):
            log["log_weights/spread"].append(float(spreads.nanmean()))
        if self.args.weight_clip is not None:
            log["log_weights/clipped_share"].append(float(clipped.float().mean()))
        return shares

    def _advantages(self, scores: torch.Tensor) -> torch.Tensor:
        """(B,) the scores of all processes less the baseline; 0 where there is no score."""
        if self.args.baseline == "leave_one_out":
            scores = scores - leave_one_out(scores, self.num_generations)
        elif self.args.baseline == "batch_mean":
            scores = scores - scores.nanmean()
        if self.args.whiten_advantages:
            known = ~scores.isnan()
            scores = whiten(scores, known, moments(scores, known), shift_mean=False)
        return scores.nan_to_num(0.0)

    def _mine(self, everyone: torch.Tensor) -> torch.Tensor:
        rows = len(everyone) // self.accelerator.num_processes
        return everyone[self.accelerator.process_index * rows :][:rows]

    def log_scores(self, rollout: Rollout) -> torch.Tensor:
        """(B,) log D of each completion (or its log-odds), up to a constant of its prompt; NaN where a reward that had
        an opinion on another completion of the prompt had none on this one, or no reward had any.

        Raises:
            RewardError: a score that is no probability, where it is taken for one.
        """
        if self.args.reward_as == "exponential":
            found = rollout.scores / self.args.reward_temperature
        else:
            odds = self.args.reward_as == "odds"
            found = log_probabilities(rollout, self.rewards, self.reward_func_names, self.reward_weights, odds)
        weighed = (self.reward_weights != 0).to(rollout.rewards.device)
        if not bool(weighed.any()):
            return found
        unknown = self.accelerator.gather(rollout.rewards.isnan())[:, weighed]
        unknown = unknown.view(-1, self.num_generations, unknown.shape[1])
        lacking = (unknown & ~unknown.all(1, keepdim=True)).any(2) | unknown.all(2)
        return torch.where(self._mine(lacking.flatten()), torch.nan, found)

    # ---- 3. the likelihood ------------------------------------------------------------------------------------------

    @in_pieces
    def update(self, model: Any, batch: Batch) -> torch.Tensor:
        """`sum w_i NLL_i`, and with `rl_weight` below 1 the likelihood of a reference beside it."""
        scores, extra = self.joint_scores(model, batch, at=batch.get("next_ids"))
        self.watch(batch, scores)
        loss = -(batch["weights"] * masked_sum(scores["log_probs"], batch["learn_mask"], dim=1)).sum()
        seen = self.accelerator.gather(loss.detach() * self.args.gradient_accumulation_steps).mean().item()
        self._metrics["train"]["weighted_nll"].append(seen)
        if "next_ids" in batch:
            expected = masked_sum(_cross_entropy(scores, batch), batch["learn_mask"], dim=1)
            loss = loss + (batch["own_weights"] * expected).sum()
        return loss if extra is None else self.blended(loss, extra, batch)


def _check_decoder(own: Any, args: CooperativeConfig) -> None:
    """A decoder of the user's beside what the config says of proposals."""
    if own is None:
        if args.proposal == "own":
            raise ConfigError("proposal='own' is a decoder of your own; pass it as decoder=")
        return
    if args.num_generations == 1 and args.weighting == "reward" and args.proposal == "policy":
        raise ConfigError(
            "a decoder was given with num_generations=1 and weighting='reward': the one completion of a prompt has the "
            "weight 1 whatever its density; set num_generations to 2 or more, or leave the decoder out"
        )
    if args.proposal not in ("policy", "own") or args.proposal_settings:
        raise ConfigError(
            f"a decoder was given and proposal={args.proposal!r}: both would draw completions; leave one out"
        )


def _cross_entropy(scores: Scores, batch: Batch) -> torch.Tensor:
    """(B, T) what the policy that sampled expects of the negative log-likelihood of its next token.

    Exact over the likeliest tokens; for the others the sampled one stands, so that the expectation is right whatever K.
    """
    sampled_elsewhere = (batch["next_ids"] != batch["completion_ids"][..., None]).all(-1)
    known = (batch["next_probs"] * scores["at"]).sum(-1)
    return -known - torch.where(sampled_elsewhere, scores["log_probs"], 0.0)
