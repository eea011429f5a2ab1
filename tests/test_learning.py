"""Learning happens: on a toy reward the trainers reach over 90% of what is attainable, with every seed.

The reward is the share of "good" among eight words, so 1.0 is attainable; the random model starts near 1/30.
"""

import pytest
from datasets import Dataset

from alignkit import PPOConfig, PPOTrainer, ReinforceConfig, ReinforceTrainer
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer


def share_of_good(prompts, completions, **columns):
    return [text.split().count("good") / 8 for text in completions]


def reach(trainer_class, config_class, folder, seed: int, learning_rate: float, **settings) -> float:
    prompts = ["i loved the film", "the plot was", "this movie is very dull but", "it"] * 40
    data = Dataset.from_dict({"prompt": prompts})
    args = config_class(
        output_dir=str(folder), per_device_train_batch_size=32, max_completion_length=8, learning_rate=learning_rate,
        lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        kl_coef=0.0, seed=seed, logging_steps=20, **settings,
    )  # fmt: skip
    model = tiny_causal_lm("llama", seed=seed)
    trainer = trainer_class(model, share_of_good, args, data, data.select(range(64)), tiny_tokenizer())
    assert trainer.evaluate()["eval_reward"] < 0.15
    trainer.train()
    return trainer.evaluate()["eval_reward"]


@pytest.mark.parametrize("seed", range(5))
def test_ppo_reaches_nine_tenths_of_what_is_attainable(seed, tmp_path):
    # with four passes over so few words, or without entropy, one run in ten settles on a wrong word in one place
    settings = {"max_steps": 240, "entropy_coef": 0.01, "num_iterations": 2}
    assert reach(PPOTrainer, PPOConfig, tmp_path, seed, 1e-3, **settings) > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_reinforce_reaches_nine_tenths_of_what_is_attainable(seed, tmp_path):
    assert reach(ReinforceTrainer, ReinforceConfig, tmp_path, seed, 3e-3, max_steps=60) > 0.9
