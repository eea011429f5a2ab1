"""Sentences, questions and summaries: on made-up rows everywhere, and on the real sets where ALIGNKIT_DATA has them."""

import os
from pathlib import Path

import pytest
from datasets import Dataset

from alignkit.data import known_columns, load_data
from alignkit.data.passages import around, beginning, sentence_spans
from alignkit.data.squad import question_prompt
from alignkit.errors import DataError

SENTENCES = ["image_coco", "emnlp_news"]
NAMES = [*SENTENCES, "squad", "scitldr"]
HAVE_DATA = os.environ.get("ALIGNKIT_DATA", "")


def needs(name):
    absent = not HAVE_DATA or not (Path(HAVE_DATA) / name / "train.parquet").is_file()
    return pytest.param(name, marks=pytest.mark.skipif(absent, reason=f"ALIGNKIT_DATA has no {name}"))


def put(folder, name, **splits):
    (folder / name).mkdir()
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / name / f"{split}.parquet")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Every set with a few rows, and what has to be left out of them."""
    lines = [{"text": f"a dog number {i} sits ."} for i in range(40)]
    for name in SENTENCES:
        put(tmp_path, name, train=[*lines, {"text": "a  dog number 3 sits ."}, {"text": "a " * 30}])
    passage = "Ann sings. Bob plays the flute in Rome. Cy sleeps."
    asked = {"context": passage, "question": "What does Bob play? ", "is_impossible": False}
    flute = {"text": ["the flute", "flute"], "answer_start": [21, 25]}
    rome = {"text": ["Rome"], "answer_start": [34]}
    nothing = {"text": ["x"], "answer_start": [0]}
    put(
        tmp_path, "squad",
        train=[{**asked, "answers": flute}],
        validation=[
            {**asked, "answers": flute},
            {**asked, "answers": rome, "question": "Where does Bob play?"},
            {**asked, "answers": rome, "question": "In which town is that?"},
            {**asked, "answers": nothing, "is_impossible": True},
        ],
    )  # fmt: skip
    paper = {"document": "We try. It works. It is fast.", "summary": "It works.", "references": ["It works."]}
    put(
        tmp_path, "scitldr",
        train=[paper, {**paper, "document": "Other. Work.", "references": ["far too long a summary for a limit"]}],
        validation=[paper, {**paper, "document": "New. One.", "references": ["So new.", "Quite new."]}],
    )  # fmt: skip
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_are_written_from_the_token_that_begins_a_text(made, name):
    data = load_data(name, reference_words=10)
    texts = {split: list(part["reference"]) for split, part in data.items()}
    assert len(texts["validation"]) == 4 and len(texts["train"]) == 36, "one repeated, one too long"
    assert not set(texts["train"]) & set(texts["validation"])
    assert {prompt for part in data.values() for prompt in part["prompt"]} == {"<|endoftext|>"}
    other = load_data(name, reference_words=10, seed=5, prompt="<s>")
    assert set(other["validation"]["reference"]) == set(texts["validation"])
    assert list(other["validation"]["reference"]) != texts["validation"] and other["train"][0]["prompt"] == "<s>"
    assert len(load_data(name)["train"]) + len(load_data(name)["validation"]) == 41


def test_a_set_that_is_on_no_hub_says_which_file_would_serve(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"has no image_coco/train\.parquet.*HF_HUB_OFFLINE is set.*a column text"
    ) as error:
        load_data("image_coco")
    assert isinstance(error.value.__cause__, ConnectionError)


def test_questions_are_asked_of_a_marked_answer(made):
    data = load_data("squad", sentences=0)
    first = "answer: the flute\npassage: Bob plays <hl> the flute <hl> in Rome.\nquestion:"
    assert data["train"][:] == {"prompt": [first], "reference": [" What does Bob play?"]}
    rome = "answer: Rome\npassage: Bob plays the flute in <hl> Rome <hl>.\nquestion:"
    assert data["validation"][:] == {"prompt": [rome], "reference": [" Where does Bob play?"]}
    whole = load_data("squad")["train"][0]["prompt"]
    assert "Ann sings. Bob plays <hl> the flute <hl> in Rome. Cy sleeps." in whole
    with pytest.raises(DataError, match="no question is left in 'train'"):
        load_data("squad", reference_words=2)
    with pytest.raises(DataError, match="stands 'Bob plays' and not its answer 'the flute'"):
        question_prompt("Ann sings. Bob plays the flute.", "the flute", 11)


def test_summaries_follow_the_beginning_of_their_abstract(made):
    data = load_data("scitldr", prompt_words=4)
    assert data["validation"][:] == {
        "prompt": ["New. One.\nTL;DR:"],
        "reference": [" So new."],
        "references": [[" So new.", " Quite new."]],
    }, "the other abstract is in train"
    assert set(data["train"]["prompt"]) == {"We try. It works.\nTL;DR:", "Other. Work.\nTL;DR:"}
    assert len(load_data("scitldr", reference_words=3)["train"]) == 1


def test_the_hubs_form_of_scitldr_is_read_too(tmp_path, monkeypatch):
    rows = [{"source": ["We try.", f"It works {i}."], "target": ["Works.", ""]} for i in range(2)]
    put(tmp_path, "scitldr", train=rows[:1], validation=rows[1:])
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    assert load_data("scitldr")["validation"][0] == {
        "prompt": "We try. It works 1.\nTL;DR:", "reference": " Works.", "references": [" Works."],
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_known_columns_come_and_the_order_has_a_seed(made, name):
    loaded, again = (load_data(name, seed=7) for _ in range(2))
    assert known_columns(name) == loaded["train"].column_names == loaded["validation"].column_names
    assert list(loaded["train"]) == list(again["train"])


def test_sentences_end_where_people_see_an_end():
    text = 'Dr. J. Smith met Mr. X (of St. Paul). "Who?" he said. '
    text += "It cost $3.5 million, e.g. in the U.S. and so on! 9 left."
    found = [text[begin:end].strip() for begin, end in sentence_spans(text)]
    assert found == [
        "Dr. J. Smith met Mr. X (of St. Paul).",
        '"Who?" he said.',
        "It cost $3.5 million, e.g. in the U.S. and so on!",
        "9 left.",
    ]
    assert "".join(text[begin:end] for begin, end in sentence_spans(text)) == text
    # an answer that runs over a border takes both sentences along
    assert around("One two. Three four. Five.", 4, 14, 0) == (0, 21)
    assert beginning("One. Two. Three.", 2) == "One. Two."


@pytest.mark.parametrize("name", [needs(name) for name in NAMES])
def test_the_real_sets_are_clean_and_split(name):
    least = {"image_coco": (8900, 990), "emnlp_news": (8900, 990), "squad": (11000, 2800), "scitldr": (1900, 610)}[name]
    loaded = load_data(name)
    assert (len(loaded["train"]) >= least[0]) and (len(loaded["validation"]) >= least[1])
    identity = "reference" if name in SENTENCES else "prompt"
    sides = [set(part[identity]) for part in loaded.values()]
    assert not sides[0] & sides[1] and len(sides[1]) == len(loaded["validation"])
    for part in loaded.values():
        assert all(text.strip() for column in ("prompt", "reference") for text in part[column])
