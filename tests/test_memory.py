"""The memory that a dry run foretells is the memory that a trainer then holds: counted tensor by tensor."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, BitsAndBytesConfig, Trainer, TrainingArguments

from alignkit import PPOConfig, PPOTrainer, load_recipe
from alignkit.cli import main
from alignkit.models.loading import load_causal_or_seq2seq
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.run.dry import foretell
from alignkit.run.memory import Held, held, shapes
from alignkit.run.models import reference_options

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

WORDS = [f"w{number}" for number in range(997)]
OPTIMISERS = (
    *("adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd", "lion_32bit", "ademamix"),
    *("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "ademamix_8bit", "rmsprop_bnb"),
    "rmsprop_bnb_8bit",
)
STATES = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")  # torch's AdamW, bitsandbytes'


@pytest.fixture(scope="module")
def wordy_llama(tmp_path_factory):
    """The folder of a Llama with more words than bitsandbytes' least size for 8 bits: its embedding must be seen."""
    folder = tmp_path_factory.mktemp("wordy") / "llama"
    tiny_causal_lm("llama", vocab_size=1000, hidden_size=64, layers=1).save_pretrained(folder)
    tiny_tokenizer(WORDS).save_pretrained(folder)
    return str(folder)


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
def test_what_is_foretold_is_what_a_trainer_holds(case, wordy_llama, tmp_path):
    settings = dict(CASES[case])
    dtype, bits = settings.pop("dtype", torch.float32), settings.pop("bits", None)
    lora = LoraConfig(r=8, target_modules="all-linear") if settings.pop("lora", False) else None
    quantization = None if bits is None else BitsAndBytesConfig(**bits)
    args = PPOConfig(
        str(tmp_path), max_steps=1, num_iterations=1, per_device_train_batch_size=4, max_completion_length=4,
        report_to="none", use_cpu=True, save_strategy="no", model_init_kwargs={"dtype": dtype}, **settings,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["w1 w2 w3"] * 8})
    trainer = PPOTrainer(
        wordy_llama, lambda completions, **columns: [float(len(text)) for text in completions], args, data,
        processing_class=tiny_tokenizer(WORDS), peft_config=lora, quantization_config=quantization,
    )  # fmt: skip
    trainer.train()
    seen = measured(trainer)
    critic = settings.pop("separate_critic", False)
    foretold = held(
        shapes(AutoConfig.from_pretrained(wordy_llama), dtype), optim=str(getattr(args.optim, "value", args.optim)),
        adapter=lora, quantization=quantization, values=True, separate_critic=critic,
    )  # fmt: skip
    assert foretold.trainable == seen.trainable
    for part in ("weights", "gradients", "optimiser", "reference"):
        assert getattr(foretold, part) == pytest.approx(getattr(seen, part), rel=0.01), part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("optim", OPTIMISERS)
def test_the_states_of_an_optimiser_are_those_that_transformers_gives_it(optim, dtype, tmp_path):
    model = tiny_causal_lm("llama", vocab_size=1000, hidden_size=64, layers=1).to(dtype)
    optimiser = Trainer(model, TrainingArguments(str(tmp_path), optim=optim, use_cpu=True)).create_optimizer()
    tokens = torch.arange(8).view(1, 8)
    model(tokens, labels=tokens).loss.backward()
    optimiser.step()
    states = [
        value
        for state in optimiser.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in ("step", "qmap1", "qmap2")  # a few bytes; shared tables
    ]
    foretold = held(shapes(model.config, dtype), optim=optim).optimiser
    assert foretold == pytest.approx(size(states), rel=0.01)


@pytest.mark.parametrize(
    ("optim", "settings"),
    [("lomo", None), ("galore_adamw_8bit", "rank=8"), ("adamw_torch_8bit", None), ("sgd", "momentum=0.9")],
)
def test_the_states_of_other_optimisers_are_not_guessed(optim, settings):
    model = shapes(AutoConfig.for_model("llama", vocab_size=64, hidden_size=64, num_hidden_layers=1), torch.float32)
    found = held(model, optim=optim, optim_args=settings)
    assert found.optimiser is None
    assert found.total == found.weights + found.gradients + found.reference
    assert "optimiser not known" in found.sentence() and "without what is not known" in found.sentence()


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
    [
        ({"target": "q_projj"}, "target_modules q_projj match"),
        ({"dtype": "float3"}, "there is no precision 'float3'"),
        ({"dtype": "int8"}, "there is no precision 'int8'"),
    ],
)
def test_a_dry_run_finds_what_the_model_would_have_refused(change, said, small_llama, tmp_path, capsys):
    assert dry(tmp_path, small_llama, **change) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bf16", "half", "auto", "torch.float32"])
def test_a_dry_run_takes_the_precisions_that_training_takes(dtype, small_llama, tmp_path):
    assert dry(tmp_path, small_llama, dtype=dtype) == 0


@pytest.mark.parametrize("adapted", [True, False])
def test_a_reference_of_its_own_counts_by_its_own_size(adapted, small_llama, wordy_llama, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.format(model=small_llama, folder=tmp_path, target="q_proj", dtype="fp32")
    )
    settings = [f"model.reference={{name: {wordy_llama}, dtype: bf16}}", *([] if adapted else ["adapter=null"])]
    recipe = load_recipe(tmp_path / "recipe.yaml", settings)
    args = PPOConfig(str(tmp_path / "run"), use_cpu=True)
    configs = {
        "model": AutoConfig.from_pretrained(small_llama),
        "model.reference": AutoConfig.from_pretrained(wordy_llama),
    }
    loaded = load_causal_or_seq2seq(wordy_llama, **reference_options(recipe))  # as a run loads it
    assert foretell(recipe, args, configs).reference == size(weights_of(loaded)) > 0
    unseen = foretell(recipe, args, {"model": configs["model"]})  # the reference is not on this machine
    assert unseen.reference is None and "reference not known" in unseen.sentence()


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
