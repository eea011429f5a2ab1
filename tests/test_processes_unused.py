"""Under DDP a model may have weights that a step does not reach, in every step or in some: it trains all the same.

Run by itself this file is what each of the processes does.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from processes_job import PROMPTS, Opinion, launch, trained_weights
from torch import nn

from alignkit import PPOConfig, PPOTrainer, ReinforceConfig, ReinforceTrainer
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.models.value_head import attach_value_head

CASES = ["pooler", "sometimes", "head", "checkpointing"]


class Sometimes(nn.Module):
    """A bias that takes part in every second forward of training: only taking a step tells which weights it reaches."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.calls = 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.calls += torch.is_grad_enabled()
        return states + self.bias if self.calls % 2 else states


def trainer_of(case: str, folder: Path) -> Any:
    model = tiny_causal_lm()
    model.transformer.pooler = nn.Linear(4, 4)  # as encoders have one, which no language model asks
    if case == "sometimes":
        model.transformer.ln_f = nn.Sequential(model.transformer.ln_f, Sometimes(model.config.hidden_size))
    settings = dict(
        output_dir=str(folder / case), per_device_train_batch_size=2, max_steps=4, learning_rate=1e-2, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", max_completion_length=5,
        gradient_checkpointing=case == "checkpointing",
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": PROMPTS})
    if case == "head":  # a critic that PPO left, and no baseline that would ask it
        attach_value_head(model)
        args = ReinforceConfig(**settings, num_generations=2)
        return ReinforceTrainer(model, [Opinion()], args, data, None, tiny_tokenizer())
    return PPOTrainer(model, [Opinion()], PPOConfig(**settings, num_iterations=2), data, None, tiny_tokenizer())


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Case -> what the two processes found."""
    folder = tmp_path_factory.mktemp("unused")
    said = launch(__file__, str(folder))
    assert said.returncode == 0, said.stderr[-3000:]
    return {case: [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in (0, 1)] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_weights_that_a_step_does_not_reach_stop_nothing(ended, case):
    (before, after), (_, second) = ended[case]
    assert all(torch.equal(tensor, second[name]) for name, tensor in after.items())
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    still = {name for name in after if "pooler" in name or (case == "head" and "value_head" in name)}
    assert still and not still & moved
    assert any("attn" in name for name in moved) and (case != "sometimes" or any("ln_f.1.bias" in n for n in moved))


if __name__ == "__main__":
    for name in CASES:
        trainer = trainer_of(name, Path(sys.argv[1]))
        before = trained_weights(trainer)
        trainer.train()
        torch.save((before, trained_weights(trainer)), Path(sys.argv[1], f"{name}-{os.environ['RANK']}.pt"))
