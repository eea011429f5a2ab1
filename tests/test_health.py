"""The callback that watches: what it does when something goes wrong in a real training."""

import json
import logging
import math

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from alignkit.errors import ConfigError, HealthError
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer
from alignkit.progress import RunFilesCallback, attach
from alignkit.trainers.health import HealthCallback
from alignkit.trainers.ppo import PPOTrainer
from alignkit.trainers.ppo_config import PPOConfig


class Bursting(Trainer):
    """A trainer whose loss is nan in some steps."""

    bursts = ()

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        return loss * math.nan if self.state.global_step + 1 in self.bursts else loss


def bursting_trainer(folder, callbacks, bursts, **settings):
    data = [{"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor(i % 2)} for i in range(8)]
    args = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 6,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "learning_rate": 1e-2,
            **settings,
        },
    )
    trainer = Bursting(model=tiny_classifier(), args=args, train_dataset=data, callbacks=callbacks)
    trainer.bursts = bursts
    attach(trainer)
    return trainer


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


class WeightsPerStep(TrainerCallback):
    """Remembers the weights after each step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(weights(model))


def read_health(folder):
    return {entry["check"]: entry for entry in json.loads((folder / "health.json").read_text())}


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped(tmp_path, caplog):
    per_step = WeightsPerStep()
    health = HealthCallback(tmp_path)
    trainer = bursting_trainer(tmp_path, [health, per_step], bursts=(3,), weight_decay=0.0)
    with caplog.at_level(logging.WARNING, "alignkit.health"):
        trainer.train()
    moved = [not torch.equal(a, b) for a, b in zip(per_step.seen[:-1], per_step.seen[1:], strict=True)]
    # after step 3 the weights are those of step 2; the other steps train (the last has a learning rate near 0)
    assert moved[:4] == [True, False, True, True]
    assert torch.isfinite(per_step.seen[-1]).all()
    assert "The gradient of step 3 was not finite; the step was skipped" in caplog.text
    finding = read_health(tmp_path)["finite"]
    assert finding["status"] == "warn" and finding["step"] == 3


def test_without_the_check_the_same_burst_ruins_the_weights(tmp_path):
    trainer = bursting_trainer(tmp_path, [HealthCallback(tmp_path, {"finite": "off"})], bursts=(3,))
    trainer.train()
    assert not torch.isfinite(weights(trainer.model)).all()
    assert "finite" not in read_health(tmp_path)


def test_three_such_steps_in_a_row_stop_a_run_that_cannot_go_back(tmp_path):
    files, health = RunFilesCallback(tmp_path), HealthCallback(tmp_path)
    trainer = bursting_trainer(tmp_path, [files, health], bursts=(3, 4, 5, 6))
    with pytest.raises(
        HealthError, match=r"stopped at step 5, 'Every figure is finite' does not hold.*in a row.*No way back"
    ):
        trainer.train()
    assert trainer.state.global_step == 5
    assert torch.isfinite(weights(trainer.model)).all()
    dump = json.loads((tmp_path / "health_dump.json").read_text(), parse_constant=pytest.fail)
    assert dump["finding"]["status"] == "stop" and dump["last_rows"] and dump["settings"]["learning_rate"] == 0.01
    assert read_health(tmp_path)["finite"]["status"] == "stop"
    assert "stopped by a check" in (tmp_path / "report.html").read_text()


class Tamper(TrainerCallback):
    """Changes what is logged at some steps, and optionally the weights, before the health check sees it."""

    def __init__(self, changes, spoil=False):
        self.changes, self.spoil = changes, spoil

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "loss" in logs and state.global_step in self.changes:
            logs.update(self.changes.pop(state.global_step))
            if self.spoil:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.fill_(0.5)


def ppo(folder, callbacks, **settings):
    args = PPOConfig(
        output_dir=str(folder),
        **{
            "max_steps": 6,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "max_completion_length": 4,
            "learning_rate": 1e-3,
            "report_to": [],
            "use_cpu": True,
            "save_strategy": "steps",
            "save_steps": 2,
            "disable_tqdm": True,
            **settings,
        },
    )
    tokenizer = tiny_tokenizer()
    trainer = PPOTrainer(
        tiny_causal_lm(),
        reward_funcs=[lengths],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["the film", "a good", "it was"] * 8}),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    attach(trainer)
    return trainer


def lengths(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def test_a_run_goes_back_to_its_last_healthy_checkpoint_and_on(tmp_path, caplog):
    health = HealthCallback(tmp_path)
    trainer = ppo(tmp_path, [Tamper({5: {"loss": math.nan}}, spoil=True), health])
    restored = []
    restore = trainer.restore

    def watched(checkpoint):
        assert (weights(trainer.model) == 0.5).all()
        restore(checkpoint)
        restored.append((checkpoint, weights(trainer.model)))

    trainer.restore = watched
    at_four = WeightsAt(4)
    trainer.add_callback(at_four)
    with caplog.at_level(logging.WARNING, "alignkit.health"):
        trainer.train()
    ((checkpoint, after_restore),) = restored
    assert checkpoint.endswith("checkpoint-4") and torch.equal(after_restore, at_four.weights)
    assert trainer.state.global_step == 6 and torch.isfinite(weights(trainer.model)).all()
    finding = read_health(tmp_path)["finite"]
    assert finding["status"] == "rollback" and "went back to checkpoint-4" in finding["message"]
    assert "going back to checkpoint-4" in caplog.text


class WeightsAt(TrainerCallback):
    """The weights when a checkpoint is saved."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.weights = weights(model)


def test_it_gives_up_after_too_many_rollbacks(tmp_path):
    changes = {step: {"loss": math.nan} for step in (3, 4, 5)}
    trainer = ppo(tmp_path, [Tamper(changes), HealthCallback(tmp_path, max_rollbacks=2)])
    with pytest.raises(HealthError, match="gone back 2 times already"):
        trainer.train()
    assert trainer.state.global_step == 5


def test_a_checkpoint_saved_while_something_was_wrong_is_not_gone_back_to(tmp_path):
    health = HealthCallback(tmp_path, {"kl": "rollback"})
    # the KL explodes and stays there through the checkpoint of step 4; only step 2 was saved in health
    trainer = ppo(tmp_path, [Tamper({step: {"kl_per_token": 9.0} for step in (3, 4)}), health])
    restored = []
    restore = trainer.restore
    trainer.restore = lambda checkpoint: (restored.append(checkpoint), restore(checkpoint))
    trainer.train()
    assert [path.rpartition("-")[2] for path in restored] == ["2"]


def test_the_first_step_is_logged_and_a_ppo_run_is_healthy(tmp_path):
    health = HealthCallback(tmp_path)
    trainer = ppo(tmp_path, [RunFilesCallback(tmp_path), health], logging_steps=3, save_strategy="no")
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 3, 6]
    found = read_health(tmp_path)
    assert found["kl_at_start"]["status"] == found["sampling"]["status"] == "ok"
    assert {entry["status"] for entry in found.values()} == {"ok"}
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {"train"} and len(rows) == 4  # two rollouts
    assert all(set(row["rewards"]) == {"lengths"} for row in rows)


def test_the_diversity_of_what_is_sampled_is_watched_without_evaluations(tmp_path):
    health = HealthCallback(tmp_path)
    ppo(tmp_path, [health], save_strategy="no").train()
    shares = [value for _, value in health.watch.history.points("completions/distinct_2")]
    assert len(shares) == 6 and all(0 < share <= 1 for share in shares)


def test_a_finding_is_written_to_the_log_once(tmp_path, caplog):
    trainer = ppo(tmp_path, [Tamper({s: {"reward_std": 0.0} for s in range(1, 7)}), HealthCallback(tmp_path)])
    with caplog.at_level(logging.WARNING, "alignkit.health"):
        trainer.train()
    assert caplog.text.count("got the same reward") == 1


def test_wrong_names_are_refused():
    with pytest.raises(ConfigError, match="no health check 'klx'; there are: finite"):
        HealthCallback(actions={"klx": "warn"})
    with pytest.raises(ConfigError, match="'panic' is no action"):
        HealthCallback(actions={"kl": "panic"})
