"""docs/metrics.md explains every figure that a trainer logs, every health check, and every metric."""

import math
import re
import tempfile
from functools import cache
from pathlib import Path

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from alignkit.diagnostics import CHECKS
from alignkit.metrics import METRICS, load_metric, metric_parameters
from alignkit.metrics.next_turn import NextTurnMetric
from alignkit.metrics.reward import RewardMetric
from alignkit.metrics.win_rate import WinRateMetric
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer
from alignkit.progress import ProgressCallback, RunFilesCallback, attach
from alignkit.report.words import Figure, figure_of
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig
from alignkit.trainers.health import HealthCallback
from alignkit.trainers.ppo import PPOTrainer
from alignkit.trainers.ppo_config import PPOConfig
from alignkit.trainers.reinforce import ReinforceConfig, ReinforceTrainer

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")


def table(marker):
    """Rows of the table after a marker, as lists of cells."""
    lines = PAGE.split(f"<!-- {marker} -->\n")[1].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows


def documented():
    return [key for row in table("metrics table") for key in re.findall(r"`([^`]+)`", row[0])]


def explains(key):
    """Whether the table has this key, `eval_` in front or not; a name in angle brackets stands for anything."""
    name = key.removeprefix("eval_")
    patterns = (re.sub(r"<\w+>", r"[^/]+", re.escape(documented_key)) for documented_key in FIXED)
    return name in documented() or any(re.fullmatch(pattern, name) for pattern in patterns)


# `<judge>` alone would match anything, so it is held against the judge's name instead
FIXED = [key for key in documented() if "<" in key and key != "<judge>"]


def warmth(prompts, completions, **columns):
    return [float("good" in text) + 0.01 * len(text) for text in completions]


class Detector:
    """A reward that knows the logarithms of its scores."""

    def __call__(self, prompts, completions, **columns):
        return [1 / (1 + len(text)) for text in completions]

    def log_scores(self, prompts, completions, **columns):
        return [-math.log1p(len(text)) for text in completions]


SETTINGS = {
    "max_steps": 4,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "report_to": [],
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
}
DATA = Dataset.from_dict({"prompt": ["the film", "a good", "it was"] * 8, "reference": ["good film ."] * 24})


@cache
def encoder() -> str:
    folder = tempfile.mkdtemp()
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def metrics_with_models():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    return {
        "two_sample": load_metric("two_sample", model=encoder(), folds=2),
        "perplexity": load_metric("perplexity", model=model, processing_class=tokenizer),
        "win_rate": WinRateMetric(Detector()),
        "next_turn": NextTurnMetric(model, warmth, tokenizer, max_new_tokens=4, positive_above=0.5),
    }


def ppo(folder):
    model = tiny_causal_lm()
    # these ask a model, or want the oracle's own texts
    asking = {"perplexity", "next_turn", "oracle_nll", "two_sample", "win_rate"}
    metrics = {name: load_metric(name) for name in METRICS if name not in asking} | metrics_with_models()
    metrics["judge"] = RewardMetric(warmth, name="judge")
    args = PPOConfig(output_dir=folder, eval_strategy="steps", eval_steps=2, num_iterations=2, ptx_coef=0.1, **SETTINGS)
    texts = Dataset.from_dict({"text": ["good film"] * 8})
    held_out = DATA.select(range(4))
    return PPOTrainer(model, warmth, args, DATA, held_out, tiny_tokenizer(), metrics=metrics, ptx_dataset=texts)


def reinforce(folder):
    args = ReinforceConfig(output_dir=folder, baseline="learned", rl_weight=0.5, **SETTINGS)
    return ReinforceTrainer(tiny_causal_lm(), warmth, args, DATA, None, tiny_tokenizer())


def cooperative(folder):
    args = CooperativeConfig(
        output_dir=folder, num_generations=4, rl_weight=0.5, reward_as="exponential", weight_clip=0.1,
        num_iterations=2, **SETTINGS,
    )  # fmt: skip
    return CooperativeTrainer(tiny_causal_lm(), warmth, args, DATA, None, tiny_tokenizer())


def of_trl(trainer_class, config_class):
    def make(folder):
        model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
        model.save_pretrained(f"{folder}/model")  # TRL loads the reference from where the model came from
        tokenizer.save_pretrained(f"{folder}/model")
        args = config_class(output_dir=folder, beta=0.1, bf16=False, num_generations=2, **SETTINGS)
        return trainer_class(f"{folder}/model", warmth, args, DATA, None, tokenizer)

    return make


TRAINERS = {
    "ppo": ppo,
    "reinforce": reinforce,
    "cooperative": cooperative,
    "grpo": of_trl(GRPOTrainer, GRPOConfig),
    "rloo": of_trl(RLOOTrainer, RLOOConfig),
}


@pytest.fixture(scope="module", params=list(TRAINERS))
def logged(request, tmp_path_factory):
    """The keys that one trainer logs in a small run, watched by all callbacks."""
    folder = str(tmp_path_factory.mktemp(request.param))
    trainer = TRAINERS[request.param](folder)
    for callback in (RunFilesCallback(folder), ProgressCallback(), HealthCallback(folder)):
        trainer.add_callback(callback)
    attach(trainer)
    trainer.train()
    return {key for row in trainer.state.log_history for key in row} - {"step"}


def test_every_figure_that_a_trainer_logs_is_explained(logged):
    assert len(logged) > 20
    assert sorted(key for key in logged if not explains(key) and key != "eval_judge") == []


def test_the_report_has_a_name_for_every_figure(logged):
    unnamed = [key for key in logged if figure_of(key) == Figure(key.removeprefix("eval_"))]
    plain = {"epoch", "total_flos", "eval_judge", "train_loss", "train_runtime"}
    assert {key for key in unnamed if "_per_second" not in key and "clip_ratio/" not in key} <= plain


def test_a_key_that_nobody_explained_is_noticed():
    assert not explains("novel_figure") and explains("eval_kl") and explains("rewards/anything/mean")


def test_every_row_says_all_five_things():
    for row in table("metrics table"):
        assert len(row) == 5 and all(row), row
    assert len(documented()) == len(set(documented()))


def test_every_check_has_its_section_and_no_section_is_left_over():
    section = PAGE.split("## Health checks")[1].split("\n## ")[0]
    found = re.findall(r"^### (.+)\n\nCheck `(\w+)`\.", section, flags=re.M)
    assert found == [(check.title, name) for name, check in CHECKS.items()]
    assert section.count("\n### ") == len(found)


def test_the_metrics_are_listed_with_their_keys_and_settings():
    rows = {
        row[0].strip("`"): (re.findall(r"`([^`]+)`", row[1]), re.findall(r"`([^`]+)`", row[2]))
        for row in table("metrics")
    }
    assert list(rows) == [*METRICS, "reward"]
    made = {**metrics_with_models(), "reward": RewardMetric(warmth, name="<judge>")}
    for name, (keys, settings) in rows.items():
        metric = made[name] if name in made else load_metric(name)
        referring = name in ("overlap", "bleu", "rouge", "two_sample", "win_rate")
        given = metric.compute(
            predictions=["a good film"] * 2, **({"columns": {"reference": ["a film"] * 2}} if referring else {})
        )
        assert all(explains(key) for key in given if not key.startswith("<"))
        assert [key for key in keys if key != "name"] == list(given)
        assert settings == list(metric_parameters(name))
