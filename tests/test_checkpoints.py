"""Checkpoints are whole or not there: on a full disk, with a file cut off, with every trainer that alignkit starts."""

import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

import alignkit.run.folder
from alignkit.errors import AlignkitError, CheckpointError, ConfigError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers.checkpoint_files import RECORD, choose_checkpoint, fault_of, newest_last, write_record
from alignkit.trainers.ppo import PPOConfig, PPOTrainer
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints
from alignkit.whole_files import UNFINISHED, check_writable, put_in_place, write_text

PROMPTS = Dataset.from_dict({"prompt": ["i loved the film", "the plot was", "a good", "the cast"] * 2})
SHARED = dict(
    per_device_train_batch_size=4, max_steps=3, learning_rate=1e-3, report_to="none", use_cpu=True, disable_tqdm=True,
    save_strategy="steps", save_steps=1, logging_steps=1, bf16=False, gradient_checkpointing=False,
)  # fmt: skip


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def ppo(folder, *callbacks, **settings):
    args = PPOConfig(**{**SHARED, "output_dir": str(folder), "max_completion_length": 4, **settings})
    return PPOTrainer(tiny_causal_lm(), length, args, PROMPTS, None, tiny_tokenizer(), callbacks=list(callbacks))


def rloo(folder, **settings):
    args = RLOOConfig(
        **{
            **SHARED,
            "output_dir": str(folder),
            "max_completion_length": 4,
            "num_generations": 2,
            "beta": 0.0,
            **settings,
        }
    )
    kind = with_whole_checkpoints(RLOOTrainer)
    return kind(tiny_causal_lm(), length, args, PROMPTS, processing_class=tiny_tokenizer())


def sft(folder, **settings):
    args = SFTConfig(**{**SHARED, "output_dir": str(folder), **settings})
    texts = Dataset.from_dict({"text": ["the film was good .", "the plot was bad .", "i saw it ."] * 4})
    kind = with_whole_checkpoints(SFTTrainer)
    return kind(tiny_causal_lm(), args, train_dataset=texts, eval_dataset=texts, processing_class=tiny_tokenizer())


class Do(TrainerCallback):
    """Calls a function when an optimiser step ends."""

    def __init__(self, what):
        self.what = what

    def on_step_end(self, args, state, control, **kwargs):
        self.what(state.global_step)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of PPO that saved after each of three steps."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = ppo(folder)
    trainer.train()
    return folder, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture
def run(finished, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def names(folder):
    return [checkpoint.name for checkpoint in newest_last(folder)]


@pytest.mark.parametrize("build", [ppo, rloo, sft])
def test_every_file_of_a_checkpoint_is_recorded_with_its_size(build, tmp_path):
    build(tmp_path, save_total_limit=2).train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"] and not (tmp_path / UNFINISHED).exists()
    checkpoint = tmp_path / "checkpoint-3"
    recorded = json.loads((checkpoint / RECORD).read_text())["files"]
    there = {p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
    assert recorded == {name: size for name, size in there.items() if name != RECORD}
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= set(recorded)
    assert type(build(tmp_path)).__name__ in ("PPOTrainer", "RLOOTrainer", "SFTTrainer")


@pytest.mark.parametrize("build", [rloo, sft])
def test_trainers_of_trl_continue_from_the_last_whole_one(build, tmp_path, capsys):
    whole = build(tmp_path)
    whole.train()
    (tmp_path / "checkpoint-3" / "optimizer.pt").unlink()
    again = build(tmp_path)
    again.train(resume_from_checkpoint=True)
    said = "checkpoint-3 cannot be used (optimizer.pt is missing); continuing from checkpoint-2\n"
    assert f"{tmp_path}: {said}" in capsys.readouterr().out
    ends = whole.model.state_dict()
    assert all(torch.equal(tensor, ends[name]) for name, tensor in again.model.state_dict().items())


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda c: os.truncate(c / "optimizer.pt", 1000), r"optimizer.pt has 1000 bytes, but \d+ were written"),
        (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda c: [p.unlink() for p in c.glob("*.safetensors")], "model.safetensors, value_.* are missing"),
        (lambda c: (c / RECORD).write_text('{"files"'), "its record of files, alignkit_files.json, is damaged"),
        (lambda c: (c / RECORD).unlink(), "it has no alignkit_files.json"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_was_spoilt_later_is_passed_over(run, spoil, said):
    assert choose_checkpoint(run).sentence() == "continuing from checkpoint-3"
    spoil(run / "checkpoint-3")
    choice = choose_checkpoint(run)
    assert choice.checkpoint == run / "checkpoint-2"
    assert re.fullmatch(
        rf"checkpoint-3 cannot be used \({said}.*\); continuing from checkpoint-2", choice.sentence()
    ), choice.sentence()


def test_one_that_was_cut_off_is_named_with_what_it_lacks(run):
    (run / UNFINISHED).mkdir()
    shutil.move(run / "checkpoint-3", run / UNFINISHED)
    cut = run / UNFINISHED / "checkpoint-3"
    assert (
        "checkpoint-3 was cut off while it was being written (all of it was there" in choose_checkpoint(run).sentence()
    )
    (cut / RECORD).unlink()
    assert "(the record of its files is missing); continuing" in choose_checkpoint(run).sentence()
    (cut / "optimizer.pt").unlink()
    said = "checkpoint-3 was cut off while it was being written (optimizer.pt is missing); continuing from checkpoint-2"
    assert choose_checkpoint(run).sentence() == said
    for checkpoint in newest_last(run):
        shutil.rmtree(checkpoint)
    assert choose_checkpoint(run).sentence().endswith("starting from the beginning")


def test_a_named_checkpoint_that_is_damaged_is_refused_before_it_is_loaded(run, tmp_path):
    os.truncate(run / "checkpoint-2" / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 is damaged: model.safetensors has 10 bytes.*pass True"):
        ppo(tmp_path).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    with pytest.raises(CheckpointError, match=r"nothing to resume in .*: there is no checkpoint-\*"):
        ppo(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_the_last_checkpoint_is_the_end_and_gets_no_further_step(run, finished):
    again = ppo(run)
    assert again.train(resume_from_checkpoint=True).global_step == 3 == again.state.global_step
    assert all(torch.equal(tensor, finished[1][name]) for name, tensor in again.model.state_dict().items())
    longer = ppo(run, max_steps=4)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 4
    epochs = sft(run.parent / "epochs", max_steps=-1, num_train_epochs=1)
    epochs.train()
    more = sft(run.parent / "epochs", max_steps=-1, num_train_epochs=2)
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 2 * epochs.state.global_step, "the recipe may have been changed to go on"


# a full disk as safetensors (model), torch (optimizer) meet it: no file may grow beyond so many bytes
@pytest.mark.parametrize("limit", [100_000, 200_000])
def test_a_disk_that_is_full_leaves_the_last_whole_checkpoint_and_says_so(limit, tmp_path, finished):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = Do(lambda step: step == 3 and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1])))
    try:
        with pytest.raises(CheckpointError) as caught:
            ppo(tmp_path, full, save_total_limit=1).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = str(caught.value)
    assert said.startswith(f"checkpoint-3 could not be written to {tmp_path}: ")
    assert "It needs about 4" in said and "are free there" in said
    assert "The last whole checkpoint is checkpoint-2" in said and "resume_from_checkpoint=True" in said
    assert names(tmp_path) == ["checkpoint-2"] and not (tmp_path / UNFINISHED).exists()
    again = ppo(tmp_path, save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(tensor, finished[1][name]) for name, tensor in again.model.state_dict().items())


def test_an_error_that_is_none_of_writing_stays_what_it_is(tmp_path):
    class Broken(PPOTrainer):
        def save_beside(self, folder):
            raise KeyError("mistake")

    args = PPOConfig(**{**SHARED, "output_dir": str(tmp_path), "max_completion_length": 4})
    with pytest.raises(KeyError, match="mistake"):
        Broken(tiny_causal_lm(), length, args, PROMPTS, None, tiny_tokenizer()).train()
    assert names(tmp_path) == []


def test_rotation_comes_after_the_new_checkpoint_and_spares_the_best(tmp_path, monkeypatch):
    seen = []

    def watch(new, place):
        seen.append(names(tmp_path))
        put_in_place(new, place)

    monkeypatch.setattr("alignkit.trainers.whole_checkpoints.put_in_place", watch)
    trainer = sft(
        tmp_path, save_total_limit=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, max_steps=4,
        metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    trainer.train()  # the loss falls: the first is the "best"
    best = str(tmp_path / "checkpoint-1")
    assert seen == [[], *([["checkpoint-1", *more] for more in ([], ["checkpoint-2"], ["checkpoint-3"])])]
    assert trainer.state.best_model_checkpoint == best and names(tmp_path) == ["checkpoint-1"]
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best


def test_a_checkpoint_gets_its_name_in_one_move(tmp_path, monkeypatch):
    """Killed just before it, all is written and nothing bears the name."""

    class Kill(BaseException):
        pass

    def killed(self, target):
        raise Kill

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Kill):
        ppo(tmp_path).train()
    assert names(tmp_path) == [] and fault_of(tmp_path / UNFINISHED / "checkpoint-1") is None
    assert "checkpoint-1 was cut off" in choose_checkpoint(tmp_path).sentence()


def test_a_step_that_is_saved_again_replaces_the_older(run):
    os.truncate(run / "checkpoint-3" / "optimizer.pt", 10)
    ppo(run).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert choose_checkpoint(run).sentence() == "continuing from checkpoint-3" and not (run / UNFINISHED).exists()


def test_a_checkpoint_of_an_epochs_last_step_holds_the_evaluation_at_its_end(tmp_path):
    settings = dict(max_steps=-1, num_train_epochs=2, eval_strategy="epoch")
    whole = sft(tmp_path / "whole", **settings)
    whole.train()
    middle = whole.state.global_step // 2
    again = sft(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{middle}"))
    judged = [[r["step"] for r in t.state.log_history if "eval_loss" in r] for t in (whole, again)]
    assert judged == [[middle, 2 * middle]] * 2
    ends = whole.model.state_dict()
    assert all(torch.equal(tensor, ends[name]) for name, tensor in again.model.state_dict().items())


def test_a_run_resumes_from_nothing_but_not_from_ruins_or_from_its_end(tmp_path, capsys):
    assert RunFolder.open(tmp_path / "new", resume=True).checkpoint is None
    assert "there is no checkpoint yet; starting from the beginning" in capsys.readouterr().out
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "results.json").write_text("{}")
    with pytest.raises(AlignkitError, match=r"nothing to resume: the run in .*done is finished"):
        RunFolder.open(tmp_path / "done", resume=True)
    (tmp_path / "ruin" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(
        AlignkitError, match=r"no checkpoint in .*ruin is whole; checkpoint-4 cannot be used .*--overwrite"
    ):
        RunFolder.open(tmp_path / "ruin", resume=True)


def test_a_folder_that_cannot_be_written_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"output_dir: nothing can be written to .*file/run \(of it there is .*file\)"
    ):
        RunFolder.open(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match=r"^output_dir: nothing can be written to .*file/run"):
        PPOTrainer(
            "not-even-looked-for", length, PPOConfig(**{**SHARED, "output_dir": f"{tmp_path}/file/run"}), PROMPTS
        )
    check_writable(tmp_path / "deep" / "er")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(ConfigError, match="File too large"):
            check_writable(tmp_path, "training.output_dir")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        check_writable(tmp_path)


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_text(tmp_path / "file", "second" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "file").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_recipe_whose_last_files_cannot_be_written_says_what_is_safe(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(f"""
trainer: sft
model: {{scratch: {{hidden_size: 16, layers: 1, heads: 2, context: 64}}}}
data: {{use: quickstart, form: text, train_size: 16, validation_size: 4}}
training: {{max_steps: 1, per_device_train_batch_size: 4, output_dir: {tmp_path}/run, save_strategy: steps}}
evaluation: {{prompts: 2, max_new_tokens: 2}}
""")

    def full(new, place):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(alignkit.run.folder, "put_in_place", full)
    with pytest.raises(
        AlignkitError, match=r"could not go on writing: .*No space left.*whole checkpoint is checkpoint-1.*--resume"
    ):
        run_recipe(load_recipe(tmp_path / "tiny.yaml"))
    monkeypatch.undo()
    run_recipe(load_recipe(tmp_path / "tiny.yaml"), resume=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / UNFINISHED).exists()


def test_a_record_is_no_part_of_itself(tmp_path):
    (tmp_path / "weights").write_text("x")
    write_record(tmp_path)
    write_record(tmp_path)
    assert fault_of(tmp_path) is None
