"""Our trainers as contestants."""

from typing import Any

from clock import Clock
from job import GENERATIONS, KL_COEF, Job, even_share, model, prompts, tokenizer, trainer_settings
from phases import Phases

NAMES = ("alignkit-ppo", "alignkit-ppo-groups", "alignkit-ppo-separate-critic", "alignkit-reinforce")


def build(name: str, job: Job, folder: str, clock: Clock) -> Any:
    """PPO with one or several answers to a prompt, or a critic of its own; or REINFORCE, leave-one-out."""
    from alignkit import PPOConfig, PPOTrainer, ReinforceConfig, ReinforceTrainer

    settings = {**trainer_settings(job, folder), "kl_coef": KL_COEF}
    if name == "alignkit-reinforce":
        trainer, args = ReinforceTrainer, ReinforceConfig(**settings, num_generations=GENERATIONS)
    else:
        answers = GENERATIONS if name == "alignkit-ppo-groups" else 1
        separate = name == "alignkit-ppo-separate-critic"
        trainer, args = PPOTrainer, PPOConfig(**settings, num_generations=answers, separate_critic=separate)
    return trainer(model(job), even_share, args, prompts(job), processing_class=tokenizer(job), callbacks=[clock])


def watch(trainer: Any, phases: Phases) -> None:
    """Seams: sampling, rewards, scoring, the head, and what an update logs."""
    from alignkit.models import scoring
    from alignkit.trainers import extra_text, on_policy

    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    phases.wrap_update(trainer)
    phases.wrap(trainer, "_complete", "sampling")
    phases.wrap(trainer, "score", "old_scores")
    phases.wrap(on_policy, "call_rewards", "reward")
    phases.wrap(trainer, "update", "head_loss")
    phases.wrap(on_policy, "score_completions", "old_scores")
    phases.wrap(extra_text, "score_completions", "old_scores", with_gradient="forward")
    phases.watch_trunk(lambda result, args: args[0], scoring, "chunked_log_probs", "head_loss")
    for name in ("watch", "watch_values", "global_mean"):
        if hasattr(trainer, name):
            phases.wrap(trainer, name, "rest")
