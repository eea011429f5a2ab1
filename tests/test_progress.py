"""The live view, the plain lines and the files of a run, watched on real trainers."""

import io
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers import ProgressCallback as HostProgressCallback

from alignkit.json_lines import read_json_lines
from alignkit.models.tiny import tiny_classifier
from alignkit.progress import ProgressCallback, RunFilesCallback, attach, duration, short_number, sparkline


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def tiny_trainer(folder, callbacks, **settings):
    model = tiny_classifier()
    data = [{"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor(i % 2)} for i in range(8)]
    args = TrainingArguments(
        output_dir=str(folder), max_steps=4, logging_steps=1, per_device_train_batch_size=2, report_to=[],
        save_strategy="no", use_cpu=True, **settings,
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data, callbacks=callbacks)
    attach(trainer)
    return trainer


def test_a_sparkline_shows_the_shape_and_averages_what_does_not_fit():
    assert sparkline([3, 2, 1, 0], width=4) == "█▆▃▁"
    assert sparkline(list(range(1000)), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([]) == ""
    assert len(sparkline([1.0, -1.0] * 500, width=20)) == 20


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (3e-7, "0"), (1.0, "1.00"), (-0.25, "-0.250"), (99.94, "99.9"), (2.5e7, "2.50e+07")]
)
def test_numbers_are_short(value, text):
    assert short_number(value) == text


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (0.2, 59.4, 60, 3599, 3600)] == ["0s", "59s", "1m00s", "59m59s", "1h00m"]


def test_without_a_terminal_each_log_is_a_line(tmp_path):
    progress = ProgressCallback(console(False))
    tiny_trainer(tmp_path, [progress]).train()
    lines = progress.console.file.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("step 1/4  loss ") and "left" in lines[1]
    assert lines[-1].startswith("trained 4 steps in ")
    assert "\x1b" not in "".join(lines)


def test_a_resumed_training_counts_its_own_steps(tmp_path):
    trainer = tiny_trainer(tmp_path, [])
    trainer.args.set_save(strategy="steps", steps=3)
    trainer.train()
    progress = ProgressCallback(console(False))
    tiny_trainer(tmp_path, [progress]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (last,) = progress.console.file.getvalue().splitlines()[-1:]
    assert last.startswith("trained 1 step in ") and last.endswith(", behind the 3 before it stopped")


def test_on_a_terminal_there_is_one_live_view(tmp_path):
    progress = ProgressCallback(console(True))
    tiny_trainer(tmp_path, [progress]).train()
    shown = progress.console.file.getvalue()
    last = shown[shown.rindex("training") :]
    assert "step 4 of 4" in last and "from" in last and any(bar in last for bar in "▁▄█")
    assert progress.live is None


def test_a_training_that_raises_gives_the_terminal_back(tmp_path):
    progress = ProgressCallback(console(True))
    trainer = tiny_trainer(tmp_path, [progress])
    trainer.train_dataset[0].pop("labels")
    with pytest.raises(Exception, match=r"labels|loss"):
        trainer.train()
    assert progress.live is None
    assert "\x1b[?25h" in progress.console.file.getvalue()  # the cursor is shown again


def test_it_takes_the_place_of_the_host_librarys_output(tmp_path, capsys):
    for quiet in (True, False):
        trainer = tiny_trainer(tmp_path, [ProgressCallback(console(False))], disable_tqdm=quiet)
        hosts = (HostProgressCallback, PrinterCallback)
        assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, hosts)]
        trainer.train()
    written = capsys.readouterr()
    assert written.out == "" and "it/s" not in written.err


def test_an_evaluation_by_metrics_only_is_shown_too():
    progress = ProgressCallback(console(False))
    state = TrainerState(global_step=3, max_steps=10)
    progress.on_train_begin(None, state, None)
    progress.on_log(None, state, None, logs={"eval_distinct_2": 0.5, "eval_f1": None})
    progress.on_log(None, state, None, logs={"train_runtime": 3.0})
    assert progress.console.file.getvalue() == "step 3/10  eval_distinct_2 0.500\n"


def test_metrics_are_appended_as_they_come(tmp_path):
    trainer = tiny_trainer(tmp_path, [RunFilesCallback(tmp_path / "run")], eval_strategy="steps", eval_steps=2)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4]
    assert all(a["time"] <= b["time"] for a, b in pairwise(rows))
    assert rows[0]["learning_rate"] > 0 and rows[0]["epoch"] == 0.25


def test_what_is_not_finite_becomes_null_and_other_processes_write_nothing(tmp_path):
    files = RunFilesCallback(tmp_path)
    state = TrainerState(global_step=1)
    files.on_log(None, state, None, logs={"loss": math.nan, "kl": math.inf, "reward": 1.0, "kind": torch.tensor(2.0)})
    other = TrainerState(global_step=2, is_world_process_zero=False)
    files.on_log(None, other, None, logs={"loss": 1.0})
    (row,) = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert (row["loss"], row["kl"], row["reward"], row["kind"]) == (None, None, 1.0, 2.0)


def test_the_newest_completions_of_training_are_kept(tmp_path):
    files = RunFilesCallback(tmp_path, train_samples=2)
    rewards = {"length": [0.0, 1.0, math.nan]}
    files.attach(
        SimpleNamespace(_logs={"prompt": ["a", "b", "c"], "completion": ["x", "y", "z\u2028"], "rewards": rewards})
    )
    files.on_log(None, TrainerState(global_step=7), None, logs={"loss": 1.0})
    files.on_log(None, TrainerState(global_step=7), None, logs={"eval_reward": 1.0})
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [(row["prompt"], row["rewards"]["length"]) for row in rows] == [("b", 1.0), ("c", None)]
    assert {row["step"] for row in rows} == {7} and {row["phase"] for row in rows} == {"train"}


def test_a_continued_run_does_not_log_its_first_evaluation_twice(tmp_path):
    files = RunFilesCallback(tmp_path, from_step=5)
    for step in (0, 5, 6):
        files.on_log(None, TrainerState(global_step=step), None, logs={"eval_reward": 1.0})
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [5, 6]


def test_the_clock_of_a_resumed_run_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "time": 100.0, "text": "a\u2028b"}\n', encoding="utf-8")
    files = RunFilesCallback(tmp_path)
    state = TrainerState(global_step=5)
    files.on_train_begin(None, state, None)
    files.on_log(None, state, None, logs={"loss": 1.0})
    assert read_json_lines(tmp_path / "metrics.jsonl")[-1]["time"] >= 100.0
