"""Own files and hub data sets: what is read, what is renamed, and what each fault is called."""

import json
import os

import datasets
import huggingface_hub
import pytest
from datasets import Dataset

from alignkit.data import load_data
from alignkit.errors import DataError

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}.", "persona": "calm"} for i in range(40)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is also ALIGNKIT_DATA; the hub cannot be reached."""
    monkeypatch.setenv("ALIGNKIT_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path


def write(path, rows):
    data = Dataset.from_list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        data.to_parquet(path)
    elif path.suffix == ".csv":
        data.to_csv(path)
    elif path.suffix == ".tsv":
        data.to_csv(path, sep="\t")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "csv", "tsv"])
def test_every_format_gives_the_same_rows(folder, ending):
    path = write(folder / f"talk.{ending}", ROWS)
    loaded = load_data("files", path=path, columns={"prompt": "question", "reference": "answer"}, validation_share=0.25)
    assert {split: len(part) for split, part in loaded.items()} == {"train": 30, "validation": 10}
    assert set(loaded["train"].column_names) == {"prompt", "reference", "persona"}
    both = {(row["prompt"], row["reference"]) for part in loaded.values() for row in part}
    assert both == {(row["question"], row["answer"]) for row in ROWS}


def test_a_text_file_is_one_row_a_line_without_blank_ones(folder):
    (folder / "lines.txt").write_text("one\n\ntwo\nthree\n\n")
    loaded = load_data("files", path=str(folder / "lines.txt"), columns={"prompt": "text"})
    assert sorted([*loaded["train"]["prompt"], *loaded["validation"]["prompt"]]) == ["one", "three", "two"]


def test_the_held_out_rows_are_the_same_for_every_seed_and_order(folder):
    first = load_data("files", path=write(folder / "a.jsonl", ROWS), seed=1)["validation"]["question"]
    second = load_data("files", path=write(folder / "b.csv", ROWS[::-1]), seed=2)["validation"]["question"]
    assert set(first) == set(second)


def test_patterns_lists_and_folders_name_files(folder):
    one, two = write(folder / "part-1.jsonl", ROWS[:20]), write(folder / "part-2.csv", ROWS[20:])
    for path in ([one, two], str(folder / "part-*"), [str(folder / "part-1*"), two]):
        loaded = load_data("files", path=path)
        assert sum(map(len, loaded.values())) == 40
    write(folder / "set" / "train.jsonl", ROWS[:30])
    write(folder / "set" / "validation.csv", ROWS[30:])
    loaded = load_data("files", path=str(folder / "set"))
    assert (len(loaded["train"]), len(loaded["validation"])) == (30, 10)
    loaded = load_data("files", path=str(folder / "set"), validation=one)
    assert len(loaded["validation"]) == 20


def test_a_name_with_the_signs_of_a_pattern_is_read_literally(folder):
    path = write(folder / "odd[1]*.jsonl", ROWS)
    write(folder / "odd1.jsonl", ROWS[:3])
    assert sum(map(len, load_data("files", path=path).values())) == 40


def test_a_renamed_column_takes_the_place_of_one_of_that_name(folder):
    rows = [{"prompt": "old", "question": f"new {i}"} for i in range(4)]
    loaded = load_data("files", path=write(folder / "a.jsonl", rows), columns={"prompt": "question"})
    assert loaded["train"].column_names == ["prompt"]
    assert all(prompt.startswith("new") for prompt in loaded["train"]["prompt"])


def test_two_columns_can_change_places(folder):
    rows = [{"prompt": f"p{i}", "reference": f"r{i}"} for i in range(4)]
    mapping = {"prompt": "reference", "reference": "prompt"}
    loaded = load_data("files", path=write(folder / "a.jsonl", rows), columns=mapping)
    assert all(row["prompt"][0] == "r" and row["reference"][0] == "p" for row in loaded["train"])


def test_messages_come_through_as_they_are(folder):
    rows = [{"prompt": [{"role": "user", "content": f"hello {i}"}]} for i in range(5)]
    loaded = load_data("files", path=write(folder / "chat.jsonl", rows))
    assert loaded["train"][0]["prompt"][0]["role"] == "user"


def broken(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


def test_a_broken_parquet_file_is_named(folder):
    path = write(folder / "cut.parquet", ROWS)
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(DataError, match=r"cut\.parquet' cannot be read as parquet: .*damaged, cut short") as caught:
        load_data("files", path=path)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", r"empty\.jsonl' is empty \(0 bytes\)"),
        ("head.csv", b"prompt,reference\n", r"head\.csv' has no rows"),
        ("blank.txt", b"\n \n", r"blank\.txt has no rows"),
        ("half.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"half\.jsonl' cannot be read as json"),
        ("hole.csv", b"prompt,n\na,1\n,2\nb,3\n", r"hole\.csv: row 1 has no prompt \(got None\)"),
        ("words.docx", b"PK", r"ends in '\.docx', which is no known format; known: \.parquet"),
        ("alone.txt", b"one\n", "at least 2 distinct rows, got 1"),
    ],
)
def test_each_fault_of_a_file_has_its_message(folder, name, content, said):
    with pytest.raises(DataError, match=said):
        load_data("files", path=broken(folder, name, content))


def test_paths_that_lead_nowhere_say_what_there_is(folder):
    with pytest.raises(DataError, match="there is no file"):
        load_data("files", path=str(folder / "none.csv"))
    with pytest.raises(DataError, match="no file fits the pattern"):
        load_data("files", path=str(folder / "*.csv"))
    with pytest.raises(DataError, match="list of files is empty"):
        load_data("files", path=[])
    write(folder / "other.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no file train\.\* of a known format.*it has: other\.jsonl"):
        load_data("files", path=str(folder))


def test_a_mapping_to_a_missing_column_is_corrected(folder):
    path = write(folder / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no column 'questions'; it has: .*Did you mean 'questions' -> 'question'"):
        load_data("files", path=path, columns={"prompt": "questions"})
    with pytest.raises(DataError, match="twice"):
        load_data("files", path=path, columns={"prompt": "answer", "reference": "answer"})


def test_files_of_different_kinds_are_not_mixed(folder):
    one, two = write(folder / "a.jsonl", ROWS), write(folder / "b.jsonl", [{"prompt": "x"}, {"prompt": "y"}])
    with pytest.raises(DataError, match="different columns"):
        load_data("files", path=[one, two])
    three = write(folder / "c.jsonl", [{"question": [1], "answer": "a", "persona": "b"}])
    with pytest.raises(DataError, match="differ in type"):
        load_data("files", path=[one, three])
    with pytest.raises(DataError, match=r"validation part of .* lacks the column prompt"):
        load_data("files", path=two, validation=one)


def test_a_hub_name_is_looked_for_in_the_folder_first(folder):
    write(folder / "talk" / "train.parquet", ROWS[:30])
    write(folder / "talk" / "dev.parquet", ROWS[30:])
    held = load_data("hub", name="someone/talk", columns={"prompt": "question"})
    assert sum(map(len, held.values())) == 30, "only a split called validation is taken unasked"
    named = load_data("hub", name="someone/talk", validation_split="dev")
    assert len(named["validation"]) == 10
    with pytest.raises(DataError, match="has no split 'valid'; it has: dev, train"):
        load_data("hub", name="talk", validation_split="valid")
    with pytest.raises(DataError, match="has no split 'training'; it has: dev, train"):
        load_data("hub", name="talk", train_split="training")


def test_offline_the_message_says_where_the_data_could_have_been(folder):
    with pytest.raises(DataError, match=r"has no imdb/train\.parquet.*HF_HUB_OFFLINE is set.*Set ALIGNKIT_DATA"):
        load_data("imdb")
    with pytest.raises(DataError, match="the hub did not give split 'train' of 'no/such'"):
        load_data("hub", name="no/such")
