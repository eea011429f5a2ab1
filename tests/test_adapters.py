"""Adapters in training: what moves, what stays, and that a saved or resumed policy is the policy that was trained."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig

from alignkit import PPOConfig, PPOTrainer, ReinforceConfig, ReinforceTrainer
from alignkit.errors import ConfigError, ModelError
from alignkit.models.adapters import check_adapter
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.reference import frozen_copy, reference_of
from alignkit.models.scoring import score_completions
from alignkit.models.tiny import tiny_causal_lm

QUANTISED = {
    "full": None,
    "8bit": {"load_in_8bit": True},
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
}
METHODS = {
    "ppo": (PPOTrainer, PPOConfig, {}),
    "critic": (PPOTrainer, PPOConfig, {"separate_critic": True}),
    "reinforce": (ReinforceTrainer, ReinforceConfig, {}),
}
FAST = [("full", "critic", "adamw_8bit"), ("8bit", "ppo", "adamw_8bit"), ("nf4", "reinforce", "lion_8bit")]
SLOW = [
    *((bits, method, "adamw_torch") for bits in QUANTISED for method in METHODS),
    *(("8bit", "ppo", optim) for optim in ("paged_adamw_8bit", "lion_8bit")),
    *(("nf4", "critic", optim) for optim in ("adamw_8bit", "paged_adamw_8bit")),
]
IDS = torch.arange(2, 22).reshape(2, 10)


def letters(prompts, completions, **columns):
    """A reward that no two completions are likely to share."""
    return [len(text) / 10 for text in completions]


def data(rows=32):
    prompts = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
    return Dataset.from_dict({"prompt": [prompts[i % 4] for i in range(rows)]})


def quantization(bits):
    return None if QUANTISED[bits] is None else BitsAndBytesConfig(**QUANTISED[bits])


def lora(**settings):
    return LoraConfig(**{"r": 64, "lora_dropout": 0.1, "target_modules": "all-linear", **settings})


def trainer(folder, model, bits="full", method="ppo", adapter=None, **settings):
    family, config, extra = METHODS[method]
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=4, max_completion_length=6, max_steps=2, logging_steps=1,
        report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="steps", save_steps=1,
        learning_rate=1e-2, num_iterations=1,
    )  # fmt: skip
    args = config(**{**defaults, **extra, **settings})
    return family(
        str(model), letters, args, data(), data(4), quantization_config=quantization(bits), peft_config=adapter
    )


@torch.no_grad()
def logits(model):
    was_training = model.training
    model.eval()
    seen = model(input_ids=IDS).logits
    model.train(was_training)
    return seen


@torch.no_grad()
def values(run):
    was_training = run.model.training
    run.model.eval()
    seen = score_completions(run.model, IDS[:, :5], torch.ones(2, 5), IDS[:, 5:], torch.ones(2, 5), values="full")
    run.model.train(was_training)
    return seen["values"]


def tensors(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}


def leaves(tree, name=""):
    """The tensors in an optimiser's state, by their path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{name}/{key}")
        elif isinstance(value, torch.Tensor):
            yield f"{name}/{key}", value


def different(one, other):
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize(
    ("bits", "method", "optim"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_what_was_trained_is_what_resumes_loads_and_goes_on(bits, method, optim, small_llama, tmp_path):
    run = trainer(tmp_path / "run", small_llama, bits, method, lora(), optim=optim)
    untouched = load_causal_or_seq2seq(small_llama, quantization_config=quantization(bits))
    start, expected = tensors(run.model), logits(untouched)
    with run.model.disable_adapter():
        assert torch.equal(logits(run.model), expected)
    run.train()
    # 1. the adapter and the head moved, the base did not, and without the adapter it is still the base
    end = tensors(run.model)
    moved = different(start, end)
    learns = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert moved and moved <= learns
    assert {name for name in learns if "lora_B" in name or "value_head" in name} <= moved
    with reference_of(run.model, None) as reference:
        assert torch.equal(logits(reference), expected)
    # 2. a resumed run is the run that was not interrupted
    again = trainer(tmp_path / "run", small_llama, bits, method, lora(), optim=optim)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert different(end, tensors(again.model)) == set()
    states = [dict(leaves(r.optimizer.state_dict()["state"])) for r in (run, again)]
    assert different(*states) == set()
    assert ("8bit" in optim) == any(tensor.dtype == torch.uint8 for tensor in states[0].values())
    # 3. the saved folder is the live model, and goes on as it, judged against itself
    run.save_model(str(tmp_path / "saved"))
    assert torch.equal(logits(load_causal_or_seq2seq(tmp_path / "saved")), logits(run.model))
    next_run = trainer(tmp_path / "next", tmp_path / "saved", method=method)
    assert torch.equal(logits(next_run.model), logits(run.model))
    if method != "reinforce":
        assert values(run).abs().sum() > 0 and torch.equal(values(next_run), values(run))
    next_run.train()
    assert torch.equal(logits(next_run.ref_model), logits(run.model))
    assert not torch.equal(logits(next_run.model), logits(run.model))


@pytest.mark.parametrize("bits", QUANTISED)
def test_the_reference_of_an_adapter_costs_an_adapter(bits, small_llama, tmp_path):
    run = trainer(tmp_path / "run", small_llama, bits, "reinforce", lora())
    run.save_model(str(tmp_path / "saved"))
    model = load_causal_or_seq2seq(tmp_path / "saved")
    model.set_requires_grad(model.active_adapters)
    before = logits(model) if bits == "nf4" else None  # 8-bit layers may not have computed before they are shared
    reference = frozen_copy(model, share_frozen=True)
    mine = {id(p) for p in model.parameters() if not p.requires_grad}
    assert {id(p) for name, p in reference.named_parameters() if "lora_" not in name} == mine
    assert not any(p.requires_grad for p in reference.parameters())
    assert any(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(reference), logits(model))
    assert before is None or torch.equal(before, logits(model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    assert not torch.equal(logits(reference), logits(model))


def test_nothing_drops_out_of_the_reference():
    model = tiny_causal_lm("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    expected = logits(model)
    policy = PeftModel(model, lora(r=4, target_modules=["c_attn"], fan_in_fan_out=True)).train()
    policy.base_model.model.transformer.h[0].eval()
    modes = [module.training for module in policy.modules()]
    with reference_of(policy, None) as reference, torch.no_grad():
        assert torch.equal(reference(input_ids=IDS).logits, expected)
    assert [module.training for module in policy.modules()] == modes


def test_a_critic_that_an_adapter_lacks_is_told_and_one_of_another_kind_refused(small_llama, tmp_path, caplog):
    for method in ("reinforce", "critic"):
        trainer(tmp_path / "run", small_llama, method=method, adapter=lora(r=4)).save_model(str(tmp_path / method))
    with caplog.at_level(logging.WARNING, logger="alignkit.models"):
        trainer(tmp_path / "ppo", tmp_path / "reinforce").train()
    assert "reinforce holds no value head" in caplog.text and "value_warmup_steps" in caplog.text
    with pytest.raises(ConfigError, match="trunk of its own; train on with separate_critic=True"):
        trainer(tmp_path / "ppo", tmp_path / "critic")


def test_an_adapter_without_some_of_its_weights_is_refused(small_llama, tmp_path):
    trainer(tmp_path / "run", small_llama, adapter=lora(r=4)).save_model(str(tmp_path / "saved"))
    file = tmp_path / "saved" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "o_proj" not in name}, file)
    with pytest.raises(ModelError, match=r"lacks weights that its adapter_config\.json speaks of.*o_proj"):
        load_causal_or_seq2seq(tmp_path / "saved")


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (lora(target_modules=["q_proj", "q_projj"]), "target_modules q_projj matches nothing.*q_proj, up_proj, v_proj"),
        (lora(target_modules=r".*\.attention"), "matches nothing in LlamaForCausalLM"),
    ],
)
def test_an_adapter_that_fits_nothing_is_refused(adapter, said, small_llama, tmp_path):
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, small_llama, adapter=adapter)


def test_an_adapter_on_an_adapter_is_refused(small_llama, tmp_path):
    trainer(tmp_path / "run", small_llama, adapter=lora(r=4)).save_model(str(tmp_path / "saved"))
    with pytest.raises(ConfigError, match="is an adapter already and goes on learning"):
        trainer(tmp_path / "next", tmp_path / "saved", adapter=lora(r=4))


def test_a_model_type_that_peft_does_not_know_needs_target_modules(small_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.models.adapters.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    with pytest.raises(ConfigError, match="PEFT does not know which layers of a model of type 'llama'"):
        trainer(tmp_path, small_llama, adapter=LoraConfig(r=4))


def test_an_adapter_that_was_loaded_ready_learns(small_llama, tmp_path):
    trainer(tmp_path / "run", small_llama, adapter=lora(), max_steps=1).save_model(str(tmp_path / "saved"))
    model = load_causal_or_seq2seq(tmp_path / "saved")
    assert not any(parameter.requires_grad for parameter in model.parameters())  # it is loaded to be read
    args = trainer(tmp_path / "args", small_llama, adapter=lora()).args
    run = PPOTrainer(model, letters, args, data(), processing_class=load_tokenizer(small_llama))
    before = {name: tensor.clone() for name, tensor in tensors(run.model).items()}
    run.train()
    moved = {name for name, tensor in tensors(run.model).items() if not torch.equal(tensor, before[name])}
    assert any("lora_A" in name for name in moved) and any("value_head" in name for name in moved)
    assert all("lora_" in name or "value_head" in name for name in moved)
    assert not torch.equal(logits(run.ref_model), logits(run.model))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["c_attn"], alora_invocation_tokens=[5], task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=["alora", "prefix", "prompt"],
)
def test_adapters_that_depend_on_where_a_text_begins_are_refused(config):
    with pytest.raises(ConfigError, match=r"depends on where a text begins .* use LoRA"):
        check_adapter(tiny_causal_lm("gpt2"), config)
