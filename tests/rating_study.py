"""A small study, for the tests of ratings, and a process that answers until it is killed.

python rating_study.py FOLDER FIRST     answers from the FIRST on, and prints the number of each that is kept
"""

import sys
from pathlib import Path

from alignkit.rating.questions import Questionnaire
from alignkit.rating.store import Ratings
from alignkit.rating.study import Study, make_study, open_study
from alignkit.rating.systems import Item

SYSTEMS = ("gold", "plain", "tuned")
QUESTIONS = Questionnaire().names


def small_study(items: int = 4, *, together: bool = False, seed: int = 1) -> Study:
    """Contexts of two turns; every response says which item and system it is of, in words that are not their names."""
    made = [
        Item(
            (("listener", f"How was day {i}?"), ("speaker", f"Day {i} was long & <b>hard</b>.")),
            {name: f"reply {i}-{place} <i>" for place, name in enumerate(SYSTEMS)},
        )
        for i in range(items)
    ]
    return make_study(made, Questionnaire(), seed, together)


def nth_answer(number: int) -> tuple[tuple[int, str, str], int]:
    """The answers that the process gives, one after the other; each differs from the one before it to that question."""
    item, rest = number % 4, number // 4
    question, turn = QUESTIONS[rest % 3], rest // 3
    return (item, "plain", question), 1 + turn % 5


def answer(folder: Path, first: int) -> None:
    """Until killed."""
    with Ratings(folder, open_study(folder)) as ratings:
        print("open", flush=True)
        number = first
        while True:
            ratings.add("Ann", [nth_answer(number)])
            print(number, flush=True)
            number += 1


if __name__ == "__main__":
    answer(Path(sys.argv[1]), int(sys.argv[2]))
