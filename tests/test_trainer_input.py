"""What a trainer is given is checked before the model is loaded."""

import pytest
from datasets import Dataset

from alignkit.errors import ConfigError, DataError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.trainers.ppo import PPOConfig, PPOTrainer


def good_words(prompts, completions, **columns):
    return [float(text.split().count("good")) for text in completions]


def data(rows: int = 32) -> Dataset:
    prompts = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
    return Dataset.from_dict({"prompt": [prompts[i % 4] for i in range(rows)], "reference": ["good ."] * rows})


def trainer(folder, model=None, reward=good_words, train=None, **settings):
    dataset = settings.pop("ptx_dataset", None)
    named = {key: settings.pop(key) for key in ("peft_config", "metrics", "callbacks") if key in settings}
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=8, max_completion_length=6, max_steps=4, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=5e-4, seed=0,
    )  # fmt: skip
    args = PPOConfig(**{**defaults, **settings})
    model = tiny_causal_lm() if model is None else model
    train = data() if train is None else train
    return PPOTrainer(model, reward, args, train, data(4), tiny_tokenizer(), ptx_dataset=dataset, **named)


def test_rewards_and_data_are_checked_before_the_model_is_loaded(tmp_path):
    def needs_persona(prompts, completions, persona, **columns):
        return [0.0] * len(completions)

    with pytest.raises(Exception, match="needs column 'persona'; the data has: prompt, reference"):
        trainer(tmp_path, "no/such-model", reward=needs_persona)
    with pytest.raises(DataError, match="is empty"):
        trainer(tmp_path, "no/such-model", train=data(32).select([]))
    with pytest.raises(DataError, match="no column 'prompt'; it has: text"):
        trainer(tmp_path, "no/such-model", train=Dataset.from_dict({"text": ["a"] * 32}))
    with pytest.raises(DataError, match="has 4 rows, but a rollout takes 8"):
        trainer(tmp_path, "no/such-model", train=data(4))
    with pytest.raises(ConfigError, match="a reward is a callable"):
        trainer(tmp_path, "no/such-model", reward=3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"beta": 0.1}, "beta=0.1 belongs to GRPO's loss and has no effect here; use kl_coef"),
        ({"loss_type": "dr_grpo"}, "loss_type='dr_grpo' belongs to GRPO"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4'; expected one of k1, k2, k3"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "must be a multiple of"),
        ({"num_generations": 3}, "num_generations=3 must divide"),
        ({"rl_weight": 0.5}, "with PPO use ptx_coef"),
        ({"temperature": 0.0}, "temperature=0.0; expected a number above 0"),
        ({"ptx_coef": 0.5}, "needs a ptx_dataset"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **settings)


def test_turn_scores_are_refused_where_there_is_one_turn(tmp_path):
    class PerTurn:
        __name__ = "per_turn"
        granularity = "turn"

        def __call__(self, prompts, completions, **columns):
            return [[1.0]] * len(completions)

    with pytest.raises(ConfigError, match="scores per turn; PPOTrainer can use scores per completion or token"):
        trainer(tmp_path, reward=PerTurn())
