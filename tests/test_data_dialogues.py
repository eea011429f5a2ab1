"""Dialogues into contexts, replies and what was said next: made-up corpora, and the real ones where they are."""

import os
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data import data_problems, known_columns, load_data
from alignkit.data.dialogue import COLUMNS, Dialogue, detokenized, rows_of
from alignkit.data.empathetic_dialogues import EITHER, NEGATIVE, POSITIVE
from alignkit.errors import DataError

CORPORA = ["dailydialog", "empathetic_dialogues", "personachat"]
FOLDER = Path(os.environ.get("ALIGNKIT_DATA", "missing"))


def write(folder: Path, name: str, train: list[dict], validation: list[dict]) -> None:
    (folder / name).mkdir()
    for split, rows in (("train", train), ("validation", validation)):
        Dataset.from_list(rows).to_parquet(folder / name / f"{split}.parquet")


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    """A few dialogues of each corpus, in its own raw fields."""
    daily = {"utterances": ["I won !", "Wow , what ?", "A car .", "Don ’ t crash it !"], "emotions": [4, 6, 4, 0]}
    other = {"utterances": ["Hi .", "Hello ."], "emotions": [0, 0]}
    write(tmp_path, "dailydialog", [daily, daily, other], [other, {**daily, "utterances": ["Say .", "No ."] * 2}])
    speakers = ["speaker", "listener", "speaker", "listener"]
    told = {
        "conv_id": "1", "emotion": "proud", "situation": "My son won_comma_ finally.", "speakers": speakers,
        "utterances": ["My son won.", "Great!", "Yes_comma_ it is.", "Congratulations!"],
    }  # fmt: skip
    sad = {**told, "conv_id": "2", "emotion": "sad", "situation": "I lost.", "utterances": ["I lost.", "Oh no."] * 2}
    mixed = {**told, "conv_id": "3", "emotion": "surprised", "situation": "A parcel came.", "utterances": ["Hm."] * 4}
    write(
        tmp_path,
        "empathetic_dialogues",
        [told, sad, mixed],
        [{**sad, "situation": "We fell.", "utterances": ["A"] * 4}],
    )
    chat = {"utterances": ["hi there !", "hello .", "how are you ?", "fine ."], "revised": False}
    write(
        tmp_path,
        "personachat",
        [chat],
        [{**chat, "utterances": ["a", "b"]}, {"utterances": ["a", "b"], "revised": True}],
    )
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))


def in_order(rows) -> list[tuple]:
    return sorted(tuple(row[name] for name in COLUMNS) for row in rows)


def test_a_dialogue_becomes_one_row_for_each_reply(corpora):
    loaded = load_data("dailydialog")
    assert in_order(loaded["train"]) == [
        ("Hi.\n", "Hello.", "", ""),
        ("I won!\n", "Wow, what?", "A car.", "happiness"),
        ("I won!\nWow, what?\n", "A car.", "Don't crash it!", "surprise"),
        ("Wow, what?\nA car.\n", "Don't crash it!", "", "happiness"),
    ]
    assert {row["prompt"].split("\n")[-2] for row in loaded["validation"]} == {"Say.", "No."}  # the other is in train


def test_the_listener_replies_to_the_speaker(corpora):
    rows = in_order(load_data("empathetic_dialogues", turns=1)["train"])
    assert ("My son won.\n", "Great!", "Yes, it is.", "proud") in rows
    assert ("Yes, it is.\n", "Congratulations!", "", "proud") in rows
    assert len(rows) == 6 and not any(reference == "Yes, it is." for _, reference, _, _ in rows)


def test_the_person_with_the_persona_replies(corpora):
    loaded = load_data("personachat")
    assert in_order(loaded["train"]) == [
        ("hello.\nhow are you?\n", "fine.", "", ""),
        ("hi there!\n", "hello.", "how are you?", ""),
    ]
    assert len(loaded["validation"]) == 1  # both wordings of its personas have the same dialogue


def test_situations_have_the_sentiment_of_their_emotion(corpora):
    train = load_data("empathetic_dialogues", form="situations")["train"]
    assert sorted(zip(train["text"], train["label"], strict=True)) == [("I lost.", 0), ("My son won, finally.", 1)]
    assert len(POSITIVE) == 13 and len(NEGATIVE) == 16 and len({*POSITIVE, *NEGATIVE, *EITHER}) == 32


def test_a_simulated_user_learns_what_the_other_party_says_next(corpora):
    """The context of a speaker's turn ends with the listener's reply; what the speaker feels is not the listener's."""
    speakers = in_order(load_data("empathetic_dialogues", replies="speaker")["train"])
    assert ("My son won.\nGreat!\n", "Yes, it is.", "Congratulations!", "") in speakers
    assert len(speakers) == 3  # a first turn replies to nothing
    both = in_order(load_data("empathetic_dialogues", replies="both")["train"])
    assert both == sorted(speakers + in_order(load_data("empathetic_dialogues")["train"]))
    own, all_of_them = (in_order(load_data("personachat", replies=whose)["train"]) for whose in ("persona", "both"))
    assert [row for row in all_of_them if row not in own] == [("hi there!\nhello.\n", "how are you?", "fine.", "")]
    with pytest.raises(DataError, match="no reply is left in 'validation'"):  # its partner never answers
        load_data("personachat", replies="partner")


def test_turns_have_the_sentiment_of_their_emotion(tmp_path, monkeypatch):
    """Neutral turns and surprise have none; texts with both labels are left out, and those of validation in train."""
    said = {"utterances": ["I won !", "Wow .", "Hm .", "i won !", "Ow .", "No .", "No ."],
            "emotions": [4, 6, 0, 4, 5, 1, 4]}  # fmt: skip
    write(tmp_path, "dailydialog", [said, {"utterances": ["Yuck .", "Help !", "Nice ."], "emotions": [2, 3, 4]}],
          [{"utterances": ["nice .", "Ah ."], "emotions": [4, 5]}])  # fmt: skip
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    loaded = load_data("dailydialog", form="turns")
    assert loaded["train"].column_names == known_columns("dailydialog", form="turns")
    found = {split: sorted(zip(part["text"], part["label"], strict=True)) for split, part in loaded.items()}
    assert found["train"] == [("Help!", 0), ("I won!", 1), ("Ow.", 0), ("Yuck.", 0)]
    assert found["validation"] == [("Ah.", 0), ("nice.", 1)]


def test_messages_have_the_reply_as_the_assistants(corpora):
    [row] = [r for r in load_data("dailydialog", style="messages")["train"] if r["next_turn"] == "Don't crash it!"]
    assert row["prompt"] == [
        {"role": "assistant", "content": "I won!"},
        {"role": "user", "content": "Wow, what?"},
    ]
    assert row["reference"] == [{"role": "assistant", "content": "A car."}]


@pytest.mark.parametrize("name", CORPORA)
def test_long_replies_are_left_out(name, corpora):
    assert all(len(row["reference"].split()) <= 1 for row in load_data(name, reply_words=1)["train"])


def test_long_contexts_are_left_out(corpora):
    rows = load_data("dailydialog", prompt_words=4)["train"]
    assert in_order(rows) == [
        ("Hi.\n", "Hello.", "", ""),
        ("I won!\n", "Wow, what?", "A car.", "happiness"),
        ("I won!\nWow, what?\n", "A car.", "Don't crash it!", "surprise"),
        ("Wow, what?\nA car.\n", "Don't crash it!", "", "happiness"),
    ]
    assert [row["prompt"] for row in load_data("dailydialog", prompt_words=1)["train"]] == ["Hi.\n"]


def test_nothing_left_is_said(corpora):
    long = Dialogue(["a", "b c"], [False, True], ["", ""])
    assert rows_of(long, 2, "text", 1) == []
    with pytest.raises(DataError, match="reply_words must be at least 1, got 0"):
        load_data("dailydialog", reply_words=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 4))
def test_no_row_reaches_beyond_its_dialogue(replies, turns):
    said = [f"t{i}" for i in range(len(replies))]
    rows = rows_of(Dialogue(said, replies, said), turns, "text", None)
    assert [row["reference"] for row in rows] == [said[i] for i in range(1, len(said)) if replies[i]]
    for row in rows:
        place = said.index(row["reference"])
        context = row["prompt"].split("\n")[:-1]
        assert context == said[max(0, place - turns) : place] and row["emotion"] == context[-1]
        assert row["next_turn"] == (said[place + 1] if place + 1 < len(said) else "")


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("I ’ m fine , thanks .", "I'm fine, thanks."),
        ("Let ' s go . I do n't know !", "Let's go. I don't know!"),
        ("you are right.But what ?", "you are right. But what?"),
        ("It costs $ 5 ( or so ) .", "It costs $5 (or so)."),
        ("e.g. 3.5 a.m. it stays", "e.g. 3.5 a.m. it stays"),
    ],
)
def test_tokenised_text_becomes_what_people_write(raw, wanted):
    assert detokenized(raw) == wanted == detokenized(wanted)


def test_the_hubs_forms_are_read_too(tmp_path, monkeypatch):
    said = [{"role": "user", "content": "I won."}, {"role": "assistant", "content": "Great!"}]
    ed = {"emotion": "proud", "situation": "I won.", "conversations": said}
    write(tmp_path, "empathetic_dialogues", [ed], [{**ed, "conversations": [{**said[0], "content": "Ah"}, said[1]]}])
    write(
        tmp_path,
        "dailydialog",
        [{"dialog": ["a", "b"], "emotion": [5, 0]}],
        [{"dialog": ["c", "d"], "emotion": [0, 0]}],
    )
    offered = [{"history": ["a"], "candidates": ["x", "b"]}, {"history": ["a", "b", "c"], "candidates": ["y", "d"]}]
    write(tmp_path, "personachat", [{"utterances": offered}], [{"utterances": offered[:1]}])
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    assert in_order(load_data("empathetic_dialogues")["train"]) == [("I won.\n", "Great!", "", "proud")]
    assert in_order(load_data("dailydialog")["train"]) == [("a\n", "b", "", "sadness")]
    assert in_order(load_data("personachat")["train"]) == [("a\n", "b", "c", ""), ("b\nc\n", "d", "", "")]


def test_a_mix_has_the_rows_of_all_and_the_columns_that_all_have(corpora):
    parts = [{"use": "dailydialog", "turns": 1}, {"use": "personachat"}]
    loaded = load_data("mix", parts=parts)
    each = [row for part in parts for row in load_data(part["use"], turns=part.get("turns", 2))["train"]]
    assert in_order(loaded["train"]) == in_order(each)
    assert known_columns("mix", parts=parts) == COLUMNS
    assert len(load_data("mix", parts=parts, train_size=3)["train"]) == 3
    of_files = [{"use": "quickstart", "form": "classification"}, {"use": "empathetic_dialogues", "form": "situations"}]
    assert set(load_data("mix", parts=of_files)["train"].column_names) == {"text", "label"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"use": "sst2"}], "at least two parts.*got 1"),
        ([{"use": "sst2"}, {"turns": 2}], "part 1 does not say which data set"),
        ([{"use": "sst2"}, {"use": "dailydialog", "turn": 2}], "part 1: .*'turn'; did you mean 'turns'"),
        ([{"use": "sst2"}, {"use": "dailydialog"}], "no column in common .*sst2: text, label; dailydialog: prompt"),
    ],
)
def test_a_mix_that_cannot_be_is_refused_before_anything_is_read(parts, message):
    with pytest.raises(DataError, match=message):
        load_data("mix", parts=parts)
    assert data_problems("mix", {"parts": parts})


@pytest.mark.parametrize("name", CORPORA)
def test_the_real_corpora(name):
    if not (FOLDER / name / "train.parquet").is_file():
        pytest.skip(f"ALIGNKIT_DATA has no {name}")
    loaded = load_data(name)
    least = {"dailydialog": 70_000, "empathetic_dialogues": 40_000, "personachat": 9_000}[name]
    assert len(loaded["train"]) > least and loaded["train"].column_names == COLUMNS
    assert (
        not any(" ." in text or " ," in text for text in loaded["validation"]["reference"][:500]) or name == CORPORA[1]
    )
