"""The benchmark measures what it says: its harness, its limit's gradients, its accounting, its going on."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import clock  # noqa: E402
import contestant  # noqa: E402
import environments  # noqa: E402
import floor  # noqa: E402
import gpt2  # noqa: E402
import job  # noqa: E402
import limit  # noqa: E402
import phases  # noqa: E402
import plan  # noqa: E402
import record  # noqa: E402
import run  # noqa: E402
from rich.console import Console  # noqa: E402


@pytest.fixture(autouse=True)
def models_of_this_test(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "MODELS", tmp_path / "models")


def tiny(name: str, *, with_phases: bool = False, **changes):
    part = "phases" if with_phases else "rounds"
    measured = plan.Measurement(part, name, "tiny", changes.pop("epochs", 1), changes.pop("precision", "fp32"))
    rivals = {name: home for name, home in plan.ENVIRONMENTS.items() if name.startswith("trl")}
    with pytest.MonkeyPatch.context() as patch:  # ours runs here, whether `make bench` made an environment or not
        patch.setattr(run, "ENVIRONMENTS", rivals)
        return run.measure(measured, 1)


def test_a_process_of_ours_gives_figures_that_fit_together():
    figures = tiny("alignkit-ppo", with_phases=True)
    assert figures["steps"] == 1
    assert figures["samples_per_s"] == pytest.approx(8 / figures["step_wall_s"])
    assert figures["tokens_per_s"] == pytest.approx(4 * figures["samples_per_s"])
    assert 0 < figures["imports_rss_mib"] <= figures["before_training_rss_mib"] <= figures["peak_rss_mib"]
    seconds = figures["phases"]
    assert list(seconds) == list(phases.PHASES)
    assert sum(seconds.values()) == pytest.approx(figures["step_cpu_s"], rel=0.02, abs=0.002)
    touched = {"sampling", "reward", "old_scores", "forward", "head_loss", "backward", "optimiser", "rest"}
    assert touched <= {name for name, value in seconds.items() if value > 0}


@pytest.mark.parametrize("name", sorted(name for name in plan.ENVIRONMENTS if name.startswith("trl")))
def test_a_rivals_process_gives_figures_too(name):
    if not environments.is_ready(plan.ENVIRONMENTS[name]):
        pytest.skip(f"the environment .bench/{plan.ENVIRONMENTS[name]} is not there; `make bench` makes it")
    figures = tiny(name, with_phases=True)
    missing = {phase for phase, value in figures["phases"].items() if value == 0} - {"collection"}
    assert missing == set(), "a seam of the rival has moved"


def test_bf16_of_trl_1_12_is_not_measured_by_accident(monkeypatch, tmp_path):
    """Its `bf16=True` alone computes in fp32."""
    if not environments.is_ready("trl112"):
        pytest.skip("TRL's environment .bench/trl112 is not there; `make bench` makes it")
    script = str(ROOT / "benchmarks" / "contestant.py")
    command = [str(environments.python("trl112")), script, "trl112-ppo", "--size", "tiny", "--precision", "bf16"]
    bare = {k: v for k, v in os.environ.items() if k not in ("ACCELERATE_MIXED_PRECISION", "PYTHONPATH")}
    done = subprocess.run(command, env={**bare, "TRL_EXPERIMENTAL_SILENCE": "1"}, capture_output=True, text=True)
    assert done.returncode and "ACCELERATE_MIXED_PRECISION=bf16" in done.stderr


def test_the_limits_gradients_are_those_of_plain_autograd():
    assert limit.gradient_error(job.changed("tiny", layers=2, width=128, epochs=4)) < 1e-5


def test_the_limit_samples_what_its_log_probabilities_say():
    """Before the first update policy and reference are one, and two ways of computing them must agree."""
    tiny_job = job.changed("tiny", layers=2, new_tokens=16)
    made = limit.Limit(tiny_job, clock.Clock(tiny_job, 1))
    prompt, real = made.batch(0)
    with torch.no_grad():
        answer, log_probs, _, positions, mask = made.sample(prompt, real)
        ids = torch.cat([prompt, answer[:, :-1]], 1)
        states = gpt2.trunk(made.reference, ids, positions, mask, prompt.shape[1] - 1)
        again = made.log_probs(made.reference, states.flatten(0, 1), answer.flatten()).view_as(answer)
    assert torch.allclose(log_probs, again, atol=1e-5)
    assert not (answer == job.END_OF_SEQUENCE).any()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 9.0, 1.0, 0.0]).log_softmax(0)
    token, log_prob = limit.draw(logits.expand(20_000, 4).clone())
    counts = torch.bincount(token.flatten(), minlength=4) / 20_000
    wanted = logits.exp()
    wanted[job.END_OF_SEQUENCE] = 0  # never drawn
    assert torch.allclose(counts, wanted / wanted.sum(), atol=0.015)
    assert torch.allclose(log_prob, logits[token])


def test_the_floor_counts_the_products_that_torch_counts():
    """Of one update's trunk and head, without attention, which is not a plain product on every machine."""
    from torch.utils.flop_counter import FlopCounterMode

    small = job.changed("tiny", layers=2, width=64, vocabulary=512)
    made = limit.Limit(small, clock.Clock(small, 1))
    rollout = made.rollout(*made.batch(0))
    with FlopCounterMode(display=False) as counter:
        made.gradients(rollout)
    counts = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    counted = sum(flops for name, flops in counts.items() if "mm" in name)
    update = {key: floor.work(job.replace(small, epochs=2))[key] - floor.work(small)[key] for key in ("trunk", "head")}
    # the floor leaves padding out, and the last block's query where nobody reads it
    assert 0.75 * counted < sum(update.values()) < 1.1 * counted


def test_every_second_is_charged_to_the_innermost_phase(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(phases.time, "process_time", lambda: now[0])
    watched = phases.Phases()

    def spend(seconds):
        now[0] += seconds

    try:
        spend(1)
        with watched.phase("sampling"):
            spend(2)
            with watched.phase("collection"):
                spend(4)
            spend(8)
        watched.stop()
        with watched.phase("reward"):
            spend(16)
        seconds = watched.per_step(1)
    finally:
        phases.gc.callbacks.remove(watched._collection)
    assert {name: value for name, value in seconds.items() if value} == {"rest": 1, "sampling": 10, "collection": 4}


def test_the_heads_share_of_the_backward_pass_ends_at_the_trunk():
    watched = phases.Phases()
    try:
        trunk = torch.nn.Linear(3, 3)
        watched.watch_trunk(lambda result, args: result, trunk, "forward", "forward")
        loss = trunk(torch.ones(1, 3)).sum()
        with watched.phase("head_loss"):
            loss.backward()
            assert watched._open == ["backward"]
    finally:
        phases.gc.callbacks.remove(watched._collection)


def test_a_killed_bench_goes_on_where_it_stopped(monkeypatch, tmp_path):
    todo = plan.measurements(2, ["S"], ["rounds"], ["alignkit-ppo", "limit"])
    measured = []

    def measure(measurement, threads):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(measurement)
        return {"step_cpu_s": 1.0, "peak_rss_mib": 2.0}

    monkeypatch.setattr(run, "measure", measure)
    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        run.bench(todo, tmp_path, 1, console)
    file = tmp_path / "rounds.jsonl"
    file.write_text(file.read_text()[:-9])  # the last row was torn
    first = list(measured)
    measured.clear()
    run.bench(todo[:8], tmp_path, 1, console)
    assert measured == todo[4:8] and first == todo[:5]
    assert [json.loads(line)["round"] for line in file.read_text().splitlines()] == [m.round for m in todo[:8]]


def test_contestants_take_turns_and_rounds_follow_each_other():
    rounds = [m for m in plan.measurements(3, ["S", "M"], ["rounds"]) if m.size == "S"]
    names = [(m.name, m.epochs, m.precision) for m in rounds]
    assert names == plan.CONTESTANTS["S"] * 3
    assert [m.round for m in rounds] == sorted(m.round for m in rounds)


def test_every_planned_contestant_can_be_built():
    planned = {name for size in plan.CONTESTANTS.values() for name, _, _ in size}
    assert planned == set(contestant.NAMES) == set(plan.LABELS) - {"floor"}


def test_an_unknown_environment_has_words():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "environments.py"), "trl99"], capture_output=True, text=True
    )
    assert done.returncode and "'trl99' is no environment; expected one of alignkit, trl112, trl116" in done.stderr


def test_a_missing_pin_has_words(tmp_path):
    (tmp_path / "pins.txt").write_text("torch==2\n")
    with pytest.raises(SystemExit, match=r"no line 'trl==\.\.\.'"):
        environments.pin(tmp_path / "pins.txt", "trl")


def test_a_change_of_what_is_measured_is_another_bench(monkeypatch, tmp_path):
    for folder in ("alignkit", "benchmarks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "page.py").write_text("a = 1\n")
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==2\n")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "CONSTRAINTS", pins)
    monkeypatch.setattr(record, "PINS", {})
    before = record.digest()
    (tmp_path / "benchmarks" / "page.py").write_text("a = 2\n")
    assert record.digest() == before, "how figures look is not what they are"
    (tmp_path / "alignkit" / "trainer.py").write_text("a = 2\n")
    assert record.digest() != before
