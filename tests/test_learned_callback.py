"""A reward that trains along: updated on what it scored, saved with the run, restored on resume."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from alignkit.compose import Whiten, checked_rewards
from alignkit.errors import AlignkitError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward, in_evaluation
from alignkit.trainers.learned_callback import RewardStateCallback
from alignkit.trainers.ppo import PPOConfig, PPOTrainer


class WordLikelihood(LearnedReward):
    """Share of words that it has seen in references so far; learns by counting."""

    __name__ = "word_likelihood"

    def __init__(self):
        self.seen: dict[str, int] = {}
        self.updates = 0

    def __call__(self, prompts, completions, reference, **columns):
        return [sum(w in self.seen for w in c.split()) / max(len(c.split()), 1) for c in completions]

    def update(self, prompts, completions, references):
        assert len(prompts) == len(completions) == len(references) > 0
        for text in references:
            for word in text.split():
                self.seen[word] = self.seen.get(word, 0) + 1
        self.updates += 1
        return {"vocabulary": len(self.seen), "fakes": len(completions)}

    def state_dict(self):
        return {"seen": dict(self.seen), "updates": self.updates}

    def load_state_dict(self, state):
        self.seen, self.updates = dict(state["seen"]), state["updates"]


def data(rows: int = 32) -> Dataset:
    return Dataset.from_dict(
        {"prompt": ["i loved the film", "the plot was"] * (rows // 2), "reference": ["good ."] * rows}
    )


def settings(folder, **more):
    return dict(
        output_dir=str(folder), per_device_train_batch_size=4, max_completion_length=4, max_steps=6, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="steps", save_steps=2, **more
    )  # fmt: skip


def test_it_is_updated_once_per_rollout_on_what_it_scored(tmp_path):
    reward = WordLikelihood()
    args = PPOConfig(**settings(tmp_path, num_iterations=2, eval_strategy="steps", eval_steps=1))
    trainer = PPOTrainer(tiny_causal_lm(), reward, args, data(), data(4), tiny_tokenizer())
    trainer.train()
    assert reward.updates == 3  # six steps, two passes over each rollout; evaluations in between taught it nothing
    assert not reward.has_pending
    logged = [entry for entry in trainer.state.log_history if "word_likelihood/fakes" in entry]
    assert logged and all(entry["word_likelihood/fakes"] == 4 for entry in logged)


def test_a_checkpoint_carries_it_and_a_resumed_run_restores_it(tmp_path):
    reward = WordLikelihood()
    args = PPOConfig(**settings(tmp_path, num_iterations=1))
    PPOTrainer(tiny_causal_lm(), reward, args, data(), None, tiny_tokenizer()).train()
    fresh = WordLikelihood()
    resumed = PPOTrainer(tiny_causal_lm(), fresh, args, data(), None, tiny_tokenizer())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert fresh.state_dict() == reward.state_dict() == {"seen": {"good": 24, ".": 24}, "updates": 6}


def test_a_checkpoint_without_its_state_is_refused(tmp_path):
    with pytest.raises(AlignkitError, match="has no state of reward 'word_likelihood'"):
        RewardStateCallback([WordLikelihood()]).restore(tmp_path)


def test_the_same_object_trains_along_in_trls_own_trainer(tmp_path):
    reward = WordLikelihood()
    args = GRPOConfig(**settings(tmp_path, num_generations=2, bf16=False, gradient_checkpointing=False))
    trainer = GRPOTrainer(
        tiny_causal_lm(), [reward], args, data(), processing_class=tiny_tokenizer(),
        callbacks=[RewardStateCallback([reward])],
    )  # fmt: skip
    trainer.train()
    assert reward.updates == 6
    saved = torch.load(tmp_path / "checkpoint-6" / "rewards" / "word_likelihood.pt", weights_only=True)
    assert saved == reward.state_dict()


def test_trls_own_evaluation_teaches_nothing(tmp_path):
    learned, running = WordLikelihood(), Whiten(lambda prompts, completions, **_: [float(len(c)) for c in completions])
    args = GRPOConfig(
        **settings(
            tmp_path, num_generations=2, bf16=False, gradient_checkpointing=False, eval_strategy="steps", eval_steps=1,
            per_device_eval_batch_size=4,
        )
    )  # fmt: skip
    rewards = checked_rewards([learned, running])
    trainer = GRPOTrainer(
        tiny_causal_lm(), rewards, args, data(), data(4), processing_class=tiny_tokenizer(),
        callbacks=[RewardStateCallback(rewards)],
    )  # fmt: skip
    trainer.train()
    assert running.count == 6 * 4  # the completions of six training steps, not those of six evaluations
    assert learned.seen == {"good": 24, ".": 24}


def test_evaluation_ends_where_it_began_and_leaves_alone_what_has_no_modes():
    class Counter:
        """Has a state to save, but nothing to switch."""

        def __call__(self, prompts, completions, **columns):
            return [0.0] * len(completions)

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise AssertionError("nobody resumes here")

    learned, still = WordLikelihood(), WordLikelihood().eval()
    with pytest.raises(KeyError), in_evaluation([Whiten(learned), still, Counter()]):
        assert not learned.training and not still.training
        raise KeyError
    assert learned.training and not still.training


def test_references_come_from_the_column_that_the_trainer_names(tmp_path):
    class Keeper(WordLikelihood):
        def __call__(self, prompts, completions, **columns):
            return [0.0] * len(completions)

    reward = Keeper()
    args = PPOConfig(**settings(tmp_path, reference_column="answer"))
    PPOTrainer(
        tiny_causal_lm(), Whiten(reward), args, data().rename_column("reference", "answer"), None, tiny_tokenizer()
    ).train()
    assert reward.seen["good"] > 0
