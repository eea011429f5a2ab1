"""What several systems wrote to the same prompts: read, matched, and a sample of it drawn."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, DataError
from alignkit.json_lines import read_json_lines
from alignkit.text import completion_text, is_conversational, prompt_text

GOLD = "gold"
Turn = tuple[str, str]


@dataclass(frozen=True)
class Item:
    """A context and what each system replied to it.

    Attributes:
        turns: (who, text) in order; who is `speaker`, `listener` or, for instructions, `system`.
        responses: system -> its reply.
    """

    turns: tuple[Turn, ...]
    responses: Mapping[str, str]


def parse_system(argument: str) -> tuple[str, Path]:
    """`NAME=PATH` or `PATH` from the command line; without a name, that of the folder or file.

    >>> parse_system("look-ahead=runs/7")[0], parse_system("runs/ppo/")[0], parse_system("made/seq2seq.jsonl")[0]
    ('look-ahead', 'ppo', 'seq2seq')
    """
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        place = Path(argument)
        return (place.stem if place.suffix in (".json", ".jsonl") else place.resolve().name), place
    return name.strip(), Path(path)


def turns_of(prompt: Any) -> tuple[Turn, ...]:
    """The turns of a prompt, plain or in messages; the last of a plain one is the speaker's.

    >>> turns_of("Hello.\\nHow are you?\\n")
    (('listener', 'Hello.'), ('speaker', 'How are you?'))
    >>> turns_of([{"role": "user", "content": "Hello"}])
    (('speaker', 'Hello'),)
    """
    if is_conversational(prompt):
        who = {"assistant": "listener", "system": "system"}
        spoken = [(who.get(message["role"], "speaker"), prompt_text([message])) for message in prompt]
        found = [(party, text.partition(": ")[2].strip()) for party, text in spoken]
        return tuple(turn for turn in found if turn[1])
    lines = [line.strip() for line in prompt_text(prompt).split("\n") if line.strip()]
    return tuple((("speaker", "listener")[(len(lines) - 1 - i) % 2], line) for i, line in enumerate(lines))


def read_system(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's folder (its completions after training), of a file of JSON lines, or of what `alignkit
    evaluate --output` wrote.

    Raises:
        DataError: nothing is there, or a row lacks prompt or completion.
    """
    path = Path(path)
    file = path / "samples.jsonl" if path.is_dir() else path
    if not file.is_file():
        hint = "has no samples.jsonl: is it the folder of a finished run?" if path.is_dir() else "is no file or folder."
        raise DataError(f"{path} {hint} Expected a run's folder, or .jsonl with rows of prompt and completion")
    if file.suffix == ".json":
        from alignkit.run.compare import read_judged

        rows = read_judged(file)["rows"]
    else:
        rows = read_json_lines(file)
    if any("phase" in row for row in rows):
        rows = [row for row in rows if row.get("phase") == "after"]
        if not rows:
            raise DataError(f"{file} has no completions of the phase 'after': the run has not come to its end")
    if not rows:
        raise DataError(f"{file} is empty; expected rows with prompt and completion")
    for number, row in enumerate(rows, 1):
        missing = [key for key in ("prompt", "completion") if row.get(key) is None]
        if missing:
            raise DataError(f"{file}: row {number} has no {' and no '.join(missing)}; it has: {', '.join(row)}")
        for key in ("prompt", "completion"):
            if not isinstance(row[key], str) and not is_conversational(row[key]):
                raise DataError(f"{file}: row {number}: {key} is a text or a list of messages, got {row[key]!r:.60}")
    return rows


def match(systems: Mapping[str, Sequence[dict[str, Any]]], *, gold: bool = False) -> tuple[list[Item], list[str]]:
    """The prompts that all systems replied to.

    Prompts are the same if their turns are, whether they are plain or messages. Where a system has a prompt twice, its
    first row counts.

    Args:
        systems: name -> its rows.
        gold: whether the rows' `reference` is one more system.

    Returns:
        the items, and remarks on what was left out.

    Raises:
        ConfigError: fewer than two systems, or a name that is empty or taken.
        DataError: no prompt is common to all, or none has a reference.
    """
    if gold and GOLD in systems:
        raise ConfigError(f"with --gold the reference is called {GOLD!r}; give that system another name")
    if len(systems) + gold < 2:
        raise ConfigError("a comparison needs two systems or more; give another run or file, or --gold")
    if not all(systems):
        raise ConfigError("a system has an empty name; write NAME=PATH")
    remarks = []
    keyed: dict[str, dict[tuple[Turn, ...], dict[str, Any]]] = {}
    for name, rows in systems.items():
        keyed[name] = {}
        for row in rows:
            keyed[name].setdefault(turns_of(row["prompt"]), row)
        if len(keyed[name]) < len(rows):
            remarks.append(f"{name}: rows left out that repeat a prompt: {len(rows) - len(keyed[name])}")
    first, *others = keyed.values()
    common = [turns for turns in first if turns and all(turns in other for other in others)]
    if not common:
        counts = ", ".join(f"{name} {len(found)}" for name, found in keyed.items())
        raise DataError(
            f"no prompt is common to all systems (different prompts: {counts}); they have to be runs on the same data, "
            "with the same number of turns"
        )
    if any(len(found) > len(common) for found in keyed.values()):
        remarks.append(f"prompts that all systems have: {len(common)}; the others are left out")
    items = []
    for turns in common:
        responses = {name: completion_text(found[turns]["completion"]).strip() for name, found in keyed.items()}
        if gold:
            known = [found[turns]["reference"] for found in keyed.values() if found[turns].get("reference")]
            if not known:
                continue
            responses[GOLD] = completion_text(known[0]).strip()
        items.append(Item(turns, responses))
    if not items:
        raise DataError("--gold needs a reference; no row of the common prompts has one")
    if len(items) < len(common):
        remarks.append(f"prompts left out that have no reference: {len(common) - len(items)}")
    return items, remarks


def sample(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """So many items, or all where there are fewer: always the same ones for a seed, whatever their order.

    Raises:
        ConfigError: a count below 1.
    """
    if count < 1:
        raise ConfigError(f"the count of prompts must be at least 1, got {count}")
    return sorted(items, key=lambda item: digest(seed, item.turns))[:count]


def digest(*parts: Any) -> str:
    """A fixed pseudo-random word for what is given: orders made of these stay the same on every machine."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
