"""What systems said to the same prompts is published side by side, and only then."""

import json

import pytest
from test_results_page import script

add_replies = script("add_replies")


@pytest.fixture
def files(tmp_path):
    """An evaluation's file and a generation's, of the same prompts."""
    prompts = ["hello\nhow are you?\n", "bye\n"]
    judged = [
        {"prompt": prompt, "completion": " fine", "reference": f"no {number}"} for number, prompt in enumerate(prompts)
    ]
    (tmp_path / "one.json").write_text(json.dumps({"rows": judged}))
    generated = [{"prompt": prompt, "completion": "well"} for prompt in prompts]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in generated))
    return {"One": tmp_path / "one.json", "Two": tmp_path / "two.jsonl"}


def test_replies_stand_side_by_side_with_the_datas_own_last(files, tmp_path):
    target = add_replies.publish(files, "study", None, False, tmp_path)
    assert json.loads(target.read_text()) == [
        {"prompt": ["hello", "how are you?"], "replies": {"One": "fine", "Two": "well", "the data's reply": "no 0"}},
        {"prompt": ["bye"], "replies": {"One": "fine", "Two": "well", "the data's reply": "no 1"}},
    ]


def test_the_first_are_taken_and_added_behind_what_is_there(files, tmp_path):
    add_replies.publish(files, "study", 1, False, tmp_path)
    target = add_replies.publish(files, "study", 1, True, tmp_path)
    one, same = json.loads(target.read_text())
    assert one == same and one["prompt"] == ["hello", "how are you?"]
    assert len(json.loads(add_replies.publish(files, "study", 1, False, tmp_path).read_text())) == 1


def test_other_prompts_are_refused(files, tmp_path):
    files["Two"].write_text(json.dumps({"prompt": "bye\n", "completion": "well"}) + "\n")
    with pytest.raises(SystemExit, match=r"One \(2 rows\) and Two \(1 rows\) did not get the same prompts"):
        add_replies.publish(files, "study", None, False, tmp_path)


def test_conversations_keep_their_roles_and_the_datas_reply_may_come_from_any_file():
    prompt = [{"role": "user", "content": "hi"}]
    said = [{"role": "assistant", "content": "hello "}]
    systems = {
        "One": [{"prompt": prompt, "completion": said}],
        "Two": [{"prompt": prompt, "completion": said, "reference": said}],
    }
    assert add_replies.side_by_side(systems, None) == [
        {"prompt": ["user: hi"], "replies": {"One": "hello", "Two": "hello", "the data's reply": "hello"}}
    ]


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"other\.json has no rows"):
        add_replies.rows_of(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--first", "0", "One=one.json"], "expected 1 or more"), (["One=one.json", "One=one.json"], "stands twice")],
)
def test_what_would_lose_replies_is_refused(arguments, expected, files, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["add_replies.py", "--study", "study", *arguments])
    with pytest.raises(SystemExit):
        add_replies.main()
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["no-file", "One=no/such.json", "=one.json"])
def test_what_is_no_file_is_named(argument, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["add_replies.py", "--study", "study", argument])
    with pytest.raises(SystemExit):
        add_replies.main()
    assert "expected NAME=FILE with a file that exists" in capsys.readouterr().err
