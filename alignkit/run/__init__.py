"""From a recipe to a finished run: evaluate, train, evaluate again, and leave a folder that tells it all.

The order is that of the errors' cost: the recipe, the rewards, the data and their columns are checked before a model
is loaded, and nothing but the folder's lock is written before everything is built.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from accelerate import PartialState
from transformers import set_seed

from alignkit.recipe import Recipe, RecipeError
from alignkit.recipe.checks import trusting
from alignkit.run.environment import check_processes, quiet_hosts
from alignkit.run.folder import RunFolder
from alignkit.run.ingredients import Ingredients, gather, try_rewards
from alignkit.run.models import check_models_here, check_starting_models
from alignkit.run_lock import only_run_in

__all__ = ["Job", "SamplingJob", "build_job", "run_recipe"]

# The monitors that say something of every model.
_SUPERVISED = ("finite", "weights")


class Job(Protocol):
    """What one family of trainers does with a recipe: it builds `trainer` and knows how to judge it."""

    trainer: Any

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures on held-out data, and rows that show them; the same whenever it is called on the same weights."""
        ...


@runtime_checkable
class SamplingJob(Job, Protocol):
    """A job whose model writes text."""

    def sample_at(self, temperature: float) -> None:
        """From now on `evaluate` completes prompts at this temperature."""
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
        resume: continue from the newest whole checkpoint of the run's folder, which is named; from the beginning
            where there is none yet.
        overwrite: delete an earlier run in that folder, its checkpoints included. Without it a finished run is moved
            aside, and one with checkpoints is an error.

    Returns:
        the run's folder.

    Raises:
        AlignkitError: whatever is wrong with recipe, rewards, data or model, or another run is at work in the folder,
            before training; in training, what cannot be written.
        KeyboardInterrupt: stopped by Ctrl-C, after a checkpoint if training had begun.
        SystemExit: stopped by SIGTERM, after a checkpoint, with exit code 143.
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

    with only_run_in(recipe.output_dir, "training.output_dir"):
        return _train(recipe, config, allow_code=allow_code, resume=resume, overwrite=overwrite)


def _train(recipe: Recipe, config: Any, *, allow_code: bool, resume: bool, overwrite: bool) -> Path:
    from alignkit.progress import attach
    from alignkit.run.stopping import end_stopped, say_how_to_continue, telling_of_a_full_disk

    main = PartialState().is_main_process
    # 1. The folder, rewards, data and metrics: every mistake in them shows before a model is loaded
    folder = RunFolder.open(recipe.output_dir, resume=resume, overwrite=overwrite, main=main)
    folder.check_continues(recipe)
    check_starting_models(recipe)
    check_models_here(recipe)
    found = gather(recipe, allow_code)
    if recipe.kind.family == "on_policy":
        try_rewards(recipe, config, found)
    # 2. The model and its trainer
    set_seed(config.seed)
    job = build_job(recipe, config, found, callbacks_for(recipe, folder))
    attach(job.trainer)
    # 3. Held-out figures before, training, held-out figures after, and what stays of it
    with telling_of_a_full_disk(folder), say_how_to_continue(folder):
        folder.begin()
        folder.write_recipe(recipe, found.rewards)
        folder.write_environment(recipe, found.rewards, found.data, job.trainer.model)
        stopped_by = carry_out(recipe, job, folder)
    PartialState().wait_for_everyone()
    if stopped_by is not None:
        end_stopped(stopped_by, folder)
    return folder.path


def carry_out(recipe: Recipe, job: Job, folder: RunFolder) -> int | None:
    """Evaluates, trains, evaluates again, and leaves model, results, report and model card in the folder.

    Returns:
        the signal that stopped training after a checkpoint; nothing more is done then.
    """
    from alignkit.evaluation import write_results
    from alignkit.report import write_report
    from alignkit.run.card import write_card
    from alignkit.run.ending import print_ending
    from alignkit.trainers.interruption import StopOnSignal

    before, rows_before = job.evaluate()
    if folder.checkpoint is None:  # a run that is continued has them already, and step 0 of metrics.jsonl too
        folder.add_samples("before", 0, rows_before)
    job.trainer.train(resume_from_checkpoint=str(folder.checkpoint) if folder.checkpoint else None)
    stops = [c.signal for c in job.trainer.callback_handler.callbacks if isinstance(c, StopOnSignal) and c.signal]
    if stops:
        return stops[0]
    if hasattr(job, "finish"):
        job.finish()
    after, rows_after = job.evaluate()
    folder.add_samples("after", job.trainer.state.global_step, rows_after)
    folder.save_model(job.trainer.save_model, PartialState().wait_for_everyone)
    if folder.main:
        more = {"real_text": job.real_text(rows_after)} if hasattr(job, "real_text") else {}
        if hasattr(job, "reliability"):
            more["reliability"] = job.reliability
        write_results(folder.path, before, after, before_rows=rows_before, after_rows=rows_after, **more)
        report = write_report(folder.path)
        model = job.trainer.accelerator.unwrap_model(job.trainer.model)
        write_card(folder.path, recipe, model, job.trainer.processing_class)
        print_ending(before, after, rows_before, rows_after, folder.path, report)
    return None


def callbacks_for(recipe: Recipe, folder: RunFolder) -> list[Any]:
    """What watches a run: its files, the live view, the monitors (`evaluation.health`), what stops it on a signal."""
    from alignkit.diagnostics import CHECKS
    from alignkit.progress import ProgressCallback, RunFilesCallback
    from alignkit.trainers.health import HealthCallback
    from alignkit.trainers.interruption import StopOnSignal

    # where nothing is sampled and no reward is earned, the monitors of a policy have nothing to watch
    policy = recipe.kind.family == "on_policy"
    actions = {} if policy else {name: "off" for name in CHECKS if name not in _SUPERVISED}
    health = HealthCallback(folder.path, actions={**actions, **recipe.evaluation.get("health", {})})
    return [RunFilesCallback(folder.path, from_step=folder.start_step), ProgressCallback(), health, StopOnSignal()]


def build_job(recipe: Recipe, config: Any, found: Ingredients, callbacks: list[Any]) -> Job:
    """The job of a recipe's trainer, its model loaded."""
    if config.device.type == "cpu":
        from alignkit.models.faster import keep_freed_memory

        keep_freed_memory()
    if recipe.kind.family == "classifier":
        from alignkit.run.classifier import ClassifierJob

        return ClassifierJob(recipe, config, found.data, callbacks)
    if recipe.kind.family == "seq2seq":
        from alignkit.run.seq2seq import Seq2SeqJob

        return Seq2SeqJob(recipe, config, found, callbacks)
    if recipe.kind.family == "sft":
        from alignkit.run.language_model import LanguageModelJob

        return LanguageModelJob(recipe, config, found, callbacks)
    from alignkit.run.on_policy import OnPolicyJob

    return OnPolicyJob(recipe, config, found, callbacks)
