"""What watches a run: the live view, the run's files, the monitors."""

from typing import Any

from alignkit.progress import ProgressCallback, RunFilesCallback
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder


def callbacks_for(recipe: Recipe, folder: RunFolder) -> list[Any]:
    """The callbacks of a run; monitors where a policy learns from rewards."""
    callbacks: list[Any] = [RunFilesCallback(folder.path), ProgressCallback()]
    if recipe.kind.family == "on_policy":
        from alignkit.trainers.health import HealthCallback

        callbacks.append(HealthCallback(folder.path))
    return callbacks
