"""Two processes that train together stay one: policy, rewards that learn, statistics, evaluation.

Run by itself this file is what each of the processes does.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from alignkit.compose import Whiten
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward
from alignkit.trainers.ppo import PPOConfig, PPOTrainer

PROMPTS = ["i loved the film", "the plot was", "a good", "the cast", "it was", "the end", "bad", "i saw the"]


class Letters(LearnedReward):
    """Weighs letters; learns from the texts it is given, in their order, and from chance."""

    __name__ = "letters"

    def __init__(self, rank: int):
        self.weights = torch.full((26,), float(rank))  # unequal copies: the main process's must win
        self.seen: list = []

    def __call__(self, prompts, completions, **columns):
        if self.training and len(prompts[0]) % 2:  # what one process happens to do with its random numbers
            torch.rand(3)
        return [float(self.weights @ counts(text)) for text in completions]

    def update(self, prompts, completions, references):
        self.seen.append(list(completions))
        for place, text in enumerate(completions):
            self.weights += 0.01 * (place + 1) * counts(text) + 0.01 * torch.randn(26)
        return {"norm": float(self.weights.norm())}

    def state_dict(self):
        return {"weights": self.weights.clone()}

    def load_state_dict(self, state):
        self.weights = state["weights"].clone()


def counts(text: str) -> torch.Tensor:
    return torch.tensor([float(text.count(chr(97 + i))) for i in range(26)])


def train_here(folder: Path) -> None:
    args = PPOConfig(
        output_dir=str(folder / "run"), per_device_train_batch_size=2, num_iterations=1, max_steps=3,
        max_completion_length=4, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="steps", save_steps=2, ptx_coef=0.5,
    )  # fmt: skip
    rank = args.process_index
    letters = Letters(rank)
    trainer = PPOTrainer(
        tiny_causal_lm(), [letters, Whiten(len_of)], args, Dataset.from_dict({"prompt": PROMPTS}),
        Dataset.from_dict({"prompt": PROMPTS[:3]}), tiny_tokenizer(),
        ptx_dataset=Dataset.from_dict({"text": ["the film was good .", "the plot was bad .", "i saw it ."]}),
    )  # fmt: skip
    trainer.train()
    rows = trainer.generate_eval()
    single = trainer.generate_eval(Dataset.from_dict({"prompt": PROMPTS[:1]}))  # fewer prompts than processes
    policy, statistics, learned = weights_of(trainer), trainer.rewards[1].state_dict(), letters.weights.clone()
    trainer.restore(str(folder / "run" / "checkpoint-2"))
    found = {
        "weights": learned, "seen": letters.seen, "policy": policy, "coef": trainer.kl_controller.coef,
        "whiten": statistics, "rows": [row["prompt"] for row in rows], "single": len(single),
        "restored": weights_of(trainer),
    }  # fmt: skip
    torch.save(found, folder / f"{rank}.pt")


def weights_of(trainer) -> dict[str, torch.Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def len_of(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "127.0.0.1:0", __file__, str(folder)]
    ended = subprocess.run(
        [sys.executable, *launch],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_both_end_with_the_same_policy(both):
    first, second = (found["policy"] for found in both[1])
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert both[1][0]["coef"] == both[1][1]["coef"]


def test_a_learned_reward_learns_from_both_and_stays_equal(both):
    first, second = both[1]
    assert first["seen"] == second["seen"] and [len(texts) for texts in first["seen"]] == [4, 4, 4]
    assert torch.equal(first["weights"], second["weights"])


def test_going_back_to_a_checkpoint_moves_the_policy_of_both(both):
    saved = load_file(both[0] / "run" / "checkpoint-2" / "model.safetensors")
    for found in both[1]:
        assert all(torch.equal(found["restored"][name], tensor) for name, tensor in saved.items())
        assert any(not torch.equal(found["policy"][name], tensor) for name, tensor in saved.items())


def test_the_checkpoint_has_the_reward_and_a_rollout_for_each(both):
    checkpoint = both[0] / "run" / "checkpoint-2"
    assert {"rollout_0.pt", "rollout_1.pt", "rewards", "alignkit_state.pt"} <= {f.name for f in checkpoint.iterdir()}
    assert {f.name for f in (checkpoint / "rewards").iterdir()} == {"letters.pt", "whiten_len_of.pt", "figures.json"}


def test_running_statistics_cover_both(both):
    first, second = both[1]
    assert first["whiten"] == second["whiten"] and first["whiten"]["count"] == 12


def test_evaluation_keeps_the_order_and_works_with_fewer_prompts_than_processes(both):
    for found in both[1]:
        assert found["rows"] == PROMPTS[:3]
        assert found["single"] == 1


if __name__ == "__main__":
    train_here(Path(sys.argv[1]))
