"""Runs of classifiers and language models, and the count of processes that a run insists on."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from test_launch_files import launched
from transformers import AutoModelForSequenceClassification

from alignkit.errors import ConfigError, DataError
from alignkit.json_lines import read_json_lines
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.environment import check_processes

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def test_a_classifier_run_leaves_a_classifier_with_named_classes(tmp_path):
    small = ["model.scratch.hidden_size=32", "data.train_size=640", "data.validation_size=64"]
    recipe = load_recipe(
        RECIPES / "quickstart" / "classifier.yaml",
        [*small, "training.num_train_epochs=6", "training.learning_rate=3e-3", f"training.output_dir={tmp_path}"],
    )
    folder = run_recipe(recipe)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    results = json.loads((folder / "results.json").read_text())
    assert results["before"]["accuracy"] == pytest.approx(0.5, abs=0.2)
    assert results["after"]["accuracy"] > 0.9
    assert results["after"]["nll"] == pytest.approx(results["after"]["loss"], abs=1e-3)
    sample = next(s for s in read_json_lines(folder / "samples.jsonl") if s["phase"] == "after")
    assert sample["reference"] in ("negative", "positive") and 0 <= sample["reward"] <= 1


def test_classes_beyond_the_named_ones_are_refused(tmp_path):
    recipe = load_recipe(
        RECIPES / "quickstart" / "classifier.yaml",
        ["model.labels=[only]", "data.train_size=16", "data.validation_size=8", f"training.output_dir={tmp_path}"],
    )
    with pytest.raises(DataError, match=r"names 1 classes \(only\), the data have label 1"):
        run_recipe(recipe)


def test_a_language_model_run_learns_and_completes_beginnings(tmp_path):
    small = ["model.scratch.hidden_size=32", "model.scratch.layers=1", "data.train_size=256", "data.validation_size=16"]
    small += ["evaluation.given_words=4", "evaluation.max_new_tokens=5", "evaluation.prompts=3"]
    recipe = load_recipe(
        RECIPES / "quickstart" / "lm.yaml", [*small, "training.learning_rate=1e-2", f"training.output_dir={tmp_path}"]
    )
    results = json.loads((run_recipe(recipe) / "results.json").read_text())
    assert results["after"]["loss"] < results["before"]["loss"] - 1
    import math

    assert results["after"]["perplexity_of_text"] == pytest.approx(math.exp(results["after"]["loss"]))
    samples = read_json_lines(tmp_path / "samples.jsonl")
    assert [sample["phase"] for sample in samples] == ["before"] * 3 + ["after"] * 3
    assert {len(sample["prompt"].split()) for sample in samples} == {4}
    assert {sample["length"] for sample in samples if sample["phase"] == "before"} == {5}


def test_fewer_processes_than_asked_for_is_an_error(monkeypatch):
    monkeypatch.setenv("ALIGNKIT_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match=r"asks for 2 processes, but 1 is running.*torchrun --nproc_per_node 2"):
        check_processes()
    monkeypatch.setenv("ALIGNKIT_NUM_PROCESSES", "two")
    with pytest.raises(ConfigError, match="expected a whole number"):
        check_processes()
    monkeypatch.setenv("ALIGNKIT_NUM_PROCESSES", "1")
    assert check_processes() == 1


@pytest.mark.parametrize("asked, refused", [("1", False), ("2", True), ("7", True)])
def test_accelerate_that_starts_one_process_for_several_is_noticed(asked, refused, monkeypatch):
    """The environment is what `accelerate launch --cpu --num_processes N` gives to the one process that it starts."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "ALIGNKIT_NUM_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["--cpu", "--num_processes", asked, "--num_machines", "1", "--mixed_precision", "no"]
    arguments += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "-m", "alignkit"]
    _, environment = prepare_simple_launcher_cmd_env(launch_command_parser().parse_args(arguments))
    assert "WORLD_SIZE" not in environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not refused:
        assert check_processes() == 1
        return
    with pytest.raises(ConfigError, match=r"asked for several processes, but started one.*torchrun"):
        check_processes()
    monkeypatch.setenv("ALIGNKIT_NUM_PROCESSES", "1")
    assert check_processes() == 1, "who says so gets one"


@pytest.mark.parametrize("file, variable, sharding", [
    ("fsdp2", "ACCELERATE_USE_FSDP", "FSDP"), ("zero2", "ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
    ("zero3", "ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ddp", None, None),
])  # fmt: skip
@pytest.mark.parametrize("processes", [1, 2])
def test_a_launch_file_that_shards_is_refused_where_accelerate_would_not(
    file, variable, sharding, processes, monkeypatch
):
    """The processes of torchrun are played: accelerate knows two of them on CPUs, or one that nobody launched."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    settings = launched(RECIPES / "accelerate" / f"{file}.yaml")
    settings.deepspeed_fields_from_accelerate_config = "zero_stage"  # which `accelerate launch` adds on its way
    prepare = prepare_multi_gpu_env if not settings.use_deepspeed else lambda s: prepare_deepspeed_cmd_env(s)[1]
    for name, value in prepare(settings).items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    for name in ("MASTER_PORT", "ALIGNKIT_NUM_PROCESSES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    state = PartialState()
    monkeypatch.setitem(state._shared_state, "num_processes", processes)
    kind = DistributedType.NO if processes == 1 else DistributedType.MULTI_CPU
    monkeypatch.setitem(state._shared_state, "distributed_type", kind)
    monkeypatch.setitem(state._shared_state, "device", torch.device("cpu"))
    if variable is None:
        assert check_processes() == processes
        return
    said = rf"{variable}=true .* asks for {sharding}, but .* on cpu, where .* torchrun --nproc_per_node {processes} "
    with pytest.raises(ConfigError, match=said):
        check_processes()
    monkeypatch.setitem(state._shared_state, "distributed_type", DistributedType.MULTI_GPU)
    assert check_processes() == processes, "where it shards, it may"


def test_an_lstm_learns_text_by_sft(tmp_path):
    """TRL's loss reads the backbone's states and the head by themselves."""
    texts = [{"text": f"the film was {word} and {other}"} for word in "abcdefgh" for other in "ijklmnop"]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    recipe = tmp_path / "lstm.yaml"
    recipe.write_text(f"""
trainer: sft
model: {{scratch: {{architecture: lstm, hidden_size: 32, vocab_size: 300, context: 32}}}}
data: {{use: files, path: "{tmp_path}/texts.jsonl", validation_size: 4}}
training: {{num_train_epochs: 4, per_device_train_batch_size: 4, learning_rate: 1.0e-2, output_dir: "{tmp_path}/run"}}
evaluation: {{given_words: 2, prompts: 2, max_new_tokens: 4}}
""")
    results = json.loads((run_recipe(load_recipe(recipe)) / "results.json").read_text())
    assert results["after"]["loss"] < results["before"]["loss"] - 2
    with pytest.raises(DataError, match="none of the 2 held-out texts has more than 9 words"):
        run_recipe(load_recipe(recipe, ["evaluation.given_words=9", f"training.output_dir={tmp_path}/other"]))
