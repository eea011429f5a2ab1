"""A study: which responses are rated, by what questions and in what order. Written once; ratings refer to it.

The folder of a study:

study.json          the items, the systems' responses, the questions, the seed
ratings.jsonl       one line an answer, in the order they came; see `alignkit.rating.store`
ratings.lock        held by the server that has the folder open
summary.json        what `alignkit rate --summary` found
summary.md          the same for people
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, DataError
from alignkit.rating.questions import Questionnaire, questionnaire_from
from alignkit.rating.systems import Item, digest
from alignkit.whole_files import check_writable, write_text

STUDY = "study.json"
_FORMAT = 1
LONGEST_NAME = 60


@dataclass(frozen=True)
class Place:
    """What a rater sees at once.

    Attributes:
        item: its number in the study.
        systems: whose responses, in the order shown; one, unless all are shown together.
    """

    item: int
    systems: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What is to be rated.

    Attributes:
        systems: their names; raters never see them.
        items: the contexts with the systems' responses.
        questionnaire: what is asked.
        seed: of the sample and of the raters' orders.
        together: whether all responses to a context are shown at once.
    """

    systems: tuple[str, ...]
    items: tuple[Item, ...]
    questionnaire: Questionnaire
    seed: int
    together: bool = False

    def places(self, rater: str) -> list[Place]:
        """All that a rater is shown, in an order of their own that stays the same whenever they come back."""
        key = rater_key(rater)

        def rank(item: int, system: str = "") -> str:
            return digest(self.seed, key, item, system)

        if self.together:
            by_chance = sorted(range(len(self.items)), key=rank)
            return [Place(i, tuple(sorted(self.systems, key=lambda name: rank(i, name)))) for i in by_chance]
        pairs = [(item, system) for item in range(len(self.items)) for system in self.systems]
        return [Place(item, (system,)) for item, system in sorted(pairs, key=lambda pair: rank(*pair))]

    def fingerprint(self) -> str:
        """The same for equal studies only; a page that was opened before another study began is told by it."""
        return digest(self.to_dict())[:16]

    def to_dict(self) -> dict[str, Any]:
        """As study.json has it."""
        return {
            "format": _FORMAT,
            "seed": self.seed,
            "together": self.together,
            "systems": list(self.systems),
            "questionnaire": self.questionnaire.to_dict(),
            "items": [
                {"turns": [list(turn) for turn in item.turns], "responses": dict(item.responses)} for item in self.items
            ],
        }


def rater_key(name: str) -> str:
    """What two spellings of a rater's name have in common.

    >>> rater_key("  Ann  Lee "), rater_key("ann lee")
    ('ann lee', 'ann lee')
    """
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()


def clean_name(name: str) -> str:
    """A rater's name as it is kept.

    Raises:
        ConfigError: empty, too long, or with characters that cannot be seen.
    """
    plain = " ".join(unicodedata.normalize("NFKC", name).split())
    if not plain:
        raise ConfigError("Please give a name, any name: it only tells your answers from those of others.")
    if len(plain) > LONGEST_NAME:
        raise ConfigError(f"Please give a name of at most {LONGEST_NAME} characters; this one has {len(plain)}.")
    if not plain.isprintable():
        raise ConfigError("Please give a name without control characters.")
    return plain


def make_study(items: Sequence[Item], questionnaire: Questionnaire, seed: int, together: bool = False) -> Study:
    """A study of these items; the systems are those of the first.

    Raises:
        DataError: there are no items.
    """
    if not items:
        raise DataError("there is nothing to rate")
    return Study(tuple(items[0].responses), tuple(items), questionnaire, seed, together)


def open_study(folder: str | Path, study: Study | None = None) -> Study:
    """The study of a folder, which is begun there if it is not yet.

    Args:
        folder: made if missing and a study is given.
        study: what it should be; None takes what is there.

    Raises:
        ConfigError: the folder holds another study, or nothing can be written to it.
        DataError: no study is given and none is there, or it is damaged.
    """
    folder = Path(folder)
    if study is None:
        return read_study(folder)
    if (folder / STUDY).is_file():
        there = read_study(folder)
        if there != study:
            old, new = there.to_dict(), study.to_dict()
            changed = [key for key in new if old[key] != new[key]]
            raise ConfigError(
                f"{folder} holds another study (different: {', '.join(changed)}); its ratings would not fit. Go on "
                f"with it by alignkit rate --output {folder}, without systems and settings, or choose another folder"
            )
        return there
    check_writable(folder, "--output")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / STUDY, json.dumps(study.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return study


def read_study(folder: str | Path) -> Study:
    """The study that was begun in a folder.

    Raises:
        DataError: there is none, or its file is damaged.
    """
    file = Path(folder) / STUDY
    if not file.is_file():
        raise DataError(
            f"{folder} has no {STUDY}: no study was begun there. Begin one with alignkit rate NAME=RUN NAME=RUN "
            f"--output {folder}"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise DataError(f"{file} has format {content['format']}, this version reads {_FORMAT}")
        items = []
        for item in content["items"]:
            items.append(Item(tuple((who, text) for who, text in item["turns"]), dict(item["responses"])))
        return Study(
            tuple(content["systems"]), tuple(items), questionnaire_from(content["questionnaire"], str(file)),
            content["seed"], content["together"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error})") from error
