"""Quantised runs from the command line: trained, judged, continued, and refused where something is missing."""

import importlib.util
import json
from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit.models.adapters import saved_quantization
from alignkit.trainers import whole_checkpoints

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
GONE = "bitsandbytes"
EIGHT = "quantization={load_in_8bit: true}"
FOUR = "quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}"
ADAPTER = "adapter={r: 4, target_modules: all-linear}"


def train(overrides, folder, *more):
    return main(["train", str(RECIPES / "quickstart.yaml"), *overrides, f"training.output_dir={folder}", *more])


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [EIGHT, FOUR])
def test_a_saved_quantised_run_is_judged_as_at_its_end_and_goes_on(quantization, tiny_quickstart, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(tiny_quickstart, run, ADAPTER, quantization, "training.learning_rate=0.01") == 0
    after = json.loads((run / "results.json").read_text())["after"]
    assert main(["evaluate", str(run), "--output", str(tmp_path / "judged.json")]) == 0
    judged = json.loads((tmp_path / "judged.json").read_text())["figures"]
    assert judged == pytest.approx({key: after[key] for key in judged}, rel=0, abs=0) and judged["kl"] != 0
    # a whole model under the same recipe is quantised as well, and then is the reference
    start = next(o.removeprefix("model=") for o in tiny_quickstart if o.startswith("model="))
    assert main(["evaluate", str(run), "--model", start, "--output", str(tmp_path / "start.json")]) == 0
    assert json.loads((tmp_path / "start.json").read_text())["figures"]["kl"] == pytest.approx(0, abs=0.02)
    capsys.readouterr()
    assert main(["generate", str(run / "model"), "--prompt", "the film", "--max-new-tokens", "4"]) == 0
    assert "the film" in capsys.readouterr().out
    others = [o for o in tiny_quickstart if not o.startswith("model=")]
    assert train([*others, f"model={run / 'model'}"], tmp_path / "next") == 0
    assert (tmp_path / "next" / "model" / "base_quantization.json").is_file()


@pytest.mark.parametrize("trainer", ["ppo", "grpo", "sft"])
def test_every_saved_adapter_has_its_quantisation_beside_it_written_once(trainer, small_llama, tmp_path, monkeypatch):
    rewards = "" if trainer == "sft" else "rewards: {length: {target: 6}}"
    samples = "" if trainer == "sft" else "max_completion_length: 4, num_generations: 2, "
    (tmp_path / "quantised.yaml").write_text(f"""
trainer: {trainer}
model: {small_llama}
data: {{use: quickstart, train_size: 16, validation_size: 2}}
{rewards}
training: {{{samples}max_steps: 1, save_steps: 1, per_device_train_batch_size: 4, output_dir: {tmp_path}/run}}
evaluation: {{prompts: 2}}
adapter: {{r: 4, target_modules: all-linear}}
quantization: {{load_in_8bit: true}}
""")
    written, save = [], whole_checkpoints.save_quantization
    monkeypatch.setattr(
        whole_checkpoints, "save_quantization", lambda model, folder: written.append(folder) or save(model, folder)
    )
    assert main(["train", str(tmp_path / "quantised.yaml")]) == 0
    assert [Path(folder).name for folder in written] == ["checkpoint-1", "model"]
    for name in ("checkpoint-1", "model"):
        assert saved_quantization(name, tmp_path / "run" / name)["quantization_config"].load_in_8bit


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([EIGHT], "quantised weights do not train; add an adapter"),
        (["adapter={r: 4, target_modules: [q_projj]}"], "target_modules q_projj matches nothing"),
    ],
)
def test_a_run_that_cannot_train_says_what_to_do(overrides, said, tiny_quickstart, tmp_path, capsys):
    assert train(tiny_quickstart, tmp_path / "run", *overrides) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("overrides", [[EIGHT, ADAPTER], ["training.optim=adamw_8bit"]])
def test_a_missing_bitsandbytes_is_named(overrides, tiny_quickstart, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == GONE else find(name, *a))
    assert train(tiny_quickstart, tmp_path / "run", *overrides) == 2
    assert "needs bitsandbytes, which is not installed: pip install -e '.[quantization]'" in capsys.readouterr().err
