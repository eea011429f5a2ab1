"""A base in 8 bits rounds a token otherwise beside others than alone: that is no alarm; a wrong scoring is."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from alignkit import PPOConfig, PPOTrainer
from alignkit.diagnostics import Limits
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.trainers.health import HealthCallback


@pytest.fixture(scope="module")
def outlying_llama(tmp_path_factory):
    """A Llama with a few activations far beyond LLM.int8()'s threshold of 6, as trained models have them."""
    folder = tmp_path_factory.mktemp("outlying")
    model = tiny_causal_lm("llama", hidden_size=64)
    with torch.no_grad():
        for layer in model.model.layers:
            for name, weight in layer.named_parameters():
                weight.mul_(3 if "norm" in name else 30 if "o_proj" in name or "down_proj" in name else 3)
            layer.input_layernorm.weight[:2] *= 30
        model.lm_head.weight.mul_(10)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def trained(model, folder, bits, *callbacks, scored_at=None):
    """A trainer after one step; `scored_at` is a wrong temperature."""
    args = PPOConfig(
        str(folder), max_steps=1, num_iterations=1, per_device_train_batch_size=8, max_completion_length=12,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = PPOTrainer(
        model,
        lambda completions, **columns: [float(len(text)) for text in completions],
        args,
        Dataset.from_dict({"prompt": ["the film was", "it"] * 8}),
        callbacks=list(callbacks),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        quantization_config=BitsAndBytesConfig(**bits),
    )
    trainer.temperature = scored_at or trainer.temperature
    trainer.train()
    return trainer


def sampling(folder):
    found = {entry["check"]: entry for entry in json.loads((folder / "health.json").read_text())}
    return found["sampling"]


def test_eight_bits_alone_raise_no_alarm(outlying_llama, tmp_path):
    trainer = trained(outlying_llama, tmp_path, {"load_in_8bit": True}, HealthCallback(tmp_path))
    gap = next(row for row in trainer.state.log_history if "loss" in row)["sampling/logp_difference_mean"]
    assert 1e-3 < gap < Limits().for_eight_bits().log_prob_gap  # beyond 0.01, the limit of others, where it was written
    assert sampling(tmp_path)["status"] == "ok"


def test_a_wrong_temperature_still_raises_it_and_eight_bits_are_named(outlying_llama, tmp_path):
    trained(outlying_llama, tmp_path, {"load_in_8bit": True}, HealthCallback(tmp_path), scored_at=0.5)
    assert sampling(tmp_path)["status"] == "warn" and "quantised to 8 bits" in sampling(tmp_path)["message"]


def test_limits_of_ones_own_stay_and_the_message_names_eight_bits(outlying_llama, tmp_path):
    trained(
        outlying_llama, tmp_path, {"load_in_8bit": True}, HealthCallback(tmp_path, limits=Limits(log_prob_gap=1e-9))
    )
    assert sampling(tmp_path)["status"] == "warn" and "quantised to 8 bits" in sampling(tmp_path)["message"]


def test_four_bits_round_weights_alone_and_keep_the_narrow_limit(outlying_llama, tmp_path):
    health = HealthCallback(tmp_path)
    trainer = trained(outlying_llama, tmp_path, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, health)
    gap = next(row for row in trainer.state.log_history if "loss" in row)["sampling/logp_difference_mean"]
    assert gap < 1e-4 and health.watch.limits == Limits()
