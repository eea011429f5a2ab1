"""Ctrl-C and SIGTERM end a run after its step, with a checkpoint; resumed, it ends as if it had not been stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from alignkit.errors import AlignkitError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe, stopping
from alignkit.run.stopping import how_to_continue
from alignkit.trainers.checkpoint_files import fault_of, newest_last
from alignkit.trainers.interruption import StopOnSignal
from alignkit.trainers.ppo import PPOConfig, PPOTrainer

RECIPE = """
trainer: ppo
model: {scratch: {hidden_size: 16, layers: 1, heads: 2, context: 96}}
data: {use: quickstart, train_size: 64, validation_size: 8}
rewards: {length: {target: 6}}
training: {max_steps: 6, per_device_train_batch_size: 8, max_completion_length: 8, learning_rate: 1e-3,
  logging_steps: 1, save_strategy: "no"}
evaluation: {prompts: 4}
"""


class SendAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


def trainer_with(folder, *callbacks, **settings):
    given = dict(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_iterations=2,
        num_train_epochs=2, max_completion_length=4, learning_rate=1e-3, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", logging_steps=1, per_device_eval_batch_size=4,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["i loved the film", "the plot was", "a good", "the cast"] * 4})
    return PPOTrainer(
        tiny_causal_lm(), lambda prompts, completions, **kw: [float(len(text)) for text in completions],
        PPOConfig(**{**given, **settings}), data, data.select(range(4)), tiny_tokenizer(), callbacks=list(callbacks),
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of two epochs of four steps each, judged at the end of each."""
    trainer = trainer_with(tmp_path_factory.mktemp("whole"), eval_strategy="epoch", save_strategy="epoch")
    trainer.train()
    assert trainer.state.global_step == 8
    return trainer


# step 3 is in the middle of a rollout; 4 is the last of an epoch, which is judged before the checkpoint; 8 the last
@pytest.mark.parametrize(
    "step, number", [(3, signal.SIGINT), (4, signal.SIGTERM), (7, signal.SIGTERM), (8, signal.SIGINT)]
)
@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_the_step_ends_a_checkpoint_is_saved_and_the_run_goes_on(step, number, strategy, unbroken, tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    stop = StopOnSignal()
    settings = {"eval_strategy": "epoch", "save_strategy": strategy}
    trainer = trainer_with(tmp_path, SendAt(step, number), stop, **settings)
    trainer.train()
    assert stop.signal == number and trainer.state.global_step == step
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert newest_last(tmp_path)[-1].name == f"checkpoint-{step}" and fault_of(newest_last(tmp_path)[-1]) is None
    again = trainer_with(tmp_path, StopOnSignal(), **settings)
    again.train(resume_from_checkpoint=True)
    ends = unbroken.model.state_dict()
    assert all(torch.equal(tensor, ends[name]) for name, tensor in again.model.state_dict().items())
    judged = [
        [(row["step"], row["eval_reward"]) for row in t.state.log_history if "eval_reward" in row]
        for t in (unbroken, again)
    ]
    assert judged[0] == judged[1] and [step for step, _ in judged[0]] == [4, 8]


def test_it_is_saved_where_only_the_best_are_and_is_not_deleted_for_them(tmp_path):
    """With save_total_limit=1 transformers keeps the best checkpoint alone at the end of training."""
    settings = dict(
        save_strategy="best", eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, save_total_limit=1,
        metric_for_best_model="worse", greater_is_better=True,
    )  # fmt: skip

    def judge(trainer):
        plain = trainer.evaluate

        def evaluate(*args, **kwargs):  # the first is the best
            figures = {**plain(*args, **kwargs), "eval_worse": -trainer.state.global_step}
            trainer.state.log_history[-1].update(figures)
            return figures

        trainer.evaluate = evaluate
        return trainer

    trainer = judge(trainer_with(tmp_path, SendAt(3, signal.SIGTERM), StopOnSignal(), **settings))
    trainer.train()
    assert [folder.name for folder in newest_last(tmp_path)] == ["checkpoint-1", "checkpoint-3"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    stopped = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    best = judge(trainer_with(tmp_path, **settings))
    best._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert any(not torch.equal(tensor, stopped[name]) for name, tensor in best.model.state_dict().items())


def test_a_second_ctrl_c_ends_it_at_once_and_one_that_a_launcher_repeats_does_not(monkeypatch, capfd):
    stop, before = StopOnSignal(), signal.getsignal(signal.SIGINT)
    stop.on_train_begin(None, None, None)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        later = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == before, "given back, so that a third one is the usual"
    finally:
        stop.release()
    assert capfd.readouterr().err.count("SIGINT: stopping after this step, with a checkpoint; Ctrl-C again") == 1


def test_signals_are_given_back_when_training_fails(tmp_path):
    class Fail(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise RuntimeError("broken")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="broken"):
        trainer_with(tmp_path, StopOnSignal(), Fail()).train()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def pythons_own_ctrl_c():
    """As a shell starts a program; one that it starts with `&` gets SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_last_step_is_not_swallowed(tmp_path, pythons_own_ctrl_c):
    class Late(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "train_runtime" in (logs or {}):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer_with(tmp_path, Late(), StopOnSignal(), max_steps=1).train()


def test_ctrl_c_in_a_recipes_run_says_how_to_continue_and_resume_says_from_where(tmp_path, capsys, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "tiny.yaml", [f"training.output_dir={tmp_path / 'run'}"])
    step_end = StopOnSignal.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StopOnSignal, "on_step_end", interrupted)
        run_recipe(recipe)
    said = capsys.readouterr().out
    assert f"checkpoint-2 is saved. To continue: alignkit train {tmp_path}/run/recipe.yaml --resume" in said
    assert "what there is so far" in said and not (tmp_path / "run" / "results.json").exists()
    run_recipe(load_recipe(tmp_path / "run" / "recipe.yaml"), resume=True)
    assert f"{tmp_path}/run: continuing from checkpoint-2\n" in capsys.readouterr().out
    with pytest.raises(AlignkitError, match=r"holds checkpoints of an earlier run \(checkpoint-2\)"):
        run_recipe(recipe)


def test_sigterm_ends_the_command_with_143_and_resume_from_nothing_begins(tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "alignkit", "train", str(tmp_path / "tiny.yaml"), f"training.output_dir={run}",
         "training.max_steps=5000", "--resume"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while '"loss"' not in (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").is_file() else True:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert f"{run}: there is no checkpoint yet; starting from the beginning" in out
    (saved,) = newest_last(run)
    command = (
        f"python -m alignkit train {tmp_path}/tiny.yaml training.output_dir={run} training.max_steps=5000 --resume"
    )
    assert out.endswith(f"interrupted; {saved.name} is saved. To continue: {command}\n")
    assert re.search("SIGTERM: stopping after this step", err)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["alignkit", "train", "my recipe.yaml", "--overwrite", "a=1"], "alignkit train 'my recipe.yaml' a=1 --resume"),
        (["pytest", "-q"], "alignkit train runs/x/recipe.yaml --resume"),
        ([], "alignkit train runs/x/recipe.yaml --resume"),
    ],
)
def test_the_command_that_continues(arguments, said, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    assert how_to_continue(Path("runs/x")) == said


@pytest.mark.parametrize(
    "by_accelerate, said",
    [
        (False, "torchrun --nproc_per_node 2 -m alignkit train r.yaml --resume"),
        (True, "accelerate launch (with the same settings) -m alignkit train r.yaml --resume"),
    ],
)
def test_several_processes_are_continued_by_as_many(by_accelerate, said, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/somewhere/alignkit/__main__.py", "train", "r.yaml"])
    monkeypatch.setattr(stopping, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if by_accelerate:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert stopping.how_to_continue(tmp_path) == said
