"""The grammar of the quickstart: what it writes, and that a text tells its polarity."""

import random
import re

import pytest

from alignkit.data import load_data
from alignkit.data.grammar import RULES, continuation, expand
from alignkit.errors import DataError


def pattern(rule):
    """The rule as a regular expression: an independent reading of the grammar."""
    slots = r"\\\{(\w+)\\\}"
    return "(?:" + "|".join(re.sub(slots, lambda slot: pattern(slot[1]), re.escape(line)) for line in RULES[rule]) + ")"


def polarity_patterns():
    """Completions that the grammar can write, by label."""
    aside = f"(?: (?:{pattern('film_aside')}|{pattern('meal_aside')}))?"
    wholes = {}
    for label, side, end in ((1, "positive", "praise"), (0, "negative", "blame")):
        verdict = f"(?:{pattern(f'film_{side}')}|{pattern(f'meal_{side}')})"
        wholes[label] = re.compile(f"{aside} {verdict}(?: {pattern(end)})?")
    return wholes


POLARITY = polarity_patterns()


def test_every_rule_is_used_and_every_slot_is_a_rule():
    slots = {slot for lines in RULES.values() for line in lines for slot in re.findall(r"\{(\w+)\}", line)}
    assert slots <= set(RULES)
    starts = {"opening", "praise", "blame"} | {
        f"{subject}_{part}" for subject in ("film", "meal") for part in ("aside", "positive", "negative")
    }
    assert set(RULES) == slots | starts
    assert all(lines and all(lines) for lines in RULES.values())


def test_what_is_written_reads_as_text():
    rng = random.Random(0)
    for number in range(400):
        text = expand("opening", rng) + continuation(expand("opening", rng), number % 2, rng)
        assert "{" not in text and "  " not in text
        assert text[0].isupper() and text[-1] in ".!"
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        for sentence in re.split(r"(?<=[.!]) ", text):
            assert sentence[0].isupper(), sentence


def test_no_text_is_positive_and_negative():
    rng = random.Random(1)
    for number in range(400):
        label = number % 2
        text = continuation(expand("opening", rng), label, rng)
        assert POLARITY[label].fullmatch(text), text
        assert not POLARITY[1 - label].fullmatch(text), text


def test_openings_are_neutral():
    charged = {
        word for rule in ("good_word", "bad_word", "happy", "unhappy", "treat", "letdown") for word in RULES[rule]
    }
    words = {word.strip(".,").lower() for text in load_data("quickstart")["train"]["prompt"] for word in text.split()}
    assert not words & charged


@pytest.mark.parametrize("form", ["prompts", "classification", "text"])
def test_each_form_is_whole_distinct_and_deterministic(form):
    loaded = load_data("quickstart", form=form, train_size=2000, validation_size=300)
    texts = {split: [row.get("text") or row["prompt"] for row in part] for split, part in loaded.items()}
    assert len(texts["train"]) == len(set(texts["train"])) == 2000
    assert len(texts["validation"]) == len(set(texts["validation"])) == 300
    assert not set(texts["train"]) & set(texts["validation"])
    again = load_data("quickstart", form=form, train_size=2000, validation_size=300)
    assert list(again["validation"]) == list(loaded["validation"])
    other = load_data("quickstart", form=form, train_size=2000, validation_size=300, seed=1)
    assert list(other["train"]) != list(loaded["train"])


def test_held_out_openings_are_in_no_form_of_train():
    forms = {form: load_data("quickstart", form=form, seed=seed) for seed, form in enumerate(("prompts", "text"))}
    held = set(forms["prompts"]["validation"]["prompt"])
    for text in forms["text"]["train"]["text"]:
        first = text[: text.index(".") + 1]
        assert first not in held
    assert not held & set(forms["prompts"]["train"]["prompt"])


def test_half_of_all_opinions_are_positive():
    loaded = load_data("quickstart")
    for part in loaded.values():
        positive = [bool(POLARITY[1].fullmatch(reference)) for reference in part["reference"]]
        negative = [bool(POLARITY[0].fullmatch(reference)) for reference in part["reference"]]
        assert sum(positive) == sum(negative) == len(part) / 2
    labelled = load_data("quickstart", form="classification")
    for part in labelled.values():
        assert sum(part["label"]) == len(part) / 2
        for row in list(part)[:400]:
            verdict = re.search(POLARITY[row["label"]].pattern + "$", " " + row["text"])
            assert verdict, row


def test_the_text_form_is_the_prompt_and_its_reference():
    prompts, texts = load_data("quickstart", train_size=50), load_data("quickstart", form="text", train_size=50)
    joined = [row["prompt"] + row["reference"] for row in prompts["train"]]
    assert joined == list(texts["train"]["text"])


def test_more_rows_than_the_grammar_is_asked_for_are_refused():
    with pytest.raises(DataError, match="at most 1600 rows of validation, got validation_size=5000"):
        load_data("quickstart", validation_size=5000)
