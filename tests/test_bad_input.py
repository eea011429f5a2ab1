"""Bad input ends a run before it starts, with a message that says what was given, what was expected and what to do."""

import json

import pytest

from alignkit.cli import main
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

RECIPE = """
trainer: reinforce
model: {model}
data: {{use: files, path: {data}, validation_share: 0.25}}
rewards:
  {reward}
training: {{max_steps: 1, per_device_train_batch_size: 4, max_completion_length: 4, output_dir: {run}}}
"""
REWARDS = '''
"""Rewards with every fault that the contract forbids."""


def fine(completions, **columns):
    return [float(len(text)) for text in completions]


def needs_persona(completions, *, persona, **columns):
    return [1.0 for _ in completions]


def raises(completions, **columns):
    raise KeyError("lexicon entry 'good'")


def infinite(completions, **columns):
    return [float("inf") for _ in completions]


def undefined(completions, **columns):
    return [float("nan") for _ in completions]


def too_few(completions, **columns):
    return [1.0]


def text(completions, **columns):
    return ["good" for _ in completions]
'''


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A model, a classifier without a head, and an empty model folder."""
    folder = tmp_path_factory.mktemp("shelf")
    tokenizer = tiny_tokenizer()
    tiny_causal_lm().save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    encoder = tiny_classifier()
    encoder.base_model.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    (folder / "hollow").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "hollow" / name).write_bytes((folder / "lm" / name).read_bytes())
    (folder / "faulty.py").write_text(REWARDS)
    rows = [{"prompt": "the movie is", "reference": "good ."}] * 4 + [
        {"prompt": "a story of", "reference": "bad ."}
    ] * 4
    rows += [{"prompt": f"the {word} is", "reference": "fine ."} for word in ("food", "film", "plot", "end")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    return folder


def said_of(shelf, tmp_path, capsys, *, model="lm", data="rows.jsonl", reward="fine", extra=(), options=()):
    """Exit code and message of `alignkit train` on the recipe."""
    if ":" not in reward:
        reward = f"{reward}: {{use: '{shelf}/faulty.py:{reward}'}}"
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=shelf / model, data=shelf / data, reward=reward, run=tmp_path / "run"))
    code = main(["train", str(path), *extra, *options])
    return code, capsys.readouterr().err


FAULTS = {
    "a reward that raises": ({"reward": "raises"}, ["reward 'raises'", "KeyError", "lexicon entry 'good'"]),
    "a reward that returns inf": ({"reward": "infinite"}, ["reward 'infinite'", "inf", "the"]),
    "a reward that returns nan": ({"reward": "undefined"}, ["reward 'undefined'", "nan"]),
    "a reward of the wrong length": (
        {"reward": "too_few"},
        ["reward 'too_few' returned a list of 1 for 2 completions"],
    ),
    "a reward that returns text": ({"reward": "text"}, ["reward 'text'", "good"]),
    "a missing column": (
        {"reward": "needs_persona"},
        ["reward 'needs_persona' needs column 'persona'; the data has: prompt, reference"],
    ),
    "a misspelt key": ({"extra": ["training.learning_rat=1"]}, ["'learning_rat'", "did you mean 'learning_rate'?"]),
    "a model without weights": ({"model": "hollow"}, ["no weights", "save_model"]),
    "an encoder as a policy": ({"model": "encoder"}, ["encoder", "writes no text"]),
    "a model that is not there": ({"model": "nowhere"}, ["there is no folder", "first run the recipe"]),
    "empty data": ({"data": "empty.jsonl"}, ["empty.jsonl", "is empty"]),
    "a broken parquet": ({"data": "broken.parquet"}, ["broken.parquet"]),
    "data that are not there": ({"data": "nothing.jsonl"}, ["nothing.jsonl"]),
    "an unknown reward": ({"reward": "sentimnt: {}"}, ["no reward is called 'sentimnt'", "Did you mean 'sentiment'?"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_message_names_the_fault_and_nothing_is_written(fault, shelf, tmp_path, capsys):
    settings, expected = FAULTS[fault]
    code, said = said_of(shelf, tmp_path, capsys, **settings)
    assert code == 2
    for part in expected:
        assert part in said, f"missing {part!r} in:\n{said}"
    assert "Traceback" not in said
    assert not list((tmp_path / "run").glob("*.json*")), "the run must not have begun"


def test_a_fresh_classifier_head_is_no_reward(shelf, tmp_path, capsys):
    code, said = said_of(shelf, tmp_path, capsys, reward=f"sentiment: {{model: {shelf}/encoder}}")
    assert code == 2
    assert "no trained classifier" in said and "would be random numbers" in said and "classifier.yaml" in said


@pytest.mark.parametrize("fault", ["a reward that raises", "a missing column", "empty data", "a broken parquet"])
def test_a_dry_run_finds_them_too(fault, shelf, tmp_path, capsys):
    settings, expected = FAULTS[fault]
    code, said = said_of(shelf, tmp_path, capsys, **settings, options=["--dry-run"])
    assert code == 2 and expected[0] in said


def test_a_dry_run_finds_a_model_without_weights(shelf, tmp_path, capsys):
    code, said = said_of(shelf, tmp_path, capsys, model="hollow", options=["--dry-run"])
    assert code == 2 and "has no weights" in said


def test_code_in_a_file_is_refused_on_request(shelf, tmp_path, capsys):
    code, said = said_of(shelf, tmp_path, capsys, options=["--no-code"])
    assert code == 2 and "is refused" in said and "faulty.py:fine" in said


def test_the_traceback_is_there_for_those_who_want_it(shelf, tmp_path, capsys, monkeypatch):
    from alignkit.errors import RewardCallError

    monkeypatch.setenv("ALIGNKIT_TRACEBACK", "1")
    with pytest.raises(RewardCallError):
        said_of(shelf, tmp_path, capsys, reward="raises")


def test_without_a_fault_the_same_recipe_runs(shelf, tmp_path, capsys):
    """What the messages above stop is only the fault."""
    code, said = said_of(shelf, tmp_path, capsys, extra=["training.num_generations=2"])
    assert code == 0, said
    assert (tmp_path / "run" / "report.html").is_file()
