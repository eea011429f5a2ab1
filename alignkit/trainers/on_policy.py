"""The one on-policy base: sample, score, shape, update, on TRL's `GRPOTrainer`.

What this class owns is shared by every method: completions from a decoder, log-probabilities with positions, rewards
through the contract, the KL to the reference, logging, evaluation on held-out prompts. A method overrides `shape` (what
an advantage is) and `update` (the loss); `sample` and `score` are there to be overridden too.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp

from alignkit.advantages import KLController, kl_estimate, masked_sum, moments, token_rewards, whiten
from alignkit.decoding.choosing import as_decoder
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import behind, decode_completions, encode_prompts, pad_left, pad_right
from alignkit.decoding.sampling import Completions, Decoder, SamplingDecoder
from alignkit.errors import ConfigError
from alignkit.losses import approximate_kl
from alignkit.models.faster import keep_freed_memory
from alignkit.models.reference import reference_of
from alignkit.models.scoring import Scores, score_completions
from alignkit.reward import learned_rewards, stateful_rewards, unique_names
from alignkit.text import Text, is_conversational
from alignkit.trainers.checkpoints import CheckpointsMixin
from alignkit.trainers.evaluation import EvaluationMixin, sampling_settings
from alignkit.trainers.extra_text import ExtraTextMixin
from alignkit.trainers.learned_callback import RewardStateCallback
from alignkit.trainers.model_card import ModelCardMixin
from alignkit.trainers.on_policy_config import OnPolicyConfig
from alignkit.trainers.pieces import PiecesMixin
from alignkit.trainers.preparation import check_inputs, prepare_policy, with_saved_heads
from alignkit.trainers.rollout import Batch, Rollout, split
from alignkit.trainers.rollout_log import check_log_probs, log_advantages, log_rollout
from alignkit.trainers.scoring_rewards import call_rewards
from alignkit.trainers.trl_ppo import KnownArguments
from alignkit.trainers.weights import WeightProbe


class OnPolicyTrainer(
    PiecesMixin, ExtraTextMixin, EvaluationMixin, CheckpointsMixin, ModelCardMixin, KnownArguments, GRPOTrainer
):
    """TRL's `GRPOTrainer` with its inside laid open in four steps: `sample`, `score`, `shape`, `update`.

    Takes TRL's arguments, and these:

    Args:
        reward_funcs: rewards, names for `load_reward`, or sequence-classification modules.
        reward_processing_classes: tokenizers of rewards that are modules, one for each reward; found by name when None.
        metrics: name -> `evaluate.Metric`, computed on held-out completions at every evaluation.
        ref_model: the reference of the KL; by default a frozen copy of the model, or the model without its adapter.
        decoder: what samples completions in training; plain sampling by default.
        eval_decoder: what completes held-out prompts, such as a `SearchDecoder`; plain sampling by default.
    """

    _tag_names = ["alignkit", "on-policy"]  # noqa: RUF012  (TRL's name and type)
    _name = "alignkit on-policy"
    _paper: dict[str, str] = {}  # noqa: RUF012
    config_class: type[OnPolicyConfig] = OnPolicyConfig
    granularities: tuple[str, ...] = ("completion",)
    uses_values = False
    rewards_learn_at_step_end = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: OnPolicyConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        reward_processing_classes: Any = None,
        metrics: dict[str, Any] | None = None,
        ref_model: PreTrainedModel | None = None,
        decoder: Decoder | None = None,
        eval_decoder: Decoder | None = None,
    ):
        args = args or self.config_class(output_dir=f"{str(getattr(model, 'name_or_path', model)).split('/')[-1]}-run")
        rewards = check_inputs(self, reward_funcs, args, train_dataset, eval_dataset, reward_processing_classes)
        if decoder is not None and args.use_vllm:
            raise ConfigError("a decoder was given and use_vllm=True: both would sample; leave one of them out")
        set_seed(args.seed)
        policy = prepare_policy(self, model, args, processing_class, quantization_config, peft_config, ref_model)
        model_init_kwargs, args.model_init_kwargs = args.model_init_kwargs, None
        super().__init__(
            model=policy.model,
            reward_funcs=list(rewards),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=policy.processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=with_saved_heads(policy.model, peft_config),
        )
        args.model_init_kwargs = model_init_kwargs
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        policy.restore_precision()
        self.reward_func_names = unique_names(rewards)
        self.metrics = dict(metrics or {})
        own = as_decoder(decoder, "decoder")
        self.decoder = own or SamplingDecoder(with_values=self.uses_values and not policy.separate_critic)
        self.eval_decoder = as_decoder(eval_decoder, "eval_decoder")
        self.ref_model = self._prepare_reference(policy.reference)
        self.kl_controller = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self._sampling_config = generation_config_for(
            policy.model,
            policy.processing_class,
            **sampling_settings(args),
        )
        self._phases: dict[str, float] = defaultdict(float)
        self._since_sampling = 0
        self._stop_rollout = False
        self._vllm_log_probs: list[list[float]] | None = None
        self._probe = WeightProbe(self.model)
        for reward in learned_rewards(rewards):
            reward.reference_column = args.reference_column
        self.reward_states = RewardStateCallback(rewards, at_step_end=self.rewards_learn_at_step_end)
        if stateful_rewards(rewards):
            self.add_callback(self.reward_states)

    @property
    def rewards(self) -> list[Any]:
        """The reward objects, in the order of their weights."""
        return self.reward_funcs

    def _prepare_reference(self, reference: PreTrainedModel | None) -> Any:
        if reference is None:
            return None
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    # ---- the four steps -------------------------------------------------------------------------------------------

    def sample(self, examples: list[dict[str, Any]]) -> Rollout:
        """Complete the prompts of `examples` (rows of the data, a prompt repeated `num_generations` times)."""
        return self.completed(examples, self.decoder)

    def completed(self, examples: list[dict[str, Any]], decoder: Decoder) -> Rollout:
        """What a decoder makes of the prompts of `examples`, as text and as tokens."""
        prompts = [example["prompt"] for example in examples]
        columns = {key: [e[key] for e in examples] for key in examples[0] if key not in ("prompt", "completion")}
        with self.phase("sample"):
            made = self._complete(prompts, columns, decoder)
        completions = decode_completions(
            self.processing_class, made.ids(), is_conversational(prompts[0]), behind(self.model, prompts)
        )
        return Rollout(prompts, completions, columns, made)

    def score(self, rollout: Rollout) -> Rollout:
        """Fill in the rewards, and what the reference (and a separate critic) thinks of the completions."""
        with self.phase("reward"):
            extras = {"log_extra": self._log_completion_extra, "log_metric": self._log_metric}
            exact = next(self.model.parameters()).dtype == torch.float64  # such a policy's scores are not rounded
            extras["dtype"] = torch.float64 if exact else torch.float32
            call_rewards(rollout, self.rewards, self.reward_func_names, self.reward_weights, self.state, **extras)
            self.renew_remembered()
        with self.phase("reference"), torch.no_grad(), self.accelerator.autocast():
            made = rollout.made
            batch = (made.prompt_ids, made.prompt_mask, made.completion_ids, made.completion_mask)
            training = self.model.training
            self.model.eval()  # as it was while sampling: with dropout it is another policy each time
            if made.log_probs is None:
                seen = self._scored(self.model_wrapped, batch, "full" if self.uses_values else "none")
                made.log_probs, made.values = seen["log_probs"], seen["values"]
            elif self.uses_values and made.values is None:
                made.values = self._scored(self.model_wrapped, batch, "only")["values"]
            self.model.train(training)
            with reference_of(self.model_wrapped, self.ref_model) as reference:
                rollout.ref_log_probs = self._scored(reference, batch, "none")["log_probs"]
        return rollout

    def shape(self, rollout: Rollout) -> Batch:
        """From scores to what the loss needs: (B, ...) tensors, per-token rewards among them."""
        made = rollout.made
        rewards = token_rewards(
            torch.nan_to_num(rollout.scores, nan=0.0),
            made.completion_mask,
            self.penalty(rollout),
            self.kl_controller.coef,
            rollout.dense,
        )
        if self.args.whiten_rewards:
            seen = self.accelerator.reduce(moments(rewards, rollout.learn_mask))
            rewards = whiten(rewards, rollout.learn_mask, seen, shift_mean=False)
        return {
            "prompt_ids": made.prompt_ids,
            "prompt_mask": made.prompt_mask,
            "completion_ids": made.completion_ids,
            "completion_mask": made.completion_mask,
            "learn_mask": rollout.learn_mask,
            "old_log_probs": made.log_probs,
            "rewards": rewards,
        }

    def update(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of one micro-batch, or of a piece of it: a sum (see `mean_over_tokens`); a method must say which."""
        raise NotImplementedError(f"{type(self).__name__} must override update(model, batch)")

    # ---- what they are made of ------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds spent inside as `phase/<name>`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] += time.perf_counter() - started

    def _complete(self, prompts: list[Text], columns: dict[str, list[Any]], decoder: Decoder) -> Completions:
        device = self.accelerator.device
        prompt_ids = encode_prompts(self.processing_class, prompts, self.chat_template_kwargs)
        if self.use_vllm:
            ids, log_probs = self._generate_single_turn(prompt_ids, None, {}, self.num_generations)
            padded, completions = pad_left(prompt_ids, self._pad_id, device), pad_right(ids, self._pad_id, device)
            # vLLM's log-probabilities come from other kernels: kept for the check, scored again for the ratio
            self._vllm_log_probs = log_probs
            return Completions(*padded, *completions)
        ids, mask = pad_left(prompt_ids, self._pad_id, device)
        with self.model_for_sampling() as model, self.accelerator.autocast():
            made = decoder(model, ids, mask, self._sampling_config, prompts=prompts, columns=columns)
        if not isinstance(made, Completions):
            said = "expected alignkit.decoding.sampling.Completions"
            raise ConfigError(f"the decoder {type(decoder).__name__} gave {type(made).__name__}; {said}")
        return made

    @property
    def _pad_id(self) -> int:
        return self.processing_class.pad_token_id

    def _scored(self, model: Any, batch: tuple[torch.Tensor, ...], values: str) -> dict[str, Any]:
        """`score_completions` a micro-batch at a time, without gradient."""
        size = self.args.per_device_train_batch_size
        parts: list[dict[str, Any]] = [
            score_completions(  # type: ignore[misc]
                model,
                *(t[start : start + size] for t in batch),
                temperature=self.temperature,
                values=values,
                entropy=False,
            )
            for start in range(0, len(batch[0]), size)
        ]
        return {
            key: torch.cat([part[key] for part in parts]) if parts[0].get(key) is not None else None
            for key in ("log_probs", "entropy", "values")
        }

    def penalty(self, rollout: Rollout) -> torch.Tensor:
        """(B, T) per-token KL that is taken off the reward, by the estimator of the config."""
        estimate = kl_estimate(rollout.made.log_probs, rollout.ref_log_probs, self.args.kl_estimator)
        return estimate * rollout.made.completion_mask

    def mean_over_tokens(self, per_token: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Sum over this micro-batch's learnable tokens, as its share of the mean over the whole optimiser step."""
        return masked_sum(per_token, batch["learn_mask"]) / batch["token_share"]

    # ---- how Trainer calls the steps --------------------------------------------------------------------------------

    def rollout(self, examples: list[dict[str, Any]]) -> list[Batch]:
        """Sample, score, shape, and cut into the micro-batches of `steps_per_generation` calls of `update`."""
        rollout = self.score(self.sample(examples))
        check_log_probs(rollout, self._vllm_log_probs)
        kl = log_rollout(self, rollout)
        batch = self.shape(rollout)
        log_advantages(self, batch)
        self.kl_controller.update(kl, self.args.generation_batch_size)
        return split(batch, self.args.steps_per_generation, self.args.gradient_accumulation_steps, self.accelerator)

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> Batch:
        wanted = self.args.steps_per_generation * self.num_iterations
        at_boundary = self._since_sampling % self.args.gradient_accumulation_steps == 0
        if self._buffered_inputs is None or self._since_sampling >= wanted or (self._stop_rollout and at_boundary):
            self._buffered_inputs = self.rollout(generation_batch)
            self._since_sampling, self._stop_rollout = 0, False
        batch = self._buffered_inputs[self._since_sampling % self.args.steps_per_generation]
        self._since_sampling += 1
        return self.with_extra_text(batch)

    @property
    def weights_unmoved(self) -> bool:
        """Whether the weights are still those that sampled the current rollout."""
        return self._since_sampling <= self.args.gradient_accumulation_steps

    def _send_telemetry(self) -> None:
        """TRL reports each trainer that starts; ours reports nothing."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        started, before = time.perf_counter(), sum(self._phases.values())
        loss = super().training_step(model, inputs, num_items_in_batch)
        inside = sum(self._phases.values()) - before
        self._phases["update"] += time.perf_counter() - started - inside
        if self._step % self.current_gradient_accumulation_steps == 0:
            for name in ("sample", "reward", "reference", "update"):
                self._metrics["train"][f"phase/{name}"].append(self._phases.pop(name, 0.0))
        return loss

    def watch(self, batch: Batch, scores: Scores) -> None:
        """Log what every method wants to know of an update: entropy, and whether scoring agrees with sampling."""
        mask = batch["learn_mask"]
        log = self._metrics["train"]
        log["entropy"].append(self.global_mean(scores["entropy"], mask))
        drift = approximate_kl(scores["log_probs"].detach(), batch["old_log_probs"])
        drift_mean = self.global_mean(drift, mask)
        if self.weights_unmoved:
            gap = torch.where(mask.bool(), (scores["log_probs"] - batch["old_log_probs"]).abs().detach(), 0.0)
            log["sampling/logp_difference_mean"].append(self.global_mean(gap, mask))
            log["sampling/logp_difference_max"].append(self.accelerator.gather(gap.max()).max().item())
        else:
            log["approx_kl"].append(drift_mean)

    def after_update(self) -> None:
        """Decide, from what `watch` logged of a micro-batch, whether the rollout is used up before its time."""
        limit, drift = self.args.target_kl_stop, self._metrics["train"].get("approx_kl")
        if limit is not None and drift and not self.weights_unmoved:
            self._stop_rollout = self._stop_rollout or drift[-1] > limit

    def global_mean(self, values: torch.Tensor, mask: torch.Tensor) -> float:
        """Mean over the masked positions of all processes."""
        local = torch.stack([masked_sum(values.detach().float(), mask), mask.sum().float()])
        total, count = self.accelerator.reduce(local, reduction="sum").tolist()
        return total / max(count, 1.0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and "loss" in logs:
            logs["weights/delta"] = self._probe.delta()
            logs["kl_coef"] = self.kl_controller.coef
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, RewardStateCallback):
                    logs.update(callback.last)
        super().log(logs, start_time)
