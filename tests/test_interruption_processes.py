"""Two processes stop at the same step when one of them gets a signal, and go on together to the unbroken run's end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from alignkit.trainers.checkpoint_files import RECORD, fault_of, newest_last
from alignkit.whole_files import UNFINISHED

RECIPE = """
trainer: ppo
model: {scratch: {hidden_size: 16, layers: 1, heads: 2, context: 96}}
data: {use: quickstart, train_size: 64, validation_size: 8}
rewards: {length: {target: 6}}
training: {max_steps: 60, per_device_train_batch_size: 4, gradient_accumulation_steps: 2, num_iterations: 2,
  max_completion_length: 8, learning_rate: 1e-3, logging_steps: 1, save_strategy: steps, save_steps: 7, use_cpu: true}
evaluation: {prompts: 4}
"""
# a worker says who it is, for the test to find
WORKER = """
import os, pathlib, sys
pathlib.Path(sys.argv.pop(1), "pid-" + os.environ["RANK"]).write_text(str(os.getpid()))
from alignkit.cli import main
sys.exit(main())
"""


def launch(folder: Path, run: Path, port: int, *more: str) -> subprocess.Popen:
    (folder / "worker.py").write_text(WORKER)
    (folder / "tiny.yaml").write_text(RECIPE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    job = [str(folder / "worker.py"), str(folder), "train", str(folder / "tiny.yaml"), f"training.output_dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*torchrun, *job, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_for_step(process: subprocess.Popen, run: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").is_file() or f'"step": {step},' not in (run / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_one_signal_stops_both_and_a_kill_of_both_costs_nothing(tmp_path):
    whole = launch(tmp_path, tmp_path / "whole", 29811)
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said[-3000:]
    run = tmp_path / "run"
    # the second process alone gets SIGTERM, between two checkpoints
    first = launch(tmp_path, run, 29812)
    wait_for_step(first, run, 10)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    (stopped,) = re.findall(r"interrupted; (checkpoint-\d+) is saved\. To continue: ", said)
    assert first.returncode != 0 and newest_last(run)[-1].name == stopped and not (run / "results.json").exists()
    assert {"rollout_0.pt", "rollout_1.pt", RECORD} <= {path.name for path in (run / stopped).iterdir()}
    # then both are killed
    second = launch(tmp_path, run, 29813, "--resume")
    wait_for_step(second, run, int(stopped.partition("-")[2]) + 12)
    for rank in (0, 1):
        os.kill(int((tmp_path / f"pid-{rank}").read_text()), signal.SIGKILL)
    said, _ = second.communicate(timeout=120)
    assert said.count(f"continuing from {stopped}\n") == 1
    assert [fault_of(checkpoint) for checkpoint in newest_last(run)] == [None] * len(newest_last(run))
    last = launch(tmp_path, run, 29814, "--resume")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0 and "continuing from checkpoint-" in said, said[-3000:]
    ends = [load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", run)]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    assert not (run / UNFINISHED).exists()
