"""From dialogues to rows: a context, the reply to it, and what was said next.

Whatever corpus they come from, rows have the same columns, so that corpora can be mixed:

- `prompt`: the turns before the reply, the last of them by the other party: one text, or messages;
- `reference`: the reply that the corpus has;
- `next_turn`: what the other party said to that reply; empty where the dialogue ended;
- `emotion`: a word for how the other party feels; empty where the corpus has none.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset, DatasetDict

from alignkit.data import data_settings, known_columns, settings_of
from alignkit.data.reading import check_splits
from alignkit.data.splitting import check_size, limited
from alignkit.errors import DataError

Style = Literal["text", "messages"]
COLUMNS = ["prompt", "reference", "next_turn", "emotion"]
# Between two turns of a plain prompt, and after the last one.
TURN_END = "\n"
_OF_A_ROW = ("turns", "style", "reply_words", "prompt_words")


@dataclass(frozen=True)
class Dialogue:
    """One conversation of two parties.

    Attributes:
        turns: what was said, in order.
        replies: for each turn, whether it is one that a model should learn to give.
        emotions: for each turn a word for the feeling of who says it; empty where unknown.
    """

    turns: Sequence[str]
    replies: Sequence[bool]
    emotions: Sequence[str]


@dataclass(frozen=True)
class Context:
    """How much of a conversation a model is given, and in which form.

    Attributes:
        turns: at most so many, the last ones; None for all.
        style: "text" ends each turn with a newline; in "messages" the replying party is the assistant.
    """

    turns: int | None
    style: Style

    def prompt(self, said: Sequence[str]) -> Any:
        """What the next reply is a reply to: one text, or messages.

        Args:
            said: what the two parties said in turn, at least once, the other party last.

        >>> Context(2, "text").prompt(["Hello.", "How are you?", "I won!"])
        'How are you?\\nI won!\\n'
        >>> Context(1, "messages").prompt(["Hello.", "How are you?", "I won!"])
        [{'role': 'user', 'content': 'I won!'}]
        """
        before = list(said) if self.turns is None else list(said)[-self.turns :]
        if self.style == "text":
            return "".join(turn + TURN_END for turn in before)
        roles = ("user", "assistant")
        return [{"role": roles[(len(before) - 1 - i) % 2], "content": turn} for i, turn in enumerate(before)]


def context_of(use: str, **settings: Any) -> Context | None:
    """The context that a data set of dialogues gives its rows, None for other data. Reads no data.

    The longest one of a mix counts.

    Args:
        use: name of the data set.
        settings: its own.

    Raises:
        DataError: unknown name or settings.

    >>> context_of("mix", parts=[{"use": "dailydialog"}, {"use": "personachat", "turns": 3}, {"use": "quickstart"}])
    Context(turns=3, style='text')
    """
    if use == "mix":
        found = [context_of(part["use"], **settings_of(part)) for part in settings["parts"]]
        known = [context for context in found if context is not None and context.turns is not None]
        return max(known, key=lambda context: context.turns or 0, default=None)
    parameters = data_settings(use).parameters
    if not {"turns", "style"} <= set(parameters) or "next_turn" not in (known_columns(use, **settings) or []):
        return None
    return Context(*(settings.get(name, parameters[name].default) for name in ("turns", "style")))


def check_sizes(settings: dict[str, Any]) -> None:
    """Raises `DataError` for a number below 1 among the settings that all corpora of dialogues share."""
    for name in ("turns", "prompt_words", "reply_words", "train_size", "validation_size"):
        check_size(name, settings.get(name))


def rows_of(
    dialogue: Dialogue, turns: int, style: Style, reply_words: int | None = None, prompt_words: int | None = None
) -> list[dict[str, Any]]:
    """One row for each reply that has something before it.

    Args:
        dialogue: with at least one turn.
        turns: at most so many turns of context.
        style: of the prompt; in messages the replying party is the assistant.
        reply_words: leave out longer replies.
        prompt_words: leave out replies to longer contexts.

    >>> spoken = Dialogue(["I won!", "Wow, what?", "A car."], [False, True, False], ["proud", "", "proud"])
    >>> rows_of(spoken, 2, "text")
    [{'prompt': 'I won!\\n', 'reference': 'Wow, what?', 'next_turn': 'A car.', 'emotion': 'proud'}]
    """
    rows = []
    for place, reply in enumerate(dialogue.turns):
        before = [turn for turn in dialogue.turns[max(0, place - turns) : place]]
        if not dialogue.replies[place] or not before or not all([*before, reply]):
            continue
        if reply_words is not None and len(reply.split()) > reply_words:
            continue
        if prompt_words is not None and len(" ".join(before).split()) > prompt_words:
            continue
        following = dialogue.turns[place + 1] if place + 1 < len(dialogue.turns) else ""
        rows.append(
            {
                "prompt": Context(turns, style).prompt(before),
                "reference": reply if style == "text" else [{"role": "assistant", "content": reply}],
                "next_turn": following,
                "emotion": dialogue.emotions[place - 1],
            }
        )
    return rows


def split_rows(
    train: Iterable[Dialogue], validation: Iterable[Dialogue], source: str, settings: dict[str, Any]
) -> DatasetDict:
    """Rows of both splits. A dialogue that comes twice is kept once, and one that is in train is not in validation.

    Args:
        train: its dialogues.
        validation: its dialogues.
        source: the corpus, for messages.
        settings: `turns`, `style`, `prompt_words`, `reply_words`, `train_size`, `validation_size`, `seed`.
    """
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split, dialogues in (("train", train), ("validation", validation)):
        rows = []
        for dialogue in dialogues:
            key = tuple(turn.lower() for turn in dialogue.turns)
            if key not in seen:
                seen.add(key)
                rows += rows_of(dialogue, **{name: settings[name] for name in _OF_A_ROW})
        if not rows:
            raise DataError(
                f"{source}: no reply is left in {split!r}; allow longer ones with reply_words and prompt_words"
            )
        splits[split] = Dataset.from_list(rows)
    parts = check_splits(DatasetDict(splits), source)
    return limited(parts, settings["train_size"], settings["validation_size"], settings["seed"])


_SPACES = (
    (re.compile(r"\s*([’'])\s*(?=(?:s|m|t|d|ll|re|ve)\b)", re.I), r"\1"),  # I ’ m, don ’ t, Let ' s
    (re.compile(r"\s+n['’]t\b", re.I), "n't"),
    (re.compile(r"\s+([.,!?;:%)\]])"), r"\1"),
    (re.compile(r"([(\[$])\s+"), r"\1"),
    (re.compile(r"(?<=[a-z])([.?!])(?=[A-Z][a-z])"), r"\1 "),  # right.But
    (re.compile(r"\s+"), " "),
)


def detokenized(text: str) -> str:
    """A tokenised utterance as people write it; text that was never tokenised stays as it is.

    >>> detokenized("That ’ s right , I don ’ t know .")
    "That's right, I don't know."
    """
    for pattern, replacement in _SPACES:
        text = pattern.sub(replacement, text)
    return text.replace("’", "'").strip()
