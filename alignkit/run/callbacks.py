"""What watches a run: the live view, the run's files, the monitors."""

from typing import Any

from alignkit.progress import ProgressCallback, RunFilesCallback
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers.health import HealthCallback


def callbacks_for(recipe: Recipe, folder: RunFolder) -> list[Any]:
    """The callbacks of a run; `evaluation.health` says what the monitors do about what they find."""
    health = HealthCallback(folder.path, actions=recipe.evaluation.get("health"))
    return [RunFilesCallback(folder.path), ProgressCallback(), health]
