"""The card of a finished run: it is there, true, and its quick start runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers.utils import logging

from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.tiny import WORDS as VOCABULARY
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_seq2seq, tiny_tokenizer
from alignkit.recipe import TRAINERS, load_recipe
from alignkit.report.reading import read_run
from alignkit.report.words import written
from alignkit.run import run_recipe
from alignkit.run.card import METHODS, _hub_data, render_card, write_card

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
WORDS = {"text": ["the film was good .", "the plot was bad ."] * 8}
TURNS = {"prompt": ["the film was", "i loved"] * 8, "reference": ["good .", "it ."] * 8}
PAIRS = {**WORDS, "text_pair": ["good", "bad"] * 8, "label": [0, 1] * 8}
CHATS = {
    "messages": [
        [{"role": "user", "content": "film ?"}, {"role": "assistant", "content": word}] for word in VOCABULARY[:16]
    ]
}
SCRATCH = {"hidden_size": 16, "vocab_size": 300}
ADAPTER = {"r": 2, "target_modules": "all-linear"}

# name -> trainer, base, data, further sections
KINDS = {
    "plain": ("sft", "gpt2", WORDS, {}),
    "chat": ("sft", "chat", CHATS, {}),
    "adapter": ("sft", "gpt2", WORDS, {"adapter": ADAPTER}),
    "policy": ("ppo", "gpt2", TURNS, {"rewards": {"repetition": {"weight": 2}, "length": {"target": 5}}}),
    "adapted policy": ("ppo", "gpt2", TURNS, {"rewards": {"repetition": {}}, "adapter": ADAPTER}),
    "encoder-decoder": ("seq2seq", "t5", TURNS, {}),
    "adapted encoder-decoder": ("seq2seq", "t5", TURNS, {"adapter": {**ADAPTER, "target_modules": ["q", "v"]}}),
    "gru": ("seq2seq", {**SCRATCH, "architecture": "gru"}, TURNS, {}),
    "lstm": ("reinforce", {**SCRATCH, "architecture": "lstm"}, TURNS, {"rewards": {"repetition": {}}}),
    "cooperative policy": (
        "cooperative",
        "gpt2",
        TURNS,
        {"rewards": {"length": {"target": 5}}, "training": {"reward_as": "exponential", "num_generations": 2}},
    ),
    "classifier": ("classifier", {**SCRATCH, "layers": 1, "heads": 2}, {**WORDS, "label": [1, 0] * 8}, {}),
    "pair classifier": ("classifier", {**SCRATCH, "layers": 1, "heads": 2}, PAIRS, {}),
    "pooled classifier": ("classifier", "bert", {**WORDS, "label": [1, 0] * 8}, {"model": {"pooling": "mean"}}),
}
SMALL = {"max_steps": 1, "save_strategy": "no", "use_cpu": True, "per_device_train_batch_size": 2, "logging_steps": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a finished run of a kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("cards")
    bases = {
        "gpt2": tiny_causal_lm(),
        "chat": tiny_causal_lm("llama"),
        "t5": tiny_seq2seq(),
        "bert": tiny_classifier().bert,
    }
    for name, model in bases.items():
        model.save_pretrained(folder / "bases" / name)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE if name == "chat" else None
        tokenizer.save_pretrained(folder / "bases" / name)
    made = {}

    def run(kind):
        if kind not in made:
            trainer, base, data, more = KINDS[kind]
            file = folder / kind.replace(" ", "-") / "data.parquet"
            file.parent.mkdir()
            Dataset.from_dict(data).to_parquet(file)
            training = {**SMALL, "output_dir": str(file.parent / "run"), **more.get("training", {})}
            if trainer in ("ppo", "reinforce", "cooperative"):
                training |= {"max_completion_length": 4, "per_device_train_batch_size": 4}
            else:
                training |= {"bf16": False}
            recipe = {
                **{"trainer": trainer, "data": {"use": "files", "path": str(file), "validation_share": 0.25}},
                **{key: value for key, value in more.items() if key != "training"},
                "model": {"name": str(folder / "bases" / base)} if isinstance(base, str) else {"scratch": base},
                "training": training,
            }
            recipe["model"] |= more.get("model", {})
            if trainer in ("sft", "seq2seq"):
                recipe["evaluation"] = {"prompts": 2, "max_new_tokens": 4} | (
                    {"given_words": 2} if data is WORDS else {}
                )
            (file.parent / "recipe.yaml").write_text(json.dumps(recipe))
            made[kind] = run_recipe(load_recipe(file.parent / "recipe.yaml"))
        return made[kind]

    return run


def card_of(run: Path) -> str:
    return (run / "model" / "README.md").read_text(encoding="utf-8")


def executed(code: str, alone: bool, capsys) -> str:
    """What the code writes to standard error; in an interpreter of its own where an import is what is tested."""
    if alone:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    capsys.readouterr()
    try:
        exec(compile(code, "quick start", "exec"), {})
    finally:
        logging.set_verbosity(verbosity)
    return capsys.readouterr().err


def test_every_trainer_has_a_word_for_its_method():
    assert set(METHODS) == set(TRAINERS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_quick_start_of_every_kind_of_card_runs_without_a_word(kind, runs, capsys):
    run = runs(kind)
    code, *_ = re.findall(r"```python\n(.*?)```", card_of(run), re.DOTALL)
    assert "path/to/this/model" in code
    own = kind in ("gru", "lstm", "pooled classifier")
    said = executed(code.replace("path/to/this/model", str(run / "model")), own, capsys)
    assert not re.search("Warning|MISSING|UNEXPECTED|missing|unexpected", said), said
    assert ("import alignkit" in code) is own
    assert ("apply_chat_template" in code) is (kind == "chat")
    assert ("AutoPeftModel" in code) is ("adapter" in KINDS[kind][3])
    assert ("text_pair" in code) is (kind == "pair classifier")


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_can_read_the_metadata_of_every_card(kind, runs):
    run = runs(kind)
    data = ModelCard.load(run / "model" / "README.md").data
    assert data.library_name == ("peft" if "adapter" in KINDS[kind][3] else "transformers")
    assert data.tags == ["alignkit", KINDS[kind][0]]
    assert data.get("base_model") is None and data.get("license") is None  # a local base, which names no licence
    card = card_of(run)
    assert "More Information Needed" not in card and "None" not in card.replace(
        "top_k=None", ""
    )  # PEFT's template, and what nobody knew
    assert str(run.parents[1]) not in card, "the card says where on this machine the run lies"


def test_a_card_tells_of_rewards_data_figures_and_how_to_do_it_again(runs):
    run = runs("policy")
    card = card_of(run)
    results = json.loads((run / "results.json").read_text())
    assert f"| {written(results['before']['reward'])} | {written(results['after']['reward'])} |" in card
    assert "| `repetition` | 2 | `alignkit_rewards.repetition:Repetition` | alignkit-rewards 0.1.0 |" in card
    assert '`{"target": 5}`' in card and "1707.06347" in card
    rows = json.loads((run / "environment.json").read_text())["data"]["train"]["rows"]
    assert f"| train | {rows} | `prompt`, `reference` |" in card
    assert "torch " in card and "A fine-tuned version of `gpt2`, a local model" in card
    (recipe,) = re.findall(r"````yaml\n(.*?)````", card, re.DOTALL)
    assert yaml.safe_load(recipe)["rewards"]["length"]["target"] == 5


def test_what_the_base_and_the_data_are_called_on_the_hub_is_in_the_metadata(runs, tmp_path, monkeypatch):
    run = runs("plain")
    recipe = load_recipe(run / "recipe.yaml", ["model=someone/small-lm", "data={use: hub, name: someone/texts}"])
    cached = tmp_path / "README.md"
    cached.write_text("---\nlicense: apache-2.0\n---\n")
    monkeypatch.setattr("alignkit.run.card.try_to_load_from_cache", lambda name, file: str(cached))
    model, tokenizer = load_causal_or_seq2seq(run / "model"), load_tokenizer(run / "model")
    data = ModelCard(render_card(read_run(run), run / "model", recipe, model, tokenizer)).data
    assert (data.base_model, data.datasets, data.license) == ("someone/small-lm", ["someone/texts"], "apache-2.0")


def card_with(run: Path, settings=(), **facts) -> ModelCard:
    """The card of a run, had its recipe and its environment been these."""
    files = read_run(run)
    files.environment.update(facts)
    recipe = load_recipe(run / "recipe.yaml", settings)
    model, tokenizer = load_causal_or_seq2seq(run / "model"), load_tokenizer(run / "model")
    return ModelCard(render_card(files, run / "model", recipe, model, tokenizer))


@pytest.mark.parametrize(
    ("by_accelerate", "start"),
    [(False, "torchrun --nproc_per_node 2 -m alignkit"), (True, "accelerate launch ... -m alignkit")],
)
def test_the_command_has_its_launcher_and_does_not_continue(by_accelerate, start, runs, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if by_accelerate:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    words = ["__main__.py", "train", "/data/ann smith/r3.yaml", "data={use: x, path: /data/ann smith/y}", "--resume"]
    card = str(card_with(runs("plain"), command=words, num_processes=2))
    said = f"```bash\n{start} train path/to/r3.yaml 'data={{use: x, path: path/to/y}}'\n```"
    assert said in card and "smith" not in card and "2 processes on" in card
    assert ("stands for the settings of accelerate" in card) is by_accelerate


def test_no_folder_is_left_in_the_recipe_whatever_it_is_called(runs):
    paths = ["/data/lab anna/x.parquet", "file:///data/anna/x.parquet", "/data/x:/data/anna/y/z", "/data/a,anna/lm"]
    for path in paths:
        card = card_with(runs("plain"), [f"data={{use: files, path: '{path}'}}"]).content
        assert "anna" not in card, path
        assert card.count("path: path/to/") == 1, path


def test_the_data_sets_inside_others_are_in_the_metadata(runs):
    imdb, hub = "{use: imdb, form: text}", "{use: hub, name: someone/texts}"
    mix = f"data={{use: mix, parts: [{imdb}, {hub}, {imdb}]}}"
    assert card_with(runs("plain"), [mix]).data.datasets == ["stanfordnlp/imdb", "someone/texts"]
    ahead = "{use: look_ahead, of: {use: dailydialog}, labeller: {use: sentiment, model: someone/classifier}}"
    assert _hub_data(yaml.safe_load(ahead)) == ["OpenRL/daily_dialog"]


def test_the_card_of_a_trainers_checkpoints_gives_way_to_that_of_the_run(runs):
    run = runs("plain")
    host, own = run / "README.md", run / "model" / "README.md"
    recipe = load_recipe(run / "recipe.yaml")
    model, tokenizer = load_causal_or_seq2seq(run / "model"), load_tokenizer(run / "model")
    for text, stays in (("tags:\n- generated_from_trainer\n", False), ("my own notes\n", True)):
        host.write_text(text)
        own.unlink()
        write_card(run, recipe, model, tokenizer)
        assert host.exists() is stays and own.is_file()
