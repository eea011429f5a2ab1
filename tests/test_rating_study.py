"""What is rated: systems read and matched, questions, orders, and a study that cannot be mixed with another."""

import json
import sys

import pytest
from rating_study import SYSTEMS, small_study

from alignkit.cli import main
from alignkit.errors import ConfigError, DataError
from alignkit.json_lines import append_json_lines
from alignkit.rating.questions import Questionnaire, read_questionnaire
from alignkit.rating.store import Ratings
from alignkit.rating.study import STUDY, clean_name, open_study, read_study
from alignkit.rating.systems import match, read_system, sample, turns_of


def rows(name: str, prompts, **more):
    return [{"prompt": prompt, "completion": f"{name} on {prompt!r}", **more} for prompt in prompts]


def test_a_runs_folder_gives_its_completions_after_training(tmp_path):
    phases = [{"phase": phase, **row} for phase in ("before", "train", "after") for row in rows(phase, ["a", "b"])]
    append_json_lines(tmp_path / "samples.jsonl", phases)
    assert [row["completion"] for row in read_system(tmp_path)] == ["after on 'a'", "after on 'b'"]
    judged = [{"prompt": "a", "completion": "found", "rewards": {}}]
    (tmp_path / "judged.json").write_text(json.dumps({"rows": judged}))
    assert read_system(tmp_path / "judged.json") == judged


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is no file or folder"),
        ([], "is empty"),
        ([{"phase": "before", "prompt": "a", "completion": "b"}], "has not come to its end"),
        ([{"prompt": "a", "text": "b"}], "row 1 has no completion; it has: prompt, text"),
        ([{"prompt": "a", "completion": 3}], "row 1: completion is a text or a list of messages, got 3"),
    ],
)
def test_a_file_that_cannot_be_rated_says_why(tmp_path, content, fault):
    file = tmp_path / "made.jsonl"
    if content is not None:
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    with pytest.raises(DataError, match=fault):
        read_system(file)
    with pytest.raises(DataError, match=r"has no samples\.jsonl"):
        read_system(tmp_path)


def test_prompts_are_matched_by_their_turns_plain_or_in_messages():
    said = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "How are you?"}]
    plain = [{"prompt": "Hello.\nHow are you?\n", "completion": " Fine. "}, {"prompt": "Only here", "completion": "x"}]
    spoken = [{"prompt": said, "completion": [{"role": "assistant", "content": "Well."}]}]
    [item], remarks = match({"one": plain, "two": spoken})
    assert item.responses == {"one": "Fine.", "two": "Well."}
    assert item.turns == (("listener", "Hello."), ("speaker", "How are you?"))
    assert remarks == ["prompts that all systems have: 1; the others are left out"]


def test_turns_keep_who_spoke_also_with_instructions():
    prompt = [{"role": "system", "content": "Be kind: always."}, {"role": "user", "content": "a: b"}]
    assert turns_of(prompt) == (("system", "Be kind: always."), ("speaker", "a: b"))


def test_the_reference_can_be_a_system_and_rows_without_one_are_left_out():
    with_it = [{"prompt": "a", "completion": "x", "reference": "r"}, {"prompt": "b", "completion": "y"}]
    items, remarks = match({"one": with_it}, gold=True)
    assert [item.responses for item in items] == [{"one": "x", "gold": "r"}]
    assert remarks == ["prompts left out that have no reference: 1"]
    with pytest.raises(DataError, match="--gold needs a reference"):
        match({"one": rows("one", ["a"])}, gold=True)
    with pytest.raises(ConfigError, match="give that system another name"):
        match({"gold": with_it}, gold=True)


def test_a_prompt_that_comes_twice_counts_once_and_it_is_said():
    items, remarks = match({"one": rows("one", ["a", "a"]), "two": rows("two", ["a"])})
    assert len(items) == 1 and remarks == ["one: rows left out that repeat a prompt: 1"]


def test_what_has_nothing_in_common_is_refused_with_the_counts():
    with pytest.raises(DataError, match=r"no prompt is common to all systems \(different prompts: one 2, two 1\)"):
        match({"one": rows("one", ["a", "b"]), "two": rows("two", ["c"])})
    with pytest.raises(ConfigError, match="two systems or more"):
        match({"one": rows("one", ["a"])})


def test_the_sample_depends_on_the_seed_and_not_on_the_order_of_the_files():
    prompts = [f"prompt {i}" for i in range(30)]
    ways = [prompts, prompts[::-1]]
    items = [match({"one": rows("one", way), "two": rows("two", prompts)})[0] for way in ways]
    assert sample(items[0], 10, 1) == sample(items[1], 10, 1) != sample(items[0], 10, 2)
    assert len(set(item.turns for item in sample(items[0], 10, 1))) == 10
    with pytest.raises(ConfigError, match="at least 1"):
        sample(items[0], 0, 1)


@pytest.mark.parametrize("together", [False, True])
def test_each_rater_has_an_order_of_their_own_that_stays(together):
    study = small_study(20, together=together)
    everything = {(item, system) for item in range(20) for system in SYSTEMS}
    for name in ("Ann", "Bo"):
        places = study.places(name)
        assert len(places) == (20 if together else 60)
        assert {(place.item, system) for place in places for system in place.systems} == everything
    assert study.places("Ann") == study.places(" ANN ") != study.places("Bo")
    assert study.places("Ann") != small_study(20, together=together, seed=2).places("Ann")


def test_no_system_comes_first_more_often_than_by_chance():
    study = small_study(1, together=True)
    first = [study.places(f"rater {i}")[0].systems[0] for i in range(600)]
    # 200 each are expected; five standard deviations are 58
    assert all(abs(first.count(system) - 200) < 58 for system in SYSTEMS)


def test_a_study_comes_back_as_it_was_and_another_is_refused(tmp_path):
    study = small_study()
    assert open_study(tmp_path, study) == open_study(tmp_path, study) == open_study(tmp_path) == study
    assert read_study(tmp_path).fingerprint() == study.fingerprint()
    with pytest.raises(ConfigError, match=r"holds another study \(different: seed\)"):
        open_study(tmp_path, small_study(seed=2))
    (tmp_path / STUDY).write_text('{"format": 1}')
    with pytest.raises(DataError, match="is damaged"):
        read_study(tmp_path)
    with pytest.raises(DataError, match=r"no study was begun there"):
        read_study(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "fault"), [("  ", "give a name"), ("x" * 61, "at most 60"), ("a\x07b", "control")])
def test_a_name_that_cannot_be_kept_is_refused(name, fault):
    with pytest.raises(ConfigError, match=fault):
        clean_name(name)


def test_questions_of_a_file_take_the_place_of_the_three(tmp_path):
    file = tmp_path / "questions.yaml"
    file.write_text("points: 7\nlistener: Doctor\nquestions:\n  - {name: Wit, ask: 'Is the {listener} funny?'}\n")
    asked = read_questionnaire(file)
    assert (asked.names, asked.points, asked.filled(asked.questions[0].ask)) == (["Wit"], 7, "Is the Doctor funny?")
    assert Questionnaire().names == ["Empathy", "Relevance", "Fluency"]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("questions: []", ["expected a list of questions"]),
        ("- a", ["expected a mapping with 'questions'"]),
        ("questions: [", ["not valid YAML"]),
        ("questions: [{name: a}]\npoint: 3", ["key 'point'; did you mean 'points'?", "question 1: ask is missing"]),
        ("questions: [{name: a, ask: 3}, text]\npoints: 10", ["ask must be text", "question 2: exp", "from 2 to 9"]),
        ("questions: [{name: a, ask: b}, {name: a, ask: c}]", ["two questions have one name"]),
    ],
)  # fmt: skip
def test_questions_that_cannot_be_asked_are_refused_with_every_fault(tmp_path, text, faults):
    file = tmp_path / "questions.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_questionnaire(file)
    assert all(fault in str(refused.value) for fault in faults)


def test_a_rater_who_comes_back_sees_what_is_left(tmp_path):
    """The order is the study's, the answers are the file's: together they say what is open."""
    study = open_study(tmp_path, small_study())
    places = study.places("Ann")
    with Ratings(tmp_path, study) as ratings:
        for place in places[:5]:
            ratings.add("Ann", [((place.item, place.systems[0], name), 3) for name in study.questionnaire.names])
    with Ratings(tmp_path, open_study(tmp_path)) as ratings:
        known = {(item, system) for item, system, _ in ratings.answers("Ann")}
    assert known == {(place.item, place.systems[0]) for place in places[:5]}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["a.jsonl", "b.jsonl"], "rate needs --output"),
        (["--output", "out"], "no study was begun there"),
        (["--summary", "out", "a.jsonl"], "--summary FOLDER goes alone"),
        (["--summary", "out"], "no study was begun there"),
        (["x/a.jsonl", "y/a.jsonl", "--output", "out"], "two systems are called 'a'"),
        (["a=missing.jsonl", "b=missing.jsonl", "--output", "out"], "missing.jsonl is no file or folder"),
    ],
)
def test_mistakes_on_the_command_line_end_with_a_message(arguments, fault, tmp_path, monkeypatch, capsys):
    pytest.importorskip("starlette", reason="part of the rate extra")
    monkeypatch.chdir(tmp_path)
    assert main(["rate", *arguments]) == 2
    assert fault in capsys.readouterr().err


def test_without_its_packages_the_page_says_how_to_install_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.delitem(sys.modules, "alignkit.rating.page", raising=False)
    assert main(["rate", "--output", str(tmp_path)]) == 2
    assert "pip install -e '.[rate]'" in capsys.readouterr().err
