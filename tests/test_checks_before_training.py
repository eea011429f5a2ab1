"""What a dry run, and a run before it loads a model, find wrong between rewards, data and trainer."""

import json

import pytest

from alignkit.cli import main
from alignkit.errors import MissingColumnError, RewardError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig

MINE = """
def below(completions, **columns):
    return [-float(len(text)) for text in completions]


def half(completions, **columns):
    return [0.5] * len(completions)
"""
RECIPE = """
trainer: cooperative
model: {scratch: {architecture: lstm, hidden_size: 16, layers: 1, context: 16, tokenizer: words}}
data: {use: files, path: texts}
rewards: {below: {use: "mine.py:below"}}
training: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, output_dir: run, use_cpu: true}
evaluation: {prompts: 4}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "texts").mkdir()
    rows = [{"prompt": "the film was", "reference": f"good {i}"} for i in range(8)]
    for split in ("train", "validation"):
        (tmp_path / "texts" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
@pytest.mark.parametrize("reward_as", ["probability", "odds"])
def test_scores_that_are_no_probabilities(here, reward_as, dry, capsys):
    assert main(["train", "recipe.yaml", *dry, f"training.reward_as={reward_as}"]) == 2
    assert "reward 'below' gave -6 to 'good " in (said := capsys.readouterr().err)
    assert f"reward_as='{reward_as}' takes numbers from 0 to 1" in said
    assert not (here / "run" / "model").exists()


def test_scores_of_other_kinds_and_of_rewards_that_are_only_watched(here, capsys):
    assert main(["train", "recipe.yaml", "--dry-run", "training.reward_as=exponential"]) == 0
    watched = "rewards.half={use: 'mine.py:half'}", "rewards.below.weight=0"
    assert main(["train", "recipe.yaml", "--dry-run", *watched]) == 0
    assert capsys.readouterr().out.count("scored 4 held-out rows") == 2


class Judge(LearnedReward):
    needs_references = True

    def __init__(self, learns=True):
        self.learns = learns

    def __call__(self, prompts, completions, **columns):
        return [0.5] * len(completions)

    def update(self, prompts, completions, references):
        return {"least": min(map(len, references))}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_reward_that_learns_from_references_needs_their_column(here, capsys):
    for split in ("train", "validation"):
        (here / "texts" / f"{split}.jsonl").write_text("\n".join(json.dumps({"prompt": "it was"}) for _ in range(8)))
    discriminator = "rewards={discriminator: {scratch: {context: 16}, kind: cnn, tokenizer: nowhere}}"
    assert main(["train", "recipe.yaml", "--dry-run", discriminator]) == 2
    said = capsys.readouterr().err
    assert "reward 'discriminator' learns from references, and there is no column 'reference'" in said
    assert "the data has: prompt" in said and "updates: 0" in said


def test_so_does_a_trainer_in_python(tmp_path):
    from datasets import Dataset

    args = CooperativeConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4, report_to="none", use_cpu=True,
        max_completion_length=4, max_steps=1,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["it was"] * 4, "answer": ["good"] * 4})
    with pytest.raises(MissingColumnError, match="'Judge' learns from references, and there is no column 'reference'"):
        CooperativeTrainer(tiny_causal_lm(), Judge(), args, data, None, tiny_tokenizer())
    CooperativeTrainer(tiny_causal_lm(), Judge(learns=False), args, data, None, tiny_tokenizer())
    args.reference_column = "answer"
    CooperativeTrainer(tiny_causal_lm(), Judge(), args, data, None, tiny_tokenizer()).train()
    assert issubclass(MissingColumnError, RewardError)
