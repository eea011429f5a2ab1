"""A run that was stopped and resumed ends with the very weights of one that was not, wherever it was stopped."""

import random
import shutil

import pytest
import torch
from datasets import Dataset
from trl.trainer.utils import RepeatSampler

from alignkit.compose import Whiten
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward
from alignkit.trainers.checkpoints import ResumableSampler
from alignkit.trainers.ppo import PPOConfig, PPOTrainer

PROMPTS = [
    "i loved the film",
    "the plot was",
    "a good",
    "the cast",
    "it was",
    "the end",
    "bad",
    "i saw the",
    "so",
    "he",
]


class Letters(LearnedReward):
    """Weighs the letters of a completion; each update moves the weights by a step and by noise."""

    __name__ = "letters"

    def __init__(self):
        self.weights = torch.zeros(26)

    def __call__(self, prompts, completions, **columns):
        return [float(self.weights @ counts(text)) for text in completions]

    def update(self, prompts, completions, references):
        self.weights += 0.1 * torch.stack([counts(text) for text in completions]).mean(0) + 0.1 * torch.randn(26)
        return {"norm": float(self.weights.norm())}

    def state_dict(self):
        return {"weights": self.weights.clone()}

    def load_state_dict(self, state):
        self.weights = state["weights"]


def counts(text: str) -> torch.Tensor:
    return torch.tensor([float(text.count(chr(97 + i))) for i in range(26)])


def run(folder, seen, **settings):
    """A run with everything that has a state: two passes, accumulation, ptx, adaptive KL, whitened learned reward."""
    letters = Letters()

    def watched(prompts, completions, **columns):
        seen.append(list(prompts))
        return [0.0] * len(completions)

    given = dict(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_iterations=2,
        max_steps=7, max_completion_length=4, learning_rate=1e-3, kl_target=1.0, kl_coef=0.1, kl_horizon=50,
        ptx_coef=0.5, logging_steps=3, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="steps",
        save_steps=1,
    )  # fmt: skip
    trainer = PPOTrainer(
        tiny_causal_lm(), [Whiten(letters), watched], PPOConfig(**{**given, **settings}),
        Dataset.from_dict({"prompt": PROMPTS}), None, tiny_tokenizer(),
        ptx_dataset=Dataset.from_dict({"text": ["the film was good .", "the plot was bad .", "i saw it ."]}),
    )  # fmt: skip
    return trainer, letters


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("whole"), []
    trainer, letters = run(folder, seen)
    trainer.train()
    return folder, trainer, letters, seen


# 10 prompts, 4 a rollout, two steps each: the second epoch begins at step 4; odd steps are in the middle of a rollout
@pytest.mark.parametrize("step", range(1, 7))
def test_it_ends_where_the_unbroken_run_does(step, whole, tmp_path):
    folder, unbroken, letters, all_prompts = whole
    seen: list = []
    trainer, again = run(tmp_path, seen)
    torch.manual_seed(step)  # what happens before the resume must not matter
    random.seed(step)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert seen == all_prompts[len(all_prompts) - len(seen) :] and len(seen) == 4 - (step + 1) // 2
    assert torch.equal(again.weights, letters.weights)
    assert trainer.kl_controller.coef == unbroken.kl_controller.coef
    ends = unbroken.model.state_dict()
    assert all(torch.equal(tensor, ends[name]) for name, tensor in trainer.model.state_dict().items())
    # `loss` is averaged by transformers, which begins anew, and times are times; all else that we log goes on
    other = ("loss", "weights/delta", "step_time", "letters/norm")
    figures = [
        {k: v for k, v in t.state.log_history[-2].items() if k not in other and not k.startswith("phase/")}
        for t in (unbroken, trainer)
    ]
    assert figures[0] == figures[1] and figures[0]["step"] == 6


def test_rewards_take_their_state_from_the_checkpoint_that_is_named(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoint-5", tmp_path / "elsewhere")
    trainer, again = run(tmp_path / "new", [], max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "elsewhere"))  # nothing is sampled in the last step
    saved = torch.load(whole[0] / "checkpoint-5" / "rewards" / "letters.pt", weights_only=True)
    assert torch.equal(again.weights, saved["weights"]) and saved["weights"].abs().sum() > 0


def test_other_processes_begin_with_a_new_rollout(whole, tmp_path):
    folder = tmp_path / "checkpoint-1"
    shutil.copytree(whole[0] / "checkpoint-1", folder)
    state = torch.load(folder / "rollout_0.pt", weights_only=True)
    torch.save({**state, "processes": 2}, folder / "rollout_0.pt")
    seen: list = []
    trainer, _ = run(tmp_path / "new", seen, max_steps=2)
    trainer.train(resume_from_checkpoint=str(folder))
    assert len(seen) == 1


def test_the_sampler_draws_as_trls_and_finds_any_epoch_again():
    settings = dict(data_source=range(7), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=5)
    theirs = RepeatSampler(**settings)
    epochs = [list(theirs) for _ in range(3)]
    assert epochs[0] != epochs[1]
    for epoch in (2, 0, 1):
        assert list(ResumableSampler(epoch=lambda e=epoch: e, **settings)) == epochs[epoch]
