"""A parser of command lines that says which option a misspelt one may have meant."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from alignkit.settings import did_you_mean


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser`, for a command and its subcommands, with three differences.

    An option that a subcommand does not know ends with the nearest one that it knows; argparse itself tells nothing of
    what may have been meant. Words with a `=` behind an option belong to the positional `overrides`, where the command
    has such; argparse takes a list of words in one piece only. A mistake is told in one line; argparse puts the usage
    in front, a page of it where there are many options.
    """

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """What argparse finds, and the words that are left: none that begins with a dash, and no override."""
        found, rest = super().parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                option = word.split("=")[0]
                known = [name for name in self._option_string_actions if name.startswith("--")]
                self.error(f"unknown option {option}{did_you_mean(option, known)}")
        if hasattr(found, "overrides"):
            found.overrides = [*found.overrides, *(word for word in rest if "=" in word)]
            rest = [word for word in rest if "=" not in word]
        return found, rest
