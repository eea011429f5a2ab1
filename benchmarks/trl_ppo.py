"""TRL 1.12's PPO as a contestant, the last that TRL had: a critic with a trunk of its own."""

import os
from types import SimpleNamespace
from typing import Any

import torch
from clock import Clock
from datasets import Dataset
from job import END_OF_SEQUENCE, KL_COEF, LEARNING_RATE, SEED, Job, model, prompts, saved_model, tokenizer
from phases import Phases
from transformers import GPT2ForSequenceClassification

NAMES = ("trl112-ppo",)


class EvenShareModule(torch.nn.Module):
    """The job's reward in the shape that this trainer wants: a module whose "hidden states" its `score` reads.

    State t is the share of even ids among the tokens up to t; the trainer takes the last token's.
    """

    base_model_prefix = "counter"

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Identity()

    def counter(self, input_ids: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        """(B, L) ids -> hidden states (B, L, 1)."""
        seen = torch.arange(1, input_ids.shape[1] + 1)
        return SimpleNamespace(hidden_states=[((input_ids % 2 == 0).cumsum(1) / seen)[..., None]])


def build(name: str, job: Job, folder: str, clock: Clock) -> Any:
    """PPO with three models: policy, reference, critic.

    Raises:
        SystemExit: bf16 was asked for and the environment does not ask accelerate for it: `bf16=True` alone trains this
            trainer in fp32.
    """
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    if job.precision == "bf16" and os.environ.get("ACCELERATE_MIXED_PRECISION") != "bf16":
        raise SystemExit("bf16 here needs ACCELERATE_MIXED_PRECISION=bf16 in the environment")
    encode = tokenizer(job)
    rows = Dataset.from_list([{"input_ids": encode(row["prompt"])["input_ids"]} for row in prompts(job)])
    args = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=job.epochs,
        total_episodes=job.batch * (job.steps + job.warmup),
        response_length=job.new_tokens,
        local_rollout_forward_batch_size=job.batch,
        num_sample_generations=0,
        temperature=1.0,
        kl_coef=KL_COEF,
        learning_rate=LEARNING_RATE,
        use_cpu=True,
        bf16=job.precision == "bf16",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=SEED,
    )
    policy = model(job)
    policy.generation_config.suppress_tokens = [END_OF_SEQUENCE]  # every answer has its full length
    critic = GPT2ForSequenceClassification.from_pretrained(saved_model(job), num_labels=1, dtype=torch.float32)
    trainer = PPOTrainer(
        args=args,
        processing_class=encode,
        model=policy,
        ref_model=model(job),
        reward_model=EvenShareModule(),
        train_dataset=rows,
        value_model=critic,
        callbacks=[clock],
    )
    wanted = "bf16" if job.precision == "bf16" else "no"
    if trainer.accelerator.mixed_precision != wanted:
        raise SystemExit(f"accelerate runs in {trainer.accelerator.mixed_precision!r}; {wanted!r} was to be measured")
    return trainer


def watch(trainer: Any, phases: Phases) -> None:
    """Seams: functions that the trainer's module imports, and the two trunks."""
    import trl.experimental.ppo.ppo_trainer as its_module

    phases.wrap_update(trainer)
    phases.wrap(its_module, "batch_generation", "sampling")
    phases.wrap(its_module, "forward", "old_scores", with_gradient="head_loss")
    phases.wrap(its_module, "selective_log_softmax", "old_scores", with_gradient="head_loss")
    phases.wrap(its_module, "get_reward", "old_scores")
    phases.wrap(trainer.reward_model, "counter", "reward")
    phases.wrap(its_module, "empty_cache", "collection")
    for trunk in (trainer.model.policy.transformer, trainer.model.critic_backbone):
        phases.watch_trunk(lambda result, args: result.last_hidden_state, trunk, "forward", "forward")
