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
from alignkit.text import completion_text, prompt_text

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = "the data's reply"


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Prompts with completions."""
    if file.suffix == ".jsonl":
        return read_json_lines(file, drop_torn=False)
    content = json.loads(file.read_text(encoding="utf-8"))
    if "rows" not in content:
        raise SystemExit(f"{file} has no rows: expected a file of `alignkit evaluate --output`, or a .jsonl file")
    return content["rows"]


def side_by_side(systems: dict[str, list[dict[str, Any]]], first: int | None) -> list[dict[str, Any]]:
    """One entry for each prompt: its turns, and what each system said, the data's own reply last where it is known."""
    (name, rows), *others = systems.items()
    for other, theirs in others:
        if [row["prompt"] for row in theirs[:first]] != [row["prompt"] for row in rows[:first]]:
            raise SystemExit(
                f"{name} ({len(rows)} rows) and {other} ({len(theirs)} rows) did not get the same prompts in the same "
                "order; where one has more of them, give --first"
            )
    found = []
    for answers in zip(*(theirs[:first] for theirs in systems.values()), strict=True):
        texts = (completion_text(row["completion"]).strip() for row in answers)
        said = dict(zip(systems, texts, strict=True))
        known = [row["reference"] for row in answers if row.get("reference")]
        if known:
            said[PEOPLE] = completion_text(known[0]).strip()
        turns = [line for line in prompt_text(answers[0]["prompt"]).splitlines() if line.strip()]
        found.append({"prompt": turns, "replies": said})
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
    if arguments.first is not None and arguments.first < 1:
        parser.error(f"--first: expected 1 or more, got {arguments.first}")
    named = [entry.partition("=") for entry in arguments.systems]
    wrong = [name for name, equals, file in named if not (name and equals and Path(file).is_file())]
    if wrong:
        parser.error(f"expected NAME=FILE with a file that exists, got: {', '.join(wrong)}")
    if len({name for name, _, _ in named}) < len(named):
        parser.error(f"a name stands twice: {', '.join(name for name, _, _ in named)}")
    files = {name: Path(file) for name, _, file in named}
    print(publish(files, arguments.study, arguments.first, arguments.add, ROOT / "docs" / "results"))


if __name__ == "__main__":
    main()
