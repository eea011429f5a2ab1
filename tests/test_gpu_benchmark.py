"""The GPU benchmark's script, tried on the CPU; what it counts, by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(*arguments):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path):
    done = run("--output", tmp_path / "results.jsonl")
    assert done.returncode == 2
    assert done.stdout.startswith("no CUDA GPU at hand: nothing is measured") and done.stdout.count("\n") == 1
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    "case",
    [
        "gcn-sized",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ppo-lora", "ppo-lora-8bit", "ppo-qlora", "ppo-full")
        ),
    ],
)
def test_a_case_is_measured_kept_once_and_shown(case, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps({"case": case, "scale": "tiny", "device": "cpu"}) + "\n" + '{"case": "other"}\n')
    done = run(
        "--device", "cpu", "--scale", "tiny", "--steps", 1, "--models", tmp_path, "--output", file, "--only", case
    )
    assert done.returncode == 0, done.stderr
    other, figures = map(json.loads, file.read_text().splitlines())
    assert other == {"case": "other"} and figures["case"] == case
    assert figures["samples_per_s"] == pytest.approx(8 / figures["step_s"])
    assert 0 < sum(figures["phase_s"].values()) <= figures["step_s"] * 1.5
    assert figures["mfu"] is None and figures["peak_cuda_mib"] is None  # nobody knows them of a CPU
    assert all(loss == loss for loss in figures["losses"])
    assert f"| {case} |" in done.stdout and ("stand-in" in done.stdout) == (case == "gcn-sized")


def test_operations_and_weights_are_counted_as_they_are(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_case
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    scale = gpu_case.SCALES["tiny"]
    policy = gpu_case.policy_folder(scale, tmp_path, "cpu")
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, attn_implementation="eager")
    assert sum(p.numel() for p in model.parameters()) == gpu_case.weights_of(scale)
    assert 1.0e9 < gpu_case.weights_of(gpu_case.SCALES["1b"]) < 1.2e9
    tokens = scale.prompt + scale.new_tokens
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(scale.rows, tokens, dtype=torch.long)).logits.sum().backward()
    # torch multiplies the whole square of the attention, of which the causal half counts
    half = 3 * scale.rows * scale.layers * 2 * scale.hidden * tokens**2
    assert gpu_case.flops(scale, full=True)[1] == pytest.approx(counter.get_total_flops() - half, rel=0.01)
    assert gpu_case.flops(scale, full=False)[1] < gpu_case.flops(scale, full=True)[1]
