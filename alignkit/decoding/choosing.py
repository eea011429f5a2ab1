"""The decoders that choose by a reward, by the names that `alignkit generate --decoder` and a recipe's
`evaluation.decoder` take."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.decoding.best_of_n import BestOfN
from alignkit.decoding.das import DAS
from alignkit.decoding.mcts import MCTS
from alignkit.decoding.proposal import SearchDecoder, SearchProposal
from alignkit.decoding.resample import Resample
from alignkit.errors import ConfigError
from alignkit.settings import argument_problems, hints_of

CHOOSERS: dict[str, type] = {"best_of_n": BestOfN, "resample": Resample, "mcts": MCTS, "das": DAS}


@dataclass(frozen=True)
class Chooser:
    """A decoder that chooses, all but the tokenizer.

    Attributes:
        name: a key of `CHOOSERS`.
        reward: what it asks.
        settings: the others of its arguments.
    """

    name: str
    reward: Any
    settings: Mapping[str, Any]

    def decoder(self, processing_class: PreTrainedTokenizerBase) -> SearchDecoder:
        """What completes prompts by a model with this tokenizer."""
        return SearchDecoder(CHOOSERS[self.name](self.reward, processing_class, **self.settings))


def as_decoder(given: Any, setting: str) -> Any:
    """A trainer's decoder: what chooses by a reward (`BestOfN`, `MCTS`, ...) is wrapped, others stay as they are.

    Args:
        given: the argument, or None.
        setting: its name, for the message.

    Raises:
        ConfigError: it is nothing that can be called.
    """
    if isinstance(given, MCTS | DAS):
        return SearchProposal(given)
    if isinstance(given, tuple(CHOOSERS.values())):
        return SearchDecoder(given)
    if given is not None and not callable(given):
        raise ConfigError(
            f"{setting}={given!r}; expected a decoder, such as BestOfN(reward, tokenizer), or another callable with "
            "the arguments and the result of alignkit.decoding.sampling.Decoder"
        )
    return given


def chooser_problems(
    owner: str,
    takes: Callable[..., Any],
    settings: Mapping[str, Any],
    where: str,
    *,
    make: Callable[..., Any] | None = None,
    guided: bool = True,
    defaults: Mapping[str, Any] | None = None,
    also: tuple[str, ...] = (),
) -> list[str]:
    """What is wrong with the settings of a decoder, a sentence each; no reward is built.

    Args:
        owner: whose settings they are, for the messages.
        takes: what has the settings for parameters, behind reward and tokenizer where it is guided.
        settings: without its reward and its tokenizer.
        where: the section of a recipe, or the setting of a config.
        make: constructs the decoder; `takes` itself when None.
        guided: it asks a reward.
        defaults: settings that go before those of `takes`.
        also: what that section has besides.
    """
    parameters = dict(list(inspect.signature(takes).parameters.items())[2 if guided else 0 :])
    found = argument_problems(owner, settings, parameters, hints=hints_of(parameters), where=where, also=also)
    if found:
        return found
    try:
        (make or takes)(*([_nobody, None] if guided else []), **{**(defaults or {}), **settings})
    except ConfigError as error:
        return [f"{where}: {error}"]
    return []


def greedy_problem(decoder: Mapping[str, Any] | None, temperature: float | None) -> str | None:
    """Why a decoder cannot work at a temperature, if it cannot: best of n and resampling need samples that differ.

    >>> greedy_problem({"use": "best_of_n", "n": 4}, 0)
    'best_of_n chooses among 4 samples, and at temperature 0 all are the same; take one above 0'
    >>> greedy_problem({"use": "mcts"}, 0) is None
    True
    """
    name = decoder.get("use") if isinstance(decoder, Mapping) else None
    if decoder is None or name not in ("best_of_n", "resample") or temperature != 0:
        return None
    n = decoder.get("n", inspect.signature(BestOfN).parameters["n"].default)
    return (
        None if n == 1 else f"{name} chooses among {n} samples, and at temperature 0 all are the same; take one above 0"
    )


def _nobody(prompts: list, completions: list, **columns: Any) -> list[None]:
    """A reward to construct a search with, whose settings are to be looked at."""
    return [None] * len(completions)
