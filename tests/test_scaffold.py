"""A plugin from `alignkit rewards new` has passing tests, and installed it is listed, checked and trained with."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from alignkit.errors import RewardCollisionError, RewardError
from alignkit.scaffold import FILES, new_plugin

ROOT = Path(__file__).resolve().parents[1]

TRAIN = """
import sys
from datasets import Dataset
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from alignkit import PPOConfig, PPOTrainer, load_reward
from alignkit.testing import tiny_causal_lm, tiny_tokenizer

words = "please thank you no never the film was".split()
tokenizer = tiny_tokenizer(words)
# RLOO loads its reference model by the policy's name.
folder = sys.argv[1] + "/model"
tiny_causal_lm(vocab_size=len(tokenizer)).save_pretrained(folder)
tokenizer.save_pretrained(folder)
reward = load_reward("small_talk", words=["please", "thank", "you"])
for trainer_class, config_class in (PPOTrainer, PPOConfig), (GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig):
    set_seed(0)
    args = config_class(
        output_dir=sys.argv[1] + "/out", max_steps=2, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=6, use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1,
        report_to="none", save_strategy="no",
    )
    trainer = trainer_class(
        model=folder, reward_funcs=[reward], args=args,
        train_dataset=Dataset.from_dict({"prompt": ["the film was", "please"] * 4}),
    )
    trainer.train()
    key = "rewards/small_talk/mean"
    logged = [log[key] for log in trainer.state.log_history if key in log]
    assert any(logged) and all(0 <= value <= 1 for value in logged), logged
    assert any(log.get("grad_norm", 0) > 0 for log in trainer.state.log_history)
    print("trained by", trainer_class.__name__)
"""


def run(*command, cwd, **environment):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CI": "1", **environment}
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin") / "alignkit-small-talk"
    new_plugin("small-talk", folder)
    return folder


@pytest.fixture(scope="module")
def installed(made, tmp_path_factory):
    """The plugin's wheel, installed into a folder of its own, as a fresh environment would have it."""
    copy = tmp_path_factory.mktemp("build") / made.name
    shutil.copytree(made, copy)
    target = tmp_path_factory.mktemp("site")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    run("-m", "pip", "install", *options, "--target", target, copy, cwd=copy)
    return {"cwd": target.parent, "PYTHONPATH": str(target)}


def test_the_package_is_complete(made):
    found = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    assert found == [
        "README.md",
        "alignkit_small_talk/__init__.py",
        "pyproject.toml",
        "samples.jsonl",
        "tests/test_small_talk.py",
    ]
    project = tomllib.loads((made / "pyproject.toml").read_text())
    assert project["project"]["name"] == "alignkit-small-talk"
    entry_points = project["project"]["entry-points"]["alignkit.rewards"]
    assert entry_points == {"small_talk": "alignkit_small_talk:SmallTalk"}


def test_every_template_is_used():
    templates = {path.name for path in (ROOT / "alignkit" / "scaffold" / "templates").iterdir()}
    assert templates == set(FILES)


def test_its_own_tests_pass_before_it_is_installed(made):
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=made, PYTHONDONTWRITEBYTECODE="1")
    assert "19 passed, 3 skipped" in out


def test_it_is_clean_for_the_linter(made):
    run("-m", "ruff", "check", "--isolated", "--line-length=120", "--select=E,F,W,I,UP,B", made, cwd=made)
    run("-m", "ruff", "format", "--isolated", "--line-length=120", "--check", made, cwd=made)


def test_installed_it_is_listed_shown_checked_and_scores(installed, made):
    assert "small_talk" in run("-m", "alignkit", "rewards", "list", **installed)
    assert "alignkit-small-talk 0.1.0" in run("-m", "alignkit", "rewards", "show", "small_talk", **installed)
    assert "16 passed, 0 failed" in run("-m", "alignkit", "rewards", "check", "small_talk", **installed)
    out = run("-m", "alignkit", "rewards", "score", "small_talk", made / "samples.jsonl", **installed)
    assert "4 completions, mean" in out


def test_installed_it_trains_unchanged_in_our_trainers_and_in_trls(installed, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    out = run(script, tmp_path, **installed)
    assert [line for line in out.splitlines() if line.startswith("trained by")] == [
        "trained by PPOTrainer",
        "trained by GRPOTrainer",
        "trained by RLOOTrainer",
    ]


@pytest.mark.parametrize("name", ["Politeness", "9lives", "class", "a b", "../up", "a__b", ""])
def test_a_name_that_cannot_be_a_package_is_refused(name, tmp_path):
    with pytest.raises(RewardError, match="cannot be called"):
        new_plugin(name, tmp_path / "new")


def test_a_name_that_is_taken_is_refused_with_its_owner(tmp_path):
    with pytest.raises(RewardCollisionError, match="alignkit-rewards"):
        new_plugin("sentiment", tmp_path / "new")


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RewardError, match="not an empty folder"):
        new_plugin("politeness", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_default_folder_is_named_after_the_distribution(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new_plugin("short_answers")
    assert (tmp_path / "alignkit-short-answers" / "alignkit_short_answers" / "__init__.py").is_file()
