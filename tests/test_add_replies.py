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
    with pytest.raises(SystemExit, match="One and Two did not get the same prompts"):
        add_replies.publish(files, "study", None, False, tmp_path)


def test_messages_keep_their_roles():
    assert add_replies.turns([{"role": "user", "content": "hi"}]) == ["user: hi"]


@pytest.mark.parametrize("argument", ["no-file", "One=no/such.json", "=one.json"])
def test_what_is_no_file_is_named(argument, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["add_replies.py", "--study", "study", argument])
    with pytest.raises(SystemExit):
        add_replies.main()
    assert "expected NAME=FILE with a file that exists" in capsys.readouterr().err
