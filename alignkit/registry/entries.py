"""The rewards that installed distributions register under the entry-point group `alignkit.rewards`."""

import importlib.metadata
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.errors import RewardCollisionError, RewardLoadError
from alignkit.registry.soundness import Survey

GROUP = "alignkit.rewards"


@dataclass(frozen=True)
class RewardEntry:
    """One registered reward.

    Attributes:
        name: what `load_reward` takes.
        target: `module:object`, where the code is.
        distribution, version: what was installed to provide it.
        error: why it cannot be used, in words; None when nothing is known against it.
        summary: the first line of its docstring, where its source shows it.
    """

    name: str
    target: str
    distribution: str
    version: str
    error: str | None = None
    summary: str | None = None
    collides_with: tuple[str, ...] = ()
    entry_point: importlib.metadata.EntryPoint | None = field(default=None, repr=False, compare=False)

    def load(self) -> Any:
        """Imports the object that is registered: a class, a function or a ready reward.

        Raises:
            RewardCollisionError: another distribution registers the same name.
            RewardLoadError: the import fails; the original is the `__cause__`.
        """
        if self.collides_with:
            raise RewardCollisionError(
                f"two distributions register a reward '{self.name}': {_both(self)}. Uninstall one, or name the object: "
                f"'{self.target}'"
            )
        assert self.entry_point is not None
        try:
            return self.entry_point.load()
        except Exception as error:
            raise RewardLoadError(
                f"reward '{self.name}' ({self.target}, from {self.distribution} {self.version}) cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error


def _both(entry: RewardEntry) -> str:
    return " and ".join(sorted([f"{entry.distribution} {entry.version}", *entry.collides_with]))


def available_rewards(*, load: bool = False) -> list[RewardEntry]:
    """Every registered reward, sorted by name, the broken ones with their error.

    Args:
        load: import every reward to find those that fail. Without it only what can be found out quickly is: modules
            and names that do not exist, imports that nothing satisfies, code that does not compile, and whatever a
            module raises that needs no heavy library.
    """
    points = [point for point in importlib.metadata.entry_points(group=GROUP) if point.dist is not None]
    offers: dict[str, list[importlib.metadata.EntryPoint]] = defaultdict(list)
    for point in points:
        offers[point.name].append(point)
    survey = Survey()
    entries = []
    for point in points:
        others = tuple(f"{p.dist.name} {p.dist.version}" for p in offers[point.name] if p is not point and p.dist)
        entry = RewardEntry(
            name=point.name,
            target=point.value,
            distribution=point.dist.name if point.dist else "",
            version=point.dist.version if point.dist else "",
            collides_with=others,
            entry_point=point,
        )
        entries.append(_examined(entry, survey, load))
    return sorted(entries, key=lambda entry: (entry.name, entry.distribution))


def _examined(entry: RewardEntry, survey: Survey, load: bool) -> RewardEntry:
    error: str | None = None
    if entry.collides_with:
        error = f"registered twice: {_both(entry)}"
    elif load:
        try:
            entry.load()
        except RewardLoadError as problem:
            error = f"{type(problem.__cause__).__name__}: {problem.__cause__}"
    else:
        error = survey.fault(entry.target)
    summary = None if error else survey.summary(entry.target)
    return replace(entry, error=error, summary=summary or None)
