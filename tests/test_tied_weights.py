"""Weights that a checkpoint holds under one name only, because another part of the model shares them."""

import logging

import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints

DATA = Dataset.from_dict({"text": ["the film was good .", "the plot was bad ."] * 4})


def trainer(folder, steps):
    args = SFTConfig(
        output_dir=str(folder), max_steps=steps, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        bf16=False, gradient_checkpointing=False, per_device_train_batch_size=2,
    )  # fmt: skip
    return with_whole_checkpoints(SFTTrainer)(
        tiny_causal_lm(), args, train_dataset=DATA, processing_class=tiny_tokenizer()
    )


@pytest.fixture
def warnings_of_transformers(caplog):
    """What transformers' trainer warns of; its loggers do not propagate by themselves."""
    transformers_logging.enable_propagation()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    caplog.set_level(logging.WARNING)
    yield lambda: [record.getMessage() for record in caplog.records if "missing keys" in record.getMessage()]
    transformers_logging.set_verbosity(before)
    transformers_logging.disable_propagation()


def test_a_resumed_run_says_nothing_of_a_head_that_is_tied(tmp_path, warnings_of_transformers):
    trainer(tmp_path, 1).train()
    assert "lm_head.weight" not in load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    again = trainer(tmp_path, 2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2 and warnings_of_transformers() == []


def test_a_weight_that_is_really_missing_is_named(tmp_path, warnings_of_transformers):
    trainer(tmp_path, 1).train()
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.ln_f.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    again = trainer(tmp_path, 2)
    # transformers reads a checkpoint so; ours is refused before because its record does not fit
    again._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    (said,) = warnings_of_transformers()
    assert "transformer.ln_f.bias" in said and "lm_head" not in said
