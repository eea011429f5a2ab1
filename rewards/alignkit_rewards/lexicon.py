"""How much of a completion consists of given words."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import RewardError
from alignkit.text import completion_text
from alignkit_rewards.words import words


class Lexicon:
    """Share of a completion's words that stand in a lexicon, weighted if the lexicon has weights.

    Range: [0, 1] for plain words; with weights between the smallest and the largest of them (and 0). An empty
    completion has 0. Phrases of several words match as a whole, the longest first, and cover all their words.

    Args:
        lexicon: words or phrases, a mapping from them to weights, or the path of a text file with one on each line,
            a weight after a tab where there is one; lines that begin with `#` are left out.

    >>> Lexicon(["please", "thank you"])(prompts=["Bye."], completions=["Thank you, please come again."])
    [0.6]
    >>> Lexicon({"good": 1, "bad": -1})(prompts=["", ""], completions=["A good film.", "bad, bad, good"])
    [0.3333333333333333, -0.3333333333333333]
    """

    __name__ = "lexicon"

    def __init__(self, lexicon: str | Path | Iterable[str] | Mapping[str, float]):
        self.lexicon = str(lexicon) if isinstance(lexicon, Path) else lexicon
        entries = _read(Path(lexicon)) if isinstance(lexicon, str | Path) else _weighted(lexicon)
        self._weights = {tuple(words(phrase)): float(weight) for phrase, weight in entries.items() if words(phrase)}
        if not self._weights:
            raise RewardError(f"the lexicon {lexicon!r} has no words; give a list, a mapping or a text file of words")
        self._longest = max(map(len, self._weights))

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        """One share for each completion."""
        return [self._share(words(completion_text(completion))) for completion in completions]

    def _share(self, text: list[str]) -> float:
        total, position = 0.0, 0
        while position < len(text):
            for length in range(min(self._longest, len(text) - position), 0, -1):
                weight = self._weights.get(tuple(text[position : position + length]))
                if weight is not None:
                    total += weight * length
                    position += length
                    break
            else:
                position += 1
        return total / len(text) if text else 0.0


def _weighted(lexicon: Iterable[str] | Mapping[str, float]) -> Mapping[str, float]:
    if isinstance(lexicon, Mapping):
        return lexicon
    return dict.fromkeys(lexicon, 1.0)


def _read(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise RewardError(f"there is no lexicon file {path}; give a text file, or the words themselves as a list")
    entries = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        phrase, tab, weight = line.partition("\t")
        if not phrase.strip() or phrase.startswith("#"):
            continue
        try:
            entries[phrase] = float(weight) if tab else 1.0
        except ValueError:
            raise RewardError(f"{path}:{number}: expected 'word' or 'word<tab>weight', got {line!r}") from None
    return entries
