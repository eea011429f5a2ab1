"""IMDB and SST-2: on made-up rows everywhere, and on the real sets where ALIGNKIT_DATA has them."""

import os
from pathlib import Path

import pytest
from datasets import Dataset

from alignkit.data import known_columns, load_data
from alignkit.data.imdb import clean, opening
from alignkit.errors import DataError

WORDS = ["the", "film", "was", "long", "and", "we", "sat", "in", "a", "room", "with", "many", "people", "who"]
IMDB_FORMS = ["prompts", "classification", "text"]

HAVE_DATA = os.environ.get("ALIGNKIT_DATA", "")
needs_imdb = pytest.mark.skipif(
    not (Path(HAVE_DATA) / "imdb" / "train.parquet").is_file() or not HAVE_DATA, reason="ALIGNKIT_DATA has no imdb"
)
needs_sst2 = pytest.mark.skipif(
    not (Path(HAVE_DATA) / "sst2" / "train.parquet").is_file() or not HAVE_DATA, reason="ALIGNKIT_DATA has no sst2"
)


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """60 reviews of about 30 words, each twice with other line breaks, and one of three words."""
    texts = [f"Review {i} begins.<br /><br />" + " ".join([*WORDS, str(i), *WORDS]) for i in range(60)]
    rows = [{"text": text, "label": i % 2, "rating": 1} for i, text in enumerate(texts)]
    rows += [{**row, "text": row["text"].replace("<br /><br />", "  <BR>")} for row in rows]
    rows.append({"text": "far too short", "label": 0, "rating": 1})
    (tmp_path / "imdb").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "imdb" / "train.parquet")
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    return rows


def test_prompts_are_the_first_words_and_references_the_next(reviews):
    loaded = load_data("imdb", prompt_words=5, reference_words=7, distinct_prompts=False)
    assert loaded["train"].column_names == ["prompt", "reference", "label"]
    originals = {clean(row["text"]): row["label"] for row in reviews}
    assert sum(map(len, loaded.values())) == 60, "copies and the short review are gone"
    for row in [*loaded["train"], *loaded["validation"]]:
        assert len(row["prompt"].split()) == 5 and len(row["reference"].split()) == 7
        assert row["reference"].startswith(" ") and not row["prompt"].endswith(" ")
        (source,) = [text for text in originals if text.startswith(row["prompt"] + row["reference"])]
        assert row["label"] == originals[source]


def test_no_review_is_on_both_sides_whatever_form_and_seed(reviews):
    def number(text):
        return int(text.split()[1])

    prompts = load_data("imdb", prompt_words=5, reference_words=7, seed=1)
    whole = load_data("imdb", form="text", seed=2)
    cuts = load_data("imdb", form="classification", segments="opening", segment_words=[5, 9], seed=3)
    for split in ("train", "validation"):
        ids = {number(text) for text in whole[split]["text"] if text.startswith("Review")}
        assert {number(text) for text in prompts[split]["prompt"]} == ids
        assert {number(text) for text in cuts[split]["text"]} <= ids
    assert len(prompts["validation"]) == 6


def test_held_out_prompts_are_new_unless_asked_otherwise(reviews):
    with pytest.raises(DataError, match="no row is left in 'validation'"):
        load_data("imdb", prompt_words=1, reference_words=5)
    loaded = load_data("imdb", prompt_words=1, reference_words=5, distinct_prompts=False)
    assert set(loaded["validation"]["prompt"]) == {"Review"}


def test_segments_have_the_lengths_and_the_words_of_their_review(reviews):
    loaded = load_data("imdb", form="classification", segment_words=[6, 11], seed=4)
    texts = [clean(row["text"]) for row in reviews]
    lengths = [len(text.split()) for text in loaded["train"]["text"]]
    assert min(lengths) >= 6 and max(lengths) <= 11 and len(set(lengths)) > 1
    assert all(any(cut in text for text in texts) for cut in loaded["train"]["text"])
    starts = sum(cut.startswith("Review") for cut in loaded["train"]["text"])
    assert starts < len(lengths) / 2, "segments are cut from anywhere"
    at_start = load_data("imdb", form="classification", segment_words=[6, 11], segments="opening")
    assert all(cut.startswith("Review") for cut in at_start["train"]["text"])


def test_reviews_too_short_for_the_settings_leave_no_row(reviews):
    with pytest.raises(DataError, match="no row is left"):
        load_data("imdb", prompt_words=900)


@pytest.mark.parametrize("form", IMDB_FORMS)
def test_the_same_settings_give_the_same_rows(reviews, form):
    first, again = (load_data("imdb", form=form, prompt_words=5, reference_words=7, seed=7) for _ in range(2))
    other = load_data("imdb", form=form, prompt_words=5, reference_words=7, seed=8)
    assert list(first["train"]) == list(again["train"])
    assert list(first["train"]) != list(other["train"])
    assert first["train"].column_names == known_columns("imdb", form=form)


def test_breaks_of_any_spelling_become_one_space():
    assert clean(" a<br>b <br/> c<BR />\n\nd ") == "a b c d"
    assert opening("a b c", 2, 2)["reference"] == ""


def test_the_wrong_file_under_the_right_name_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "imdb").mkdir()
    Dataset.from_dict({"sentence": ["a"], "label": [0]}).to_parquet(tmp_path / "imdb" / "train.parquet")
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="imdb lacks the column text; it has: sentence, label"):
        load_data("imdb")


@pytest.fixture
def phrases(tmp_path, monkeypatch):
    train = [("good film ", 1), ("good  film", 1), ("a good film indeed", 1), ("odd", 0), ("odd", 1), ("bad one", 0)]
    validation = [("bad one", 0), ("fine", 1)]
    (tmp_path / "sst2").mkdir()
    for split, rows in (("train", train), ("validation", validation)):
        data = Dataset.from_list([{"sentence": text, "label": label} for text, label in rows])
        data.to_parquet(tmp_path / "sst2" / f"{split}.parquet")
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))


def test_sst2_drops_repeats_contradictions_and_what_validation_has(phrases):
    loaded = load_data("sst2")
    assert sorted(loaded["train"]["text"]) == ["a good film indeed", "good film"]
    assert sorted(loaded["validation"]["text"]) == ["bad one", "fine"]
    assert list(load_data("sst2", min_words=3)["train"]["text"]) == ["a good film indeed"]
    assert len(load_data("sst2", min_words=3)["validation"]) == 2


def assert_sound(loaded, *identity):
    """Two splits that share no text and have neither nulls nor empty texts."""
    sides = [set(zip(*(part[column] for column in identity), strict=True)) for part in loaded.values()]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    for part in loaded.values():
        for column in part.column_names:
            assert all(value is not None and value != "" for value in part[column])


@needs_imdb
@pytest.mark.parametrize("form", IMDB_FORMS)
def test_real_imdb_is_whole_clean_and_split(form):
    loaded = load_data("imdb", form=form)
    assert_sound(loaded, *(["prompt", "reference"] if form == "prompts" else ["text"]))
    assert 22_000 < len(loaded["train"]) < 22_500 and 2_400 < len(loaded["validation"]) < 2_500
    text = loaded["validation"][:]["reference" if form == "prompts" else "text"]
    assert not any("<br" in value for value in text)
    if form != "text":
        for part in loaded.values():
            assert 0.48 < sum(part["label"]) / len(part) < 0.53
    if form == "prompts":
        assert not set(loaded["train"]["prompt"]) & set(loaded["validation"]["prompt"])


@needs_sst2
def test_real_sst2_is_clean_and_split():
    loaded = load_data("sst2", min_words=4)
    assert_sound(loaded, "text")
    assert len(loaded["validation"]) == 872
    assert min(len(text.split()) for text in loaded["train"]["text"]) == 4
    assert set(loaded["train"]["label"]) == {0, 1}
