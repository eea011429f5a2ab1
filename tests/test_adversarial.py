"""Adversarial training is the ordinary trainer with a reward that learns: the policy comes to write as people do."""

import pytest
from alignkit_rewards import Discriminator
from datasets import Dataset

from alignkit import ReinforceConfig, ReinforceTrainer
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

DATA = Dataset.from_dict({"prompt": ["it was", "the film is"] * 64, "reference": ["good good good good"] * 128})


def discriminator(**settings) -> Discriminator:
    return Discriminator(
        scratch={"hidden_size": 16, "heads": 2, "layers": 1}, tokenizer=tiny_tokenizer(), learning_rate=3e-3,
        max_completion_tokens=4, **settings,
    )  # fmt: skip


def trained(reward: Discriminator, folder, **settings) -> ReinforceTrainer:
    args = ReinforceConfig(
        output_dir=str(folder), per_device_train_batch_size=32, max_completion_length=4, learning_rate=1e-2,
        lr_scheduler_type="constant", logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, kl_coef=0.0,
        save_strategy="steps", save_steps=8, seed=0, **settings,
    )  # fmt: skip
    return ReinforceTrainer(tiny_causal_lm("llama"), reward, args, DATA, DATA.select(range(32)), tiny_tokenizer())


def test_the_policys_score_under_the_discriminator_rises(tmp_path):
    reward = discriminator(replay=64, replay_share=0.25)
    trainer = trained(reward, tmp_path, max_steps=48)
    trainer.train()
    figures = {
        name: [entry[name] for entry in trainer.state.log_history if name in entry]
        for name in ("rewards/discriminator/mean", "discriminator/fake", "discriminator/accuracy")
    }
    assert [len(values) for values in figures.values()] == [48] * 3
    scores = figures["rewards/discriminator/mean"]
    # it first learns to tell them apart, then the policy comes near what people write
    lowest = min(range(len(scores)), key=scores.__getitem__)
    assert scores[lowest] < 0.4 and sum(scores[-5:]) / 5 > scores[lowest] + 0.1
    written = [row["completion"] for row in trainer.generate_eval()]
    assert sum(text.split().count("good") for text in written) / (4 * len(written)) > 0.5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    reward = discriminator(replay=16)
    trained(reward, folder, max_steps=12).train()
    return folder, reward


def test_a_resumed_run_ends_with_the_same_discriminator(whole, tmp_path):
    folder, reward = whole
    resumed = discriminator(replay=16, seed=3)
    trained(resumed, tmp_path, max_steps=12).train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    mine, theirs = resumed.state_dict(), reward.state_dict()
    assert mine["updates"] == theirs["updates"] == 12 and mine["replay"] == theirs["replay"]
    assert all((mine["network"][name] == weight).all() for name, weight in theirs["network"].items())


def test_the_run_keeps_it_as_a_model(whole):
    folder, reward = whole
    saved = Discriminator(str(folder / "rewards" / "discriminator"), updates=0)
    texts = ["good good", "awful"]
    assert saved(["it was"] * 2, texts) == reward(["it was"] * 2, texts)
    assert saved.max_completion_tokens == 4
