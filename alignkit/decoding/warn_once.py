"""Warnings that a decoder gives once: a search asks its reward thousands of times, and one line is enough."""

import logging
from typing import Any

from alignkit.reward import reward_name


class Once:
    """Warns of each thing once, for as long as this object lives.

    Args:
        logger: where the warnings go.
    """

    def __init__(self, logger: logging.Logger):
        self.logger = logger
        self.said: set[Any] = set()

    def warn(self, what: Any, message: str, *values: Any) -> None:
        """Log `message % values`, unless there was a warning of `what` before.

        >>> once = Once(logging.getLogger("alignkit"))
        >>> once.warn("range", "%s is too large", 3), once.warn("range", "%s is too large", 4), len(once.said)
        (None, None, 1)
        """
        if what not in self.said:
            self.said.add(what)
            self.logger.warning(message, *values)


class NoSay:
    """Warns, once, that a reward had no say in what a decoder chose.

    Args:
        decoder: its name, for the message.
        logger: where the warning goes.
    """

    def __init__(self, decoder: str, logger: logging.Logger):
        self.decoder = decoder
        self.once = Once(logger)

    def look(self, reward: Any, without: int, rows: int) -> None:
        """Warn, if there is anything to warn of.

        Args:
            reward: what was asked.
            without: rows of the batch for which it gave no text any weight: 0 where weights are probabilities, or no
                opinion.
            rows: all rows of the batch.
        """
        if without:
            self.once.warn(
                "no say",
                "%s: reward %r gave no weight (0, or no opinion) to any text of %d of %d rows of this batch: there the "
                "policy alone decides",
                self.decoder, reward_name(reward), without, rows,
            )  # fmt: skip
