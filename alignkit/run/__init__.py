"""From a recipe to a finished run: evaluate, train, evaluate again, and leave a folder that tells it all.

The order is that of the errors' cost: the recipe, the rewards, the data and their columns are checked before a model
is loaded, and nothing is written before everything is built.
"""

from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from transformers import set_seed

from alignkit.recipe import Recipe, RecipeError
from alignkit.recipe.checks import trusting
from alignkit.run.environment import check_processes, quiet_hosts
from alignkit.run.folder import RunFolder
from alignkit.run.ingredients import Ingredients, gather, try_rewards
from alignkit.run.models import check_starting_models

__all__ = ["Job", "build_job", "run_recipe"]

# The monitors that say something of every model.
_SUPERVISED = ("finite", "weights")


class Job(Protocol):
    """What one family of trainers does with a recipe: it builds `trainer` and knows how to judge it."""

    trainer: Any

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures on held-out data, and rows that show them; the same whenever it is called on the same weights."""
        ...


def run_recipe(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    allow_code: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Trains what a recipe describes.

    Args:
        recipe: from `load_recipe`.
        dry_run: check everything that can be checked without loading the model, print what was found, and stop.
        allow_code: False refuses what runs code, as `load_recipe` does.
        resume: continue from the newest checkpoint of the run's folder.
        overwrite: delete an earlier run in that folder, its checkpoints included. Without it a finished run is moved
            aside, and one with checkpoints is an error.

    Returns:
        the run's folder.

    Raises:
        AlignkitError: whatever is wrong with recipe, rewards, data or model, before training.
    """
    quiet_hosts()
    check_processes()
    if not allow_code and (problems := trusting(recipe.to_dict())):
        raise RecipeError(problems, recipe.source)
    config = recipe.config()
    if dry_run:
        from alignkit.run.dry import dry_run as check

        check(recipe, config, allow_code)
        return recipe.output_dir

    from alignkit.evaluation import write_results
    from alignkit.progress import attach
    from alignkit.report import write_report
    from alignkit.run.ending import print_ending

    main = PartialState().is_main_process
    # 1. The folder, rewards, data and metrics: every mistake in them shows before a model is loaded
    folder = RunFolder.open(recipe.output_dir, resume=resume, overwrite=overwrite, main=main)
    check_starting_models(recipe)
    found = gather(recipe, allow_code)
    if recipe.kind.family == "on_policy":
        try_rewards(found)
    # 2. The model and its trainer
    set_seed(config.seed)
    job = build_job(recipe, config, found, callbacks_for(recipe, folder))
    attach(job.trainer)
    folder.begin()
    folder.write_recipe(recipe, found.rewards)
    folder.write_environment(recipe, found.rewards, found.data, job.trainer.model)
    # 3. Held-out figures before, training, held-out figures after
    before, rows_before = job.evaluate()
    if folder.checkpoint is None:  # a run that is continued has them already, and step 0 of metrics.jsonl too
        folder.add_samples("before", 0, rows_before)
    try:
        if folder.checkpoint is None or not load_finished(job.trainer, folder.checkpoint):
            job.trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    except KeyboardInterrupt:
        if main and (folder.path / "metrics.jsonl").is_file():
            print(f"interrupted; what there is so far: {write_report(folder.path)}")
        raise
    after, rows_after = job.evaluate()
    folder.add_samples("after", job.trainer.state.global_step, rows_after)
    # 4. What stays
    job.trainer.save_model(str(folder.path / "model"))
    if main:
        more = {"real_text": job.real_text(rows_after)} if hasattr(job, "real_text") else {}
        write_results(folder.path, before, after, before_rows=rows_before, after_rows=rows_after, **more)
        report = write_report(folder.path)
        print_ending(before, after, rows_before, rows_after, folder.path, report)
    PartialState().wait_for_everyone()
    return folder.path


def load_finished(trainer: Any, checkpoint: Path) -> bool:
    """Take a checkpoint for the end of training, if it is: a run may be killed in its last evaluation.

    The host's `train` would add a step to it.

    Returns:
        whether the checkpoint was the last, and is loaded.
    """
    from transformers import TrainerState

    from alignkit.trainers.learned_callback import RewardStateCallback

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < (trainer.args.max_steps if trainer.args.max_steps > 0 else state.max_steps):
        return False
    trainer.state = state
    trainer._load_from_checkpoint(str(checkpoint))
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        trainer._load_best_model()
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, RewardStateCallback):
            callback.restore(checkpoint)
    return True


def callbacks_for(recipe: Recipe, folder: RunFolder) -> list[Any]:
    """What watches a run: its files, the live view, and the monitors, as `evaluation.health` says."""
    from alignkit.diagnostics import CHECKS
    from alignkit.progress import ProgressCallback, RunFilesCallback
    from alignkit.trainers.health import HealthCallback

    # where nothing is sampled and no reward is earned, the monitors of a policy have nothing to watch
    policy = recipe.kind.family == "on_policy"
    actions = {} if policy else {name: "off" for name in CHECKS if name not in _SUPERVISED}
    health = HealthCallback(folder.path, actions={**actions, **recipe.evaluation.get("health", {})})
    return [RunFilesCallback(folder.path, from_step=folder.start_step), ProgressCallback(), health]


def build_job(recipe: Recipe, config: Any, found: Ingredients, callbacks: list[Any]) -> Job:
    """The job of a recipe's trainer, its model loaded."""
    if recipe.kind.family == "classifier":
        from alignkit.run.classifier import ClassifierJob

        return ClassifierJob(recipe, config, found.data, callbacks)
    if recipe.kind.family == "sft":
        from alignkit.run.language_model import LanguageModelJob

        return LanguageModelJob(recipe, config, found, callbacks)
    from alignkit.run.on_policy import OnPolicyJob

    return OnPolicyJob(recipe, config, found, callbacks)
