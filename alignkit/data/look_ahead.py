"""What a reward says of the turn that follows a reply, as labels: data for a predictor that looks ahead.

Any reward that scores a text on its own can label. With a sentiment classifier this is the training set of the user
sentiment look-ahead (Shin et al. 2019, section 3.1): from a user's turn and the reply to it, the sentiment of what the
user said next.
"""

from typing import Any

from datasets import Dataset, DatasetDict, Features, Value

from alignkit.data import data_problems, known_columns, load_data, settings_of
from alignkit.data.reading import check_splits, require_columns
from alignkit.data.splitting import check_size, limited
from alignkit.errors import AlignkitError, DataError, ModelError
from alignkit.registry import find_reward, load_reward
from alignkit.text import completion_text, last_turn

_NEEDED = ("prompt", "reference", "next_turn")
_BATCH = 1024


def columns(of: dict[str, Any], labeller: dict[str, Any], **settings: Any) -> list[str]:
    """Always the same; raises `DataError` for dialogues or a labeller that cannot be."""
    for name in ("train_size", "validation_size"):
        check_size(name, settings.get(name))
    problems = []
    for name, spec in (("of", of), ("labeller", labeller)):
        if not isinstance(spec.get("use"), str):
            problems.append(f"{name} is a mapping with `use`, got {spec!r}")
    if not problems:
        problems = [f"of: {problem}" for problem in data_problems(of["use"], settings_of(of))]
        try:
            find_reward(labeller["use"])
        except AlignkitError as error:
            problems.append(f"labeller: {error}")
    if not problems:
        known = known_columns(of["use"], **settings_of(of))
        lacking = [name for name in _NEEDED if known is not None and name not in known]
        if lacking and known is not None:
            problems.append(f"of: {of['use']} gives {', '.join(known)} and lacks {', '.join(lacking)}; use dialogues")
    if problems:
        raise DataError("; ".join(problems))
    return ["text", "text_pair", "label", "baseline"]


def load(
    of: dict[str, Any],
    labeller: dict[str, Any],
    above: float = 0.5,
    train_size: int | None = None,
    validation_size: int | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Rows of a user's turn (`text`), the reply (`text_pair`), and the `label` of what the user said next.

    `baseline` is the label of the user's turn itself: what one would guess who thinks that a reply changes nothing.
    Rows whose dialogue ended with the reply are left out.

    Args:
        of: dialogues, as a recipe writes `data`: `{use: empathetic_dialogues}`.
        labeller: a reward that scores one text, as a recipe writes it: `{use: sentiment, model: runs/...}`.
        above: a score above this is label 1, any other 0.
        train_size: label at most so many rows.
        validation_size: label at most so many rows.
        seed: of the order of the rows.
    """
    columns(of=of, labeller=labeller, train_size=train_size, validation_size=validation_size)
    dialogues = load_data(of["use"], **settings_of(of))
    for split, part in dialogues.items():
        require_columns(part, _NEEDED, f"{of['use']} ({split})")
    going_on = dialogues.filter(lambda row: bool(row["next_turn"].strip()), load_from_cache_file=False)
    some = limited(check_splits(going_on, of["use"]), train_size, validation_size, seed)
    reward = load_reward(labeller["use"], **settings_of(labeller))
    try:
        parts = {split: _labelled(part, reward, above, split) for split, part in some.items()}
    except ModelError as error:
        raise DataError(f"look_ahead: the labeller {labeller['use']!r} cannot label: {error}") from error
    return check_splits(DatasetDict(parts), "look_ahead")


def _labelled(part: Dataset, reward: Any, above: float, split: str) -> Dataset:
    """Rows with labels; those of which the reward has no opinion are left out."""
    asked = [last_turn(prompt) for prompt in part["prompt"]]
    following = list(part["next_turn"])
    # a turn that follows one reply is often what the next one answers: each is scored once
    said = Dataset.from_dict({"turn": list(dict.fromkeys([*asked, *following]))})
    scored = said.map(
        lambda batch: {"score": reward(prompts=[""] * len(batch["turn"]), completions=list(batch["turn"]))},
        batched=True,
        batch_size=_BATCH,
        features=Features({"turn": Value("string"), "score": Value("float64")}),  # a batch may have no opinion at all
        load_from_cache_file=False,
        desc=f"labelling {split}",
    )
    scores = dict(zip(scored["turn"], scored["score"], strict=True))
    rows = [
        {
            "text": now,
            "text_pair": completion_text(reply),
            "label": int(scores[then] > above),
            "baseline": int(scores[now] > above),
        }
        for now, reply, then in zip(asked, part["reference"], following, strict=True)
        if scores[now] is not None and scores[then] is not None
    ]
    return Dataset.from_list(rows) if rows else part.select([])
