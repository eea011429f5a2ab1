"""The table of data sets, their settings, and held-out splits."""

import dataclasses
import inspect
import random
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data import DATASETS, data_problems, data_settings, known_columns, load_data
from alignkit.data.splitting import held_out, hold_out, limited
from alignkit.errors import DataError
from alignkit.models.from_scratch import CausalSpec, ClassifierSpec, Seq2SeqSpec
from alignkit.settings import misfit, setting_problems


@pytest.mark.parametrize("name", DATASETS)
def test_every_setting_of_every_data_set_is_typed_and_described(name):
    signature = data_settings(name)
    load = inspect.getdoc(__import__(DATASETS[name].module, fromlist=["load"]).load)
    for setting, parameter in signature.parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"{setting}:" in load, f"{name}.{setting} is not explained"
    assert DATASETS[name].description


@pytest.mark.parametrize("name", DATASETS)
def test_the_page_on_data_lists_every_setting_with_its_default(name):
    page = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| *(?:`([^|]*)`)? *\|", section, flags=re.M))
    parameters = data_settings(name).parameters
    required = inspect.Parameter.empty
    assert listed == {n: "" if p.default is required else repr(p.default) for n, p in parameters.items()}


@pytest.mark.parametrize(("column", "kind"), enumerate([CausalSpec, Seq2SeqSpec, ClassifierSpec], 1))
def test_the_page_on_data_lists_the_shape_of_a_new_model(column, kind):
    page = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.split("\n## Models from nothing\n")[1]
    rows = [
        [cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in section.splitlines() if row[:3] == "| `"
    ]
    listed = {row[0]: row[column] for row in rows if row[column]}
    assert listed == {
        field.name: f"{field.default:g}" if type(field.default) in (int, float) else str(field.default).lower()
        for field in dataclasses.fields(kind)
    }


def test_an_unknown_data_set_is_met_with_the_nearest_name():
    with pytest.raises(DataError, match=r"no data set 'imbd'; did you mean 'imdb'\?.*use: hub.*use: files"):
        load_data("imbd")
    assert len(data_problems("imbd", {"anything": 1})) == 1
    with pytest.raises(DataError, match="imdb"):
        data_settings("imbd")


def test_all_mistakes_in_settings_are_found_at_once_and_without_data():
    problems = data_problems("imdb", {"prompt_word": 3, "form": "prompt", "train_size": "many"})
    assert len(problems) == 3
    assert "did you mean 'prompt_words'?" in problems[0]
    assert "'prompts' or 'classification' or 'text'" in problems[1]
    assert "a whole number or null" in problems[2]


def test_a_setting_without_default_is_asked_for():
    assert data_problems("files", {}) == ["data set 'files' needs the setting 'path'"]
    assert data_problems("hub", {"train_size": 3}) == ["data set 'hub' needs the setting 'name'"]


@pytest.mark.parametrize(
    ("name", "given_settings", "said"),
    [
        ("imdb", {"prompt_words": 0}, "prompt_words must be at least 1"),
        ("imdb", {"segment_words": [9, 3]}, "fewest <= most"),
        ("sst2", {"min_words": 0}, "min_words must be at least 1"),
        ("quickstart", {"train_size": 10**6}, "at most 16000 rows"),
        ("image_coco", {"reference_words": 0}, "reference_words must be at least 1"),
        ("squad", {"sentences": -1}, "sentences must be at least 0"),
        ("files", {"path": "x.csv", "validation_share": 1.0}, "between 0 and 1"),
        ("hub", {"name": "x/y", "validation_size": 0}, "validation_size must be at least 1"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_before_anything_is_read(name, given_settings, said):
    (problem,) = data_problems(name, given_settings)
    assert said in problem
    with pytest.raises(DataError, match=r"at (least|most)|between|fewest"):
        load_data(name, **given_settings)


@pytest.mark.parametrize("form", ["prompts", "classification", "text"])
def test_known_columns_are_the_columns_that_come(form):
    loaded = load_data("quickstart", form=form, train_size=8, validation_size=4)
    assert known_columns("quickstart", form=form) == loaded["train"].column_names == loaded["validation"].column_names
    assert known_columns("files", path="anything.csv") is None


@given(
    keys=st.lists(st.text(max_size=3), min_size=2, max_size=60).filter(lambda keys: len(set(keys)) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_a_split_is_a_function_of_the_key_alone(keys, share, seed):
    mask = held_out(keys, share)
    side = dict(zip(keys, mask, strict=True))
    assert [side[key] for key in keys] == mask, "equal keys on both sides"
    assert 0 < sum(side.values()) < len(side)
    assert abs(sum(side.values()) - share * len(side)) <= 1
    shuffled = random.Random(seed).sample(keys, len(keys))
    assert held_out(shuffled, share) == [side[key] for key in shuffled]


def test_rows_of_one_prompt_stay_together():
    rows = [{"prompt": f"prompt {i % 10}", "answer": i} for i in range(100)]
    splits = hold_out(Dataset.from_list(rows), 0.3)
    assert not set(splits["train"]["prompt"]) & set(splits["validation"]["prompt"])
    assert len(splits["train"]) == 70 and len(splits["validation"]) == 30


def test_conversational_prompts_can_be_split_too():
    rows = [{"prompt": [{"role": "user", "content": f"hello {i}"}]} for i in range(10)]
    splits = hold_out(Dataset.from_list(rows), 0.2)
    assert len(splits["validation"]) == 2


def test_one_distinct_row_cannot_be_split():
    with pytest.raises(DataError, match="at least 2 distinct rows, got 1"):
        held_out(["a", "a"], 0.5)
    with pytest.raises(DataError, match="between 0 and 1"):
        held_out(["a", "b"], 1.5)


def test_a_smaller_size_is_a_part_of_a_larger_one():
    splits = DatasetDict(
        train=Dataset.from_dict({"text": [str(i) for i in range(50)]}),
        validation=Dataset.from_dict({"text": ["a", "b"]}),
    )
    small, large = (limited(splits, size, None, seed=3)["train"]["text"] for size in (5, 20))
    assert list(large)[:5] == list(small)
    assert limited(splits, 99, None, seed=0)["train"].num_rows == 50
    assert list(limited(splits, 5, None, seed=4)["train"]["text"]) != list(small)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, True),
        (True, int, False),
        (3, float, True),
        ("3", float, False),
        (None, int | None, True),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        (["a"], str | list[str], True),
        ([1], str | list[str], False),
        ({"prompt": "q"}, dict[str, str], True),
        ({"prompt": 1}, dict[str, str], False),
        ("a", Literal["a", "b"], True),
        (1, Literal[True], False),
        (object(), Any, True),
    ],
)
def test_values_fit_their_annotation(value, hint, expected):
    assert (misfit(value, hint) is None) is expected


def test_problems_speak_in_words():
    known = {"size": int, "pair": tuple[int, int], "names": dict[str, str] | None}
    assert setting_problems("the house", {"size": 1.5, "pair": [1, 2, 3], "names": "a"}, known) == [
        "the house: size: expected a whole number, got the number 1.5",
        "the house: pair: expected a list of 2 (a whole number, a whole number), got a list",
        "the house: names: expected a mapping from text to text or null, got the text 'a'",
    ]
