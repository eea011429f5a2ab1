"""`alignkit evaluate`: a model judged as a run would judge it, without training."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from alignkit.console import standard_output
from alignkit.decoding.choosing import greedy_problem
from alignkit.errors import AlignkitError, ConfigError
from alignkit.evaluation import finite
from alignkit.models.adapters import holds_adapter
from alignkit.models.locating import RUN_RECIPE, is_run, resolve_model
from alignkit.progress import ProgressCallback, attach
from alignkit.recipe import Recipe, load_recipe
from alignkit.recipe.evaluation_checks import OWN_COMPLETION_KEYS
from alignkit.run import SamplingJob, build_job
from alignkit.run.ending import figure
from alignkit.run.environment import check_processes, command_line, describe_environment, quiet_hosts
from alignkit.run.ingredients import gather
from alignkit.run.models import loading_options
from alignkit.run.saved_rewards import restore_states, with_origins, with_saved_networks
from alignkit.text import completion_text, excerpt
from alignkit.whole_files import prepare_output, write_text

_TRAINING_ROWS = 64  # that a trainer is built with, which trains on none of them
_OF_A_ROLLOUT = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")


def _rows_needed(recipe: Recipe) -> int:
    """Training rows without which a trainer is not built: those of a rollout, where each prompt is asked once."""
    given = {name: int(recipe.training.get(name) or 1) for name in _OF_A_ROLLOUT}
    return max(_TRAINING_ROWS, math.prod(given.values()))


def _say_if_all_alike(recipe: Recipe, rows: list[dict[str, Any]]) -> None:
    """A search that takes the best token writes one text for equal prompts, and its figures are those of one text."""
    texts = {completion_text(row["completion"]) for row in rows}
    if len(rows) > 1 and len(texts) == 1 and recipe.evaluation.get("decoder"):
        print(
            f"all {len(rows)} completions are one text, {excerpt(texts.pop())!r}: where prompts are alike, let the "
            "search draw (visit_temperature: 1 of mcts, sample: true of das)"
        )


def evaluate_run(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    evaluation: str | Path | None = None,
    output: str | Path | None = None,
    temperatures: Sequence[float] = (),
    allow_code: bool = True,
) -> dict[str, float]:
    """Prints the held-out figures of a model, by a recipe's data, rewards and metrics.

    Rewards that learn are asked as they were when the run ended; those of a recipe, as it starts with them.

    The reference of the KL stays the model that the recipe starts from. One that starts from random weights has none:
    they are not kept, so there is no KL, and it is said so.

    Args:
        run: a run's folder (its own model is judged) or a recipe (the model that it starts from is judged).
        overrides: for the recipe.
        model: judge this model, or that of this run, instead.
        evaluation: judge by the `evaluation` of this run or recipe, so that systems with recipes of their own are
            measured alike; the length of completions and the batch stay those of `run`.
        output: JSON file for `figures`, `rows`, `recipe` and `environment`; `compare_runs` reads it.
        temperatures: also sample at each of these, and print the figures side by side; the file then has them under
            `temperatures`. Everything else of the file is at the recipe's own temperature.
        allow_code: False refuses what runs code, as `load_recipe` does.

    Returns:
        the figures.

    Raises:
        AlignkitError: `run` is neither, or whatever is wrong with its recipe, data or model.
    """
    quiet_hosts()
    check_processes()
    prepare_output(output, "--output")
    recipe, own = _recipe_of(Path(run), overrides, allow_code, evaluation)
    _check_temperatures(recipe, temperatures)
    recipe = with_saved_networks(recipe, Path(run))
    judged = _with_model(recipe, model or own)
    found = gather(judged, allow_code)
    restore_states(found.rewards, recipe, Path(run))
    sizes = {split: {"rows": len(part)} for split, part in found.data.items()}
    if (
        "name" in judged.model
    ):  # nothing is trained: a few rows are enough, and encoding them all takes longer than judging
        found.data["train"] = found.data["train"].select(range(min(_rows_needed(judged), len(found.data["train"]))))
    job = build_job(judged, judged.config(), found, [ProgressCallback()])
    attach(job.trainer)
    figures, rows = job.evaluate()
    _say_if_all_alike(judged, rows)
    sweep: list[dict[str, Any]] = []
    for temperature in temperatures:
        assert isinstance(job, SamplingJob)  # `_check_temperatures` saw to it
        job.sample_at(temperature)
        sweep.append({"temperature": temperature, "figures": job.evaluate()[0]})
    if "kl" in figures and judged is not recipe and "reference" not in judged.model:
        # what was measured is the distance of the model to itself
        for measured in (figures, *(one["figures"] for one in sweep)):
            del measured["kl"]
        rows = [{**row, "kl": None} for row in rows]
        print("no KL: the recipe starts from random weights (model.scratch), which no run keeps; set model.reference")
    table = Table(title=f"Held-out data: {judged.model.get('name', 'model from scratch')}", title_justify="left")
    table.add_column("figure")
    shown: list[dict[str, Any]] = sweep or [{"temperature": None, "figures": figures}]
    for one in shown:
        table.add_column(f"at {one['temperature']:g}" if sweep else "value", justify="right")
    for key in figures:
        table.add_row(key, *(figure(one["figures"][key]) for one in shown))
    standard_output().print(table)
    if output is not None:
        content: dict[str, Any] = {
            "figures": figures,
            **({"temperatures": sweep} if sweep else {}),
            "rows": [{k: v for k, v in r.items() if k != "columns"} for r in rows],
            "recipe": with_origins(judged.to_dict(), Path(run)),
            "environment": {
                **describe_environment(),
                "seed": judged.training["seed"],
                "command": command_line(),
                "data": sizes,
            },
        }
        write_text(output, json.dumps(finite(content), indent=2, ensure_ascii=False, default=str) + "\n")
        print(f"written to {output}")
    return figures


def _recipe_of(
    run: Path, overrides: Sequence[str], allow_code: bool, evaluation: str | Path | None
) -> tuple[Recipe, str | None]:
    """The recipe, and the model of the run's folder if it is one."""
    judging = []
    if evaluation is not None:
        own = load_recipe(_recipe_file(run), allow_code=allow_code).evaluation
        other = load_recipe(_recipe_file(Path(evaluation)), allow_code=allow_code).evaluation
        # what a run completes, and how far, stays its own: not every trainer has these settings
        kept = {key: own[key] for key in OWN_COMPLETION_KEYS if key in own}
        taken = {key: value for key, value in other.items() if key not in OWN_COMPLETION_KEYS}
        # before the overrides, which so may still change it
        judging = [f"evaluation={json.dumps({**taken, **kept})}"]
    found = load_recipe(_recipe_file(run), [*judging, *overrides], allow_code=allow_code)
    return found, str(run) if run.is_dir() else None


def _recipe_file(run: Path) -> Path:
    if not run.is_dir():
        return run
    if not is_run(run):
        raise AlignkitError(
            f"{run} is no run's folder: it has no recipe.yaml. Give the folder of a run, or a recipe with --model"
        )
    return run / RUN_RECIPE


def _check_temperatures(recipe: Recipe, temperatures: Sequence[float]) -> None:
    if temperatures and recipe.kind.family == "classifier":
        raise ConfigError("--temperatures: a classifier writes no text; give a run whose model does")
    found = [problem for one in temperatures if (problem := greedy_problem(recipe.evaluation.get("decoder"), one))]
    if found:
        raise ConfigError(f"--temperatures: {found[0]}")
    wrong = [one for one in temperatures if not 0 <= one < math.inf]
    if wrong or len(set(temperatures)) < len(temperatures):
        raise ConfigError(
            "--temperatures: expected different numbers from 0 (greedy) on, got "
            f"{' '.join(f'{one:g}' for one in temperatures)}"
        )


def _with_model(recipe: Recipe, model: str | None) -> Recipe:
    if model is None:
        return recipe
    judged = copy.deepcopy(recipe)
    # the revision is one of the model that the recipe names
    judged.model = {key: value for key, value in recipe.model.items() if key not in ("name", "scratch", "revision")}
    judged.model["name"] = model
    if "name" in recipe.model and recipe.kind.family == "on_policy":
        judged.model.setdefault("reference", {"name": recipe.model["name"], **loading_options(recipe)})
    # the model is judged as it was saved, without a new adapter on top; quantised weights have to have one, and a new
    # one changes nothing
    if judged.quantization is None or holds_adapter(resolve_model(model)):
        judged.adapter = None
    return judged
