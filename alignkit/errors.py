"""The errors that alignkit raises on purpose.

Each message says what was given, what was expected and what to do. The command line prints them without a traceback.

    AlignkitError
    ├── RewardError             anything about a reward
    │   ├── RewardNotFoundError     no reward has that name
    │   ├── RewardCollisionError    two installed distributions offer the same name
    │   ├── RewardLoadError         the plugin is there but cannot be imported or built
    │   ├── MissingColumnError      the data lack a column that the reward requires
    │   ├── RewardCallError         the reward raised while scoring
    │   └── RewardValueError        wrong length, not finite, or not a number
    ├── RecipeError             a recipe with mistakes: all of them, in `problems`
    ├── DataError               empty, unreadable or lacking what a trainer needs
    ├── ModelError              a model folder that cannot be used as asked
    ├── ConfigError             settings that contradict each other
    ├── CheckpointError         a checkpoint that is damaged or could not be written
    └── HealthError             a monitor stopped the run
"""


class AlignkitError(Exception):
    """Base class: catch it to catch everything that alignkit raises on purpose."""


class RewardError(AlignkitError):
    """Anything that concerns a reward."""


class RewardNotFoundError(RewardError):
    """No reward has the name that was asked for."""


class RewardCollisionError(RewardError):
    """Two installed distributions register a reward under one name."""


class RewardLoadError(RewardError):
    """A reward was found but could not be imported or constructed."""


class MissingColumnError(RewardError):
    """The data lack a column that a reward requires."""


class RewardCallError(RewardError):
    """A reward raised an exception while it scored; the original is the `__cause__`."""


class RewardValueError(RewardError):
    """A reward returned the wrong number of values, a non-finite value or something that is not a number."""


class RecipeError(AlignkitError):
    """A recipe with mistakes.

    Args:
        problems: every mistake found, one sentence each.
        source: the recipe's file, for the message.
    """

    def __init__(self, problems: list[str], source: str | None = None):
        self.problems = list(problems)
        self.source = source
        where = f"{source}: " if source else ""
        count = len(self.problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{where}{count} problem{'s' if count != 1 else ''} in the recipe\n{lines}")

    def __reduce__(self):
        return type(self), (self.problems, self.source)


class DataError(AlignkitError):
    """Data that are empty, unreadable, or lack what the trainer needs."""


class ModelError(AlignkitError):
    """A model that cannot be used in the way that was asked for."""


class ConfigError(AlignkitError, ValueError):
    """Settings that contradict each other or that a trainer does not know."""


class CheckpointError(AlignkitError):
    """A checkpoint that is damaged, or could not be written; the message names the last whole one."""


class HealthError(AlignkitError):
    """A monitor found the run beyond repair and stopped it."""
