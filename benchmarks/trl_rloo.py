"""TRL 1.16's RLOO as a contestant: no critic, four answers to each prompt."""

from typing import Any

from clock import Clock
from job import GENERATIONS, KL_COEF, Job, even_share, model, prompts, tokenizer, trainer_settings
from phases import Phases

NAMES = ("trl116-rloo",)


def build(name: str, job: Job, folder: str, clock: Clock) -> Any:
    """RLOO; it builds its reference from the folder that the model was read from."""
    from trl import RLOOConfig, RLOOTrainer

    args = RLOOConfig(**trainer_settings(job, folder), num_generations=GENERATIONS, beta=KL_COEF)
    return RLOOTrainer(model(job), even_share, args, prompts(job), processing_class=tokenizer(job), callbacks=[clock])


def watch(trainer: Any, phases: Phases) -> None:
    """Seams: generation, rewards, scoring, the loss around the trunk."""
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
    phases.wrap_update(trainer)
    phases.wrap(trainer, "_generate_single_turn", "sampling")
    phases.wrap(trainer, "_calculate_rewards", "reward")
    phases.wrap(trainer, "_get_per_token_logps_and_entropies", "old_scores", with_gradient="head_loss")
    phases.wrap(trainer, "_compute_loss", "head_loss")
    trunk = trainer.model.transformer
    phases.watch_trunk(lambda result, args: result.last_hidden_state, trunk, "forward", "forward")
