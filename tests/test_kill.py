"""A run that is killed at any moment, saving included, goes on from its last whole checkpoint and ends as if unbroken.

Set ALIGNKIT_KILL_SEED to choose other moments, and ALIGNKIT_KILL_FIGURES to a file for what happened.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignkit.trainers.checkpoint_files import choose_checkpoint, fault_of, newest_last
from alignkit.whole_files import UNFINISHED

STEPS = 8
SEED = int(os.environ.get("ALIGNKIT_KILL_SEED", "20"))


class Server:
    """The process of run_to_kill.py."""

    def __init__(self, log: Path):
        script = Path(__file__).with_name("run_to_kill.py")
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def attempt(self, folder: Path, limit: int | None, **how) -> dict:
        assert self.process.stdin and self.process.stdout
        print(json.dumps({"folder": str(folder), "limit": limit, **how}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert answer["exit"] in (0, None), self.log.read_text()[-3000:]
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.process.stdin.close()
    assert server.process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def unbroken(server, tmp_path_factory):
    """The folder of a run that nobody killed, and how long it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    server.attempt(folder / "first", 1)  # what is slow once only
    started = time.monotonic()
    assert server.attempt(folder / "run", None)["exit"] == 0
    return folder / "run" / f"checkpoint-{STEPS}", time.monotonic() - started


def state_of(checkpoint: Path) -> dict:
    """All that training goes on from: weights, critic, optimiser, scheduler, random numbers, rollout, rewards."""
    found = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.suffix == ".safetensors":
            found[name] = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            found[name] = torch.load(path, weights_only=False)
    return found


def same(first, second) -> bool:
    """Bit for bit, in structures of tensors and plain values; times differ in any two runs."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        keys = [key for key in first if not str(key).startswith(("phase/", "step_time"))]
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in keys)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    if hasattr(first, "tolist"):
        return same(first.tolist(), second.tolist())
    return first == second


def check_end(folder: Path, unbroken: Path) -> None:
    ends = [state_of(folder / f"checkpoint-{STEPS}"), state_of(unbroken)]
    names = set(ends[1])
    assert {"model.safetensors", "value_head.safetensors", "optimizer.pt", "rewards/letters.pt"} <= names
    assert set(ends[0]) == names
    # the host's settings name the folder; everything else is compared
    different = [name for name in sorted(names) if not same(ends[0][name], ends[1][name])]
    assert different == [], folder


def check_after_kill(folder: Path) -> None:
    """Nothing that bears a checkpoint's name is half a checkpoint, and what is reported is what there is."""
    for checkpoint in newest_last(folder):
        assert fault_of(checkpoint) is None, checkpoint
        assert state_of(checkpoint).keys() >= {"optimizer.pt", "rng_state.pth", "rewards/letters.pt"}
    cut = [path.name for path in newest_last(folder / UNFINISHED)]
    remarks = choose_checkpoint(folder).remarks
    assert len(remarks) == len(cut) and all(name in said for name, said in zip(cut, remarks, strict=True))


def moments(generator: random.Random, seconds: float):
    """Ways to die: any time; at any file that a save touches; at any byte of one."""
    while True:
        yield {"seconds": generator.uniform(0.0, seconds)}
        yield {"save": generator.randint(1, 3), "call": generator.randint(0, 24)}
        yield {"save": generator.randint(1, 3), "bytes": int(2 ** generator.uniform(0, 17))}


def kill_until(server: Server, tmp_path: Path, unbroken, wanted: int) -> Counter:
    checkpoint, seconds = unbroken
    ways = moments(random.Random(SEED), seconds)
    seen: Counter = Counter()
    while seen["kills"] < wanted:
        folder = tmp_path / f"run-{seen['runs']}"
        limit = (None, 1, 2)[seen["runs"] % 3]
        while True:
            how = next(ways) if seen["kills"] < wanted else {}
            before = choose_checkpoint(folder).checkpoint
            answer = server.attempt(folder, limit, **how)
            if answer["exit"] == 0:
                break
            check_after_kill(folder)
            after = choose_checkpoint(folder).checkpoint
            assert before is None or (after is not None and after.name >= before.name), "a whole checkpoint was lost"
            seen.update(["kills", "saving" if answer["saving"] else "between", *(k for k in how if k != "save")])
            seen.update(["left half a save"] if answer["saving"] and newest_last(folder / UNFINISHED) else [])
        check_end(folder, checkpoint)
        seen["runs"] += 1
    return seen


def test_four_kills_and_the_end_is_that_of_the_unbroken_run(server, unbroken, tmp_path):
    seen = kill_until(server, tmp_path, unbroken, 4)
    assert seen["kills"] == 4 and seen["saving"] >= 2


@pytest.mark.slow
def test_fifty_kills(server, unbroken, tmp_path):
    started = time.monotonic()
    seen = kill_until(server, tmp_path, unbroken, 50)
    figures = {**seen, "seed": SEED, "took": round(time.monotonic() - started, 1)}
    if "ALIGNKIT_KILL_FIGURES" in os.environ:
        Path(os.environ["ALIGNKIT_KILL_FIGURES"]).write_text(json.dumps(figures) + "\n")
    assert seen["kills"] == 50 and min(seen["seconds"], seen["call"], seen["bytes"]) > 5 and seen["saving"] > 15
