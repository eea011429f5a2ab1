"""Publishes what several systems said to the same prompts: `replies.json` of a study, tables of docs/results.md.

    python scripts/add_replies.py --study look_ahead --first 3 Seq2Seq=judged/seq2seq-1.json RL=judged/rl-1.json
    python scripts/add_replies.py --study look_ahead --add Seq2Seq=table3/seq2seq.jsonl RL=table3/rl.jsonl

A file is what `alignkit evaluate --output` wrote, or what `alignkit generate --output` did; all must have the same
prompts in the same order. The first ones are taken: nobody chooses. With --add they come behind what is published.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from alignkit.json_lines import read_json_lines
from alignkit.text import is_conversational

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = "the data's reply"


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Prompts with completions."""
    if file.suffix == ".jsonl":
        return read_json_lines(file, drop_torn=False)
    return json.loads(file.read_text(encoding="utf-8"))["rows"]


def turns(prompt: Any) -> list[str]:
    """The lines of a text, or the messages of a conversation.

    >>> turns("hello\\nhow are you?\\n")
    ['hello', 'how are you?']
    """
    if is_conversational(prompt):
        return [f"{message['role']}: {message['content']}" for message in prompt]
    return [line for line in prompt.splitlines() if line.strip()]


def side_by_side(systems: dict[str, list[dict[str, Any]]], first: int | None) -> list[dict[str, Any]]:
    """One entry for each prompt: its turns, and what each system said, the data's own reply last where it is known."""
    (name, rows), *others = systems.items()
    for other, theirs in others:
        if [row["prompt"] for row in theirs[:first]] != [row["prompt"] for row in rows[:first]]:
            raise SystemExit(f"{name} and {other} did not get the same prompts in the same order")
    found = []
    for place, row in enumerate(rows[:first]):
        said = {system: theirs[place]["completion"].strip() for system, theirs in systems.items()}
        if row.get("reference"):
            said[PEOPLE] = row["reference"].strip()
        found.append({"prompt": turns(row["prompt"]), "replies": said})
    return found


def publish(files: dict[str, Path], study: str, first: int | None, add: bool, results: Path) -> Path:
    """Writes `results/study/replies.json`; returns it."""
    target = results / study / "replies.json"
    before = json.loads(target.read_text(encoding="utf-8")) if add and target.is_file() else []
    new = side_by_side({system: rows_of(file) for system, file in files.items()}, first)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([*before, *new], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def main() -> None:
    """Reads the command line and publishes the replies."""
    parser = argparse.ArgumentParser(description="Publish what several systems said to the same prompts.")
    parser.add_argument("systems", nargs="+", metavar="NAME=FILE", help="a row of the tables, and where it stands")
    parser.add_argument("--study", required=True, help="the study it belongs to: a folder of docs/results/")
    parser.add_argument("--first", type=int, help="so many prompts; all of the files unless given")
    parser.add_argument("--add", action="store_true", help="behind those that are published already")
    arguments = parser.parse_args()
    named = [entry.partition("=") for entry in arguments.systems]
    wrong = [name for name, equals, file in named if not (name and equals and Path(file).is_file())]
    if wrong:
        parser.error(f"expected NAME=FILE with a file that exists, got: {', '.join(wrong)}")
    files = {name: Path(file) for name, _, file in named}
    print(publish(files, arguments.study, arguments.first, arguments.add, ROOT / "docs" / "results"))


if __name__ == "__main__":
    main()
