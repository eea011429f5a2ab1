"""The decoders that choose by a reward, by the names that `alignkit generate --decoder` and a recipe's
`evaluation.decoder` take."""

import inspect
from collections.abc import Mapping
from typing import Any

from alignkit.decoding.best_of_n import BestOfN
from alignkit.decoding.das import DAS
from alignkit.decoding.mcts import MCTS
from alignkit.errors import ConfigError
from alignkit.settings import argument_problems

CHOOSERS = {"best_of_n": BestOfN, "mcts": MCTS, "das": DAS}


def chooser_problems(
    owner: str, chooser: type, settings: Mapping[str, Any], where: str, also: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with the settings of a decoder that chooses, a sentence each; no reward is built.

    Args:
        owner: whose settings they are, for the messages.
        chooser: a value of `CHOOSERS`.
        settings: without its reward and its tokenizer.
        where: the section of a recipe.
        also: what that section has besides.
    """
    parameters = dict(list(inspect.signature(chooser).parameters.items())[2:])
    found = argument_problems(owner, settings, parameters, where=where, also=also)
    if found:
        return found
    try:
        chooser(nobody, None, **settings)
    except ConfigError as error:
        return [f"{where}: {error}"]
    return []


def nobody(prompts: list, completions: list, **columns: Any) -> list[None]:
    """A reward to construct a search with, whose settings are to be looked at."""
    return [None] * len(completions)
