"""TRL's supervised trainer on a CPU scores the labelled positions alone: the same loss and gradients, less work."""

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.kernels import chunked_logprob

from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.trainers.labelled_positions import LabelledPositionsSFTTrainer, labelled_positions_only

ROWS = {
    "prompt": ["what is this?", "one two three four five six", "a"],
    "completion": [" a long answer of some words", " seven", " b c"],
}


def trained(trainer_class, folder, monkeypatch):
    """Losses and weights after two steps, and how many positions the head was asked to score in each call."""
    counted = []
    fold = chunked_logprob._forward_tile

    def counting(tile, *args, **kwargs):
        counted.append(len(tile))
        return fold(tile, *args, **kwargs)

    monkeypatch.setattr(chunked_logprob, "_forward_tile", counting)
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    args = SFTConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=3, logging_steps=1, report_to=[], use_cpu=True,
        learning_rate=1e-2, save_strategy="no", seed=1, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = trainer_class(
        model=tiny_causal_lm("gpt2"), args=args, train_dataset=Dataset.from_dict(ROWS), processing_class=tokenizer
    )
    trainer.train()
    losses = [(row["loss"], row["entropy"], row["mean_token_accuracy"]) for row in trainer.state.log_history[:2]]
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    return losses, trainer.model.state_dict(), counted, int((labels[:, 1:] != -100).sum()), labels[:, 1:].numel()


def test_it_learns_the_same_from_fewer_positions(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        losses, weights, all_of_them, labelled, places = trained(SFTTrainer, tmp_path / "trl", patch)
    with monkeypatch.context() as patch:
        ours = trained(LabelledPositionsSFTTrainer, tmp_path / "ours", patch)
    assert ours[0] == losses
    for name, value in weights.items():
        torch.testing.assert_close(ours[1][name], value, rtol=1e-6, atol=1e-7)
    assert set(all_of_them) == {places} and set(ours[2]) == {labelled} and labelled < places / 1.5


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps"])
def test_other_devices_are_left_as_they_are(device):
    from trl.trainer import utils

    before = utils._use_triton
    with labelled_positions_only(torch.device(device)):
        assert utils._use_triton is before


def test_trl_is_as_before_behind_a_failure():
    from trl.trainer import utils

    before = utils._use_triton
    with pytest.raises(ZeroDivisionError), labelled_positions_only(torch.device("cpu")):
        assert utils._use_triton is not before
        1 / 0  # noqa: B018
    assert utils._use_triton is before
