"""The memory that a dry run foretells is the memory that a trainer then holds: counted tensor by tensor."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, BitsAndBytesConfig

from alignkit import PPOConfig, PPOTrainer
from alignkit.cli import main
from alignkit.models.tiny import tiny_tokenizer
from alignkit.run.memory import Held, held, shapes

EIGHT = {"load_in_8bit": True}
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
CASES = {
    "all weights": {},
    "bf16": {"dtype": torch.bfloat16},
    "8-bit optimiser": {"optim": "adamw_8bit"},
    "separate critic": {"separate_critic": True},
    "LoRA": {"lora": True},
    "LoRA, separate critic": {"lora": True, "separate_critic": True},
    "LoRA on 8 bits": {"lora": True, "bits": EIGHT, "optim": "lion_8bit"},
    "LoRA on 4 bits": {"lora": True, "bits": FOUR},
    "LoRA on 4 bits, bf16": {
        "lora": True,
        "bits": {**FOUR, "bnb_4bit_use_double_quant": True},
        "dtype": torch.bfloat16,
    },
}

STATES = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")  # torch's AdamW, bitsandbytes'


def size(tensors) -> int:
    """Bytes of the storages behind the tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def weights_of(model):
    """Every tensor of the model that holds weights, bitsandbytes' scales with them; no buffers (positions, masks)."""
    for parameter in model.parameters():
        yield parameter.data
        scales = getattr(parameter, "quant_state", None)
        if scales is not None:
            yield scales.absmax
            if scales.nested:
                yield scales.state2.absmax
    for module in model.modules():
        state = getattr(module, "state", None)
        yield from [] if state is None else [t for t in (state.CB, state.SCB) if t is not None]


def measured(trainer) -> Held:
    """What a trainer holds after its last step; gradients are gone by then, and as wide as what learns."""
    model = trainer.model
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [state[name] for state in trainer.optimizer.state.values() for name in STATES if name in state]
    reference = [] if trainer.ref_model is None else list(weights_of(trainer.ref_model))
    return Held(
        parameters=0,
        trainable=sum(parameter.numel() for parameter in learning),
        weights=size(weights_of(model)),
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in learning),
        optimiser=size(states),
        reference=size(reference),
    )


@pytest.mark.parametrize("case", CASES)
def test_what_is_foretold_is_what_a_trainer_holds(case, small_llama, tmp_path):
    settings = dict(CASES[case])
    dtype, bits = settings.pop("dtype", torch.float32), settings.pop("bits", None)
    lora = LoraConfig(r=8, target_modules="all-linear") if settings.pop("lora", False) else None
    quantization = None if bits is None else BitsAndBytesConfig(**bits)
    args = PPOConfig(
        str(tmp_path), max_steps=1, num_iterations=1, per_device_train_batch_size=4, max_completion_length=4,
        report_to="none", use_cpu=True, save_strategy="no", model_init_kwargs={"dtype": dtype}, **settings,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["the film was"] * 8})
    trainer = PPOTrainer(
        small_llama, lambda completions, **columns: [float(len(text)) for text in completions], args, data,
        processing_class=tiny_tokenizer(), peft_config=lora, quantization_config=quantization,
    )  # fmt: skip
    trainer.train()
    seen = measured(trainer)
    critic = settings.pop("separate_critic", False)
    foretold = held(
        shapes(AutoConfig.from_pretrained(small_llama), dtype), optim=str(getattr(args.optim, "value", args.optim)),
        adapter=lora, quantization=quantization, values=True, separate_critic=critic,
    )  # fmt: skip
    assert foretold.trainable == seen.trainable
    for part in ("weights", "gradients", "optimiser", "reference"):
        assert getattr(foretold, part) == pytest.approx(getattr(seen, part), rel=0.01), part


RECIPE = """
trainer: ppo
model: {{name: {model}, dtype: {dtype}}}
data: {{use: quickstart, train_size: 16, validation_size: 4}}
rewards: {{length: {{target: 6}}}}
training: {{per_device_train_batch_size: 4, max_completion_length: 4, output_dir: {folder}/run, optim: adamw_torch}}
evaluation: {{prompts: 2}}
adapter: {{r: 4, target_modules: [{target}]}}
"""


def dry(folder, model, target="q_proj", dtype="bfloat16"):
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, folder=folder, target=target, dtype=dtype))
    return main(["train", str(folder / "recipe.yaml"), "--dry-run"])


def test_a_dry_run_says_what_training_holds(small_llama, tmp_path, capsys):
    assert dry(tmp_path, small_llama) == 0
    lora = LoraConfig(r=4, target_modules=["q_proj"])
    model = shapes(AutoConfig.from_pretrained(small_llama), torch.bfloat16)
    expected = held(model, optim="adamw_torch", adapter=lora, values=True)
    said = capsys.readouterr().out
    assert f"ok         memory: {expected.sentence()}" in said
    assert "GiB held throughout" in said and f"of which {expected.trainable} train" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [({"target": "q_projj"}, "target_modules q_projj match"), ({"dtype": "float3"}, "'float3' is no precision")],
)
def test_a_dry_run_finds_what_the_model_would_have_refused(change, said, small_llama, tmp_path, capsys):
    assert dry(tmp_path, small_llama, **change) == 2
    assert said in capsys.readouterr().err


def test_the_sums_of_the_page():
    """docs/memory.md: bytes for each weight of a model in which all are in linear layers, as good as."""
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=1024, num_hidden_layers=2, tie_word_embeddings=True
    )
    counted = held(shapes(config, torch.float32)).parameters

    def each(dtype=torch.float32, **settings):
        return held(shapes(config, dtype), **settings).total / counted

    assert each() == pytest.approx(4 + 4 + 8 + 4)
    assert each(reference=False) == pytest.approx(16)
    assert each(torch.bfloat16) == pytest.approx(2 + 2 + 4 + 2)
    assert each(optim="adamw_8bit") == pytest.approx(4 + 4 + 2.03 + 4, rel=0.002)
    assert each(separate_critic=True, values=True) == pytest.approx(36, rel=0.002)
    lora = LoraConfig(r=1, target_modules=["q_proj"])  # as good as nothing by itself
    assert each(adapter=lora) == pytest.approx(4, rel=0.01)
    assert each(adapter=lora, quantization=BitsAndBytesConfig(load_in_8bit=True)) == pytest.approx(1, rel=0.03)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert each(adapter=lora, quantization=BitsAndBytesConfig(**four)) == pytest.approx(0.5625, rel=0.03)
    double = BitsAndBytesConfig(**four, bnb_4bit_use_double_quant=True)
    assert each(adapter=lora, quantization=double) == pytest.approx(0.516, rel=0.03)
