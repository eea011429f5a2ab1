"""What watches a run: the live view, the run's files, the monitors."""

from typing import Any

from alignkit.diagnostics import CHECKS
from alignkit.progress import ProgressCallback, RunFilesCallback
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers.health import HealthCallback

# What can go wrong where nothing is sampled and no reward is earned; the other monitors are about a policy.
_SUPERVISED = ("finite", "weights")


def callbacks_for(recipe: Recipe, folder: RunFolder) -> list[Any]:
    """The callbacks of a run; `evaluation.health` says what the monitors do about what they find."""
    actions = {} if recipe.kind.family == "on_policy" else {name: "off" for name in CHECKS if name not in _SUPERVISED}
    health = HealthCallback(folder.path, actions={**actions, **recipe.evaluation.get("health", {})})
    return [RunFilesCallback(folder.path, from_step=folder.start_step), ProgressCallback(), health]
