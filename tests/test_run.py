"""A run leaves a folder that tells all of it, for every kind of trainer, and can be continued to the same end."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignkit.errors import AlignkitError, ConfigError, DataError
from alignkit.json_lines import append_json_lines, read_json_lines
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.folder import RUN_FILES, RunFolder
from alignkit.trainers.checkpoint_files import write_record

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ON_POLICY = ("ppo", "reinforce", "grpo", "rloo")
# settings of PPO that the others do not have
PPO_ONLY = ("num_iterations", "vf_coef", "cliprange_value", "kl_coef")
GROUPED = ["training.num_generations=2"]


def tiny_recipe(trainer, tiny_quickstart, folder, *more):
    """recipes/quickstart.yaml with another trainer, tiny."""
    text = (RECIPES / "quickstart.yaml").read_text().replace("trainer: ppo", f"trainer: {trainer}")
    if trainer != "ppo":
        text = "".join(
            line
            for line in text.splitlines(keepends=True)
            if not line.strip().startswith(tuple(f"{k}:" for k in PPO_ONLY))
        )
    overrides = [o for o in tiny_quickstart if trainer == "ppo" or not o.startswith("training.num_iterations")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe_source.yaml").write_text(text)
    overrides += [] if trainer == "ppo" else GROUPED
    return load_recipe(
        folder / "recipe_source.yaml", [*overrides, "training.max_steps=2", f"training.output_dir={folder}", *more]
    )


def lines_of(path):
    return read_json_lines(path, drop_torn=False)


@pytest.fixture(scope="module")
def runs(tiny_quickstart, tmp_path_factory):
    """The folder of a finished run of each on-policy trainer."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: run_recipe(tiny_recipe(name, tiny_quickstart, folder / name)) for name in ON_POLICY}


@pytest.mark.parametrize("trainer", ON_POLICY)
def test_the_folder_holds_everything(runs, trainer):
    folder = runs[trainer]
    assert {name for name in RUN_FILES if not (folder / name).is_file()} == {"health_dump.json", "recipe_begun.yaml"}
    results = json.loads((folder / "results.json").read_text())
    assert set(results["before"]) == set(results["after"])
    assert {"reward", "rewards/sentiment/mean", "kl", "distinct_2", "perplexity"} <= set(results["after"])
    assert results["before"]["kl"] == pytest.approx(0, abs=1e-4)
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["num_processes"], environment["seed"], environment["trainer"]) == (1, 1, trainer)
    assert {"torch", "trl", "transformers", "alignkit"} <= set(environment["packages"])
    (origin,) = environment["reward_origins"]
    assert (origin["distribution"], origin["name"]) == ("alignkit-rewards", "sentiment")
    again = load_recipe(folder / "recipe.yaml")
    assert again.trainer == trainer and again.output_dir == folder
    assert "sentiment: alignkit_rewards.sentiment:Sentiment, alignkit-rewards" in (folder / "recipe.yaml").read_text()
    rows = lines_of(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert [row["step"] for row in rows if "eval_reward" in row] == [0, 2]
    samples = lines_of(folder / "samples.jsonl")
    assert [s["phase"] for s in samples if s["phase"] != "train"] == ["before"] * 4 + ["after"] * 4
    assert {"prompt", "completion", "rewards", "reward", "kl", "length", "reference", "step"} <= set(samples[0])
    assert "<html" in (folder / "report.html").read_text()


@pytest.mark.parametrize("trainer", ON_POLICY)
def test_the_saved_model_is_the_trained_one(runs, trainer):
    """It loads without alignkit, and differs from where training began."""
    model = AutoModelForCausalLM.from_pretrained(runs[trainer] / "model")
    start = load_recipe(runs[trainer] / "recipe.yaml").model["name"]
    before = AutoModelForCausalLM.from_pretrained(start).state_dict()
    assert any((before[name] != weight).any() for name, weight in model.state_dict().items())


def test_all_trainers_are_judged_by_the_same_code(runs):
    """Before training the model is the same, so every figure must be: ours, and TRL's."""
    before = {name: json.loads((folder / "results.json").read_text())["before"] for name, folder in runs.items()}
    samples = {name: [s for s in lines_of(f / "samples.jsonl") if s["phase"] == "before"] for name, f in runs.items()}
    for name in ON_POLICY:
        assert before[name] == pytest.approx(before["ppo"], abs=1e-6, nan_ok=True)
        assert [s["completion"] for s in samples[name]] == [s["completion"] for s in samples["ppo"]]


@pytest.mark.parametrize("trainer", ["ppo", "grpo"])
def test_a_run_continued_from_a_checkpoint_ends_where_it_would_have(trainer, tiny_quickstart, tmp_path):
    saving = ["training.save_strategy=steps", "training.save_steps=2", "training.max_steps=4"]
    whole = run_recipe(tiny_recipe(trainer, tiny_quickstart, tmp_path / "whole", *saving))
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoint-4")
    shutil.rmtree(broken / "model")
    for name in ("metrics.jsonl", "samples.jsonl"):  # killed while it wrote
        with (broken / name).open("a", encoding="utf-8") as file:
            file.write('{"step": 4, "phase": "tra')
    continued = run_recipe(tiny_recipe(trainer, tiny_quickstart, broken, *saving), resume=True)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, continued))
    assert all((first[name] == second[name]).all() for name in first)
    losses = [
        [(r["step"], r["loss"]) for r in lines_of(f / "metrics.jsonl") if "loss" in r] for f in (whole, continued)
    ]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == [1, 2, 3, 4]
    kept = [[(r["step"], sorted(r)) for r in lines_of(f / "metrics.jsonl")] for f in (whole, continued)]
    assert kept[0] == kept[1], "the evaluation at step 0 stands there once, as all else"
    shown = [
        [(s["phase"], s["step"], s["completion"]) for s in lines_of(f / "samples.jsonl")] for f in (whole, continued)
    ]
    assert shown[0] == shown[1] and [s[0] for s in shown[0] if s[0] != "train"] == ["before"] * 4 + ["after"] * 4
    results = [json.loads((f / "results.json").read_text()) for f in (whole, continued)]
    assert results[0]["after"] == results[1]["after"]


@pytest.mark.parametrize("trainer", ["ppo", "grpo"])
def test_a_run_killed_in_its_last_evaluation_is_not_trained_further(trainer, tiny_quickstart, tmp_path):
    settings = ["training.save_strategy=steps", "training.save_steps=2", "training.max_steps=4"]
    settings += ["training.lr_scheduler_type=constant", "training.eval_strategy=steps", "training.eval_steps=4"]
    whole = run_recipe(tiny_recipe(trainer, tiny_quickstart, tmp_path / "whole", *settings))
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "model")
    (broken / "results.json").unlink()
    continued = run_recipe(tiny_recipe(trainer, tiny_quickstart, broken, *settings), resume=True)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, continued))
    assert all((first[name] == second[name]).all() for name in first)
    results = [json.loads((f / "results.json").read_text()) for f in (whole, continued)]
    assert results[0] == results[1] and results[0]["before"] != results[0]["after"]
    shown = [[(s["phase"], s["completion"]) for s in lines_of(f / "samples.jsonl")] for f in (whole, continued)]
    assert shown[0] == shown[1]


def test_resuming_cuts_the_logs_back_to_the_checkpoint(tmp_path):
    """Texts keep their line separators; a torn last line goes, so that the next one does not stick to it."""
    metrics = [{"step": step, "text": "a\u2028b"} for step in (0, 1, 2, 3)]
    phases = [("before", 0), ("train", 2), ("train", 3), ("after", 2)]
    (tmp_path / "checkpoint-2").mkdir()
    write_record(tmp_path / "checkpoint-2")
    append_json_lines(tmp_path / "metrics.jsonl", [*metrics[:3], {"step": 2, "train_runtime": 1.0}, metrics[3]])
    (tmp_path / "health_dump.json").write_text("{}")
    append_json_lines(tmp_path / "samples.jsonl", [{"phase": phase, "step": step} for phase, step in phases])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "te')
    folder = RunFolder.open(tmp_path, resume=True)
    folder.begin()
    append_json_lines(tmp_path / "metrics.jsonl", [{"step": 3, "new": True}])
    assert not (tmp_path / "health_dump.json").exists()
    assert lines_of(tmp_path / "metrics.jsonl") == [*metrics[:3], {"step": 3, "new": True}]
    assert [(s["phase"], s["step"]) for s in lines_of(tmp_path / "samples.jsonl")] == [("before", 0), ("train", 2)]


def test_a_finished_run_is_moved_aside_and_what_lies_below_it_stays(tmp_path, capsys):
    """`recipes/quickstart.yaml` goes to runs/quickstart, and starts from the model in runs/quickstart/lm."""
    path = tmp_path / "run"
    for number in (1, 2):
        for name in (*RUN_FILES, "model/weights", "lm/model/weights"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(f"run {number}")
        RunFolder.open(path, main=False).begin()
        assert (path / "results.json").exists(), "only the main process moves it"
        RunFolder.open(path).begin()
        assert [item.name for item in path.iterdir()] == ["lm"] and (path / "lm" / "model" / "weights").is_file()
        aside = tmp_path / f"run-{number}"
        assert {item.name for item in aside.iterdir()} == {*RUN_FILES, "model"}
        assert (aside / "model" / "weights").read_text() == f"run {number}"
        assert f"the finished run in {path} is now in {aside}" in capsys.readouterr().out


def test_overwrite_deletes_the_earlier_run(tmp_path):
    path = tmp_path / "run"
    for name in (*RUN_FILES, "model/adapter_config.json", "checkpoint-3/weights", "lm/model/weights"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("earlier")
    RunFolder.open(path, overwrite=True).begin()
    assert [item.name for item in path.iterdir()] == ["lm"] and [item.name for item in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("start", ["run/../run/model", "run"])
def test_a_run_that_starts_from_where_its_model_will_go_is_refused(start, tiny_quickstart, tmp_path):
    recipe = tiny_recipe("reinforce", tiny_quickstart, tmp_path / "run", f"model={tmp_path}/{start}")
    with pytest.raises(ConfigError, match=r"^model: .* is where this run will save its own model.*output_dir"):
        run_recipe(recipe)


def test_checkpoints_of_an_earlier_run_are_not_mixed_in(tiny_quickstart, tmp_path):
    recipe = tiny_recipe("reinforce", tiny_quickstart, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-7").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(AlignkitError, match=r"checkpoint-7.*--resume.*--overwrite.*output_dir"):
        run_recipe(recipe)
    assert (tmp_path / "run" / "results.json").read_text() == "{}"
    with pytest.raises(AlignkitError, match="give one of them"):
        run_recipe(recipe, resume=True, overwrite=True)
    run_recipe(recipe, overwrite=True)
    assert not (tmp_path / "run" / "checkpoint-7").exists()
    assert set(json.loads((tmp_path / "run" / "results.json").read_text())) >= {"before", "after", "real_text"}


def test_a_run_that_cannot_start_leaves_an_earlier_one_as_it_was(tiny_quickstart, tmp_path):
    recipe = tiny_recipe("reinforce", tiny_quickstart, tmp_path / "run")
    for name in RUN_FILES:
        (tmp_path / "run" / name).write_text("earlier")
    recipe.model = {"name": str(tmp_path / "gone")}
    with pytest.raises(AlignkitError, match="there is no folder"):
        run_recipe(recipe)
    assert {(tmp_path / "run" / name).read_text() for name in RUN_FILES} == {"earlier"}


def test_the_ending_shows_figures_ten_samples_and_the_report(tiny_quickstart, tmp_path, capsys):
    run_recipe(tiny_recipe("reinforce", tiny_quickstart, tmp_path / "run", "evaluation.prompts=12"))
    said = capsys.readouterr().out
    assert "rewards/sentiment/mean" in said and "change" in said
    assert said.count("├") + said.count("└") >= 10, "ten samples, a rule between them"
    assert str(tmp_path / "run" / "report.html") in said


def test_a_reward_may_stand_twice_under_names_of_its_own(tiny_quickstart, tmp_path):
    recipe = tiny_recipe(
        "reinforce",
        tiny_quickstart,
        tmp_path / "run",
        "rewards.short={use: length, target: 3, weight: 0.5}",
        "rewards.long={use: length, target: 9, weight: 0}",
    )
    folder = run_recipe(recipe)
    results = json.loads((folder / "results.json").read_text())["after"]
    assert {"rewards/sentiment/mean", "rewards/short/mean", "rewards/long/mean"} <= set(results)
    weighted = results["rewards/sentiment/mean"] + 0.5 * results["rewards/short/mean"]
    assert results["reward"] == pytest.approx(weighted, abs=1e-6)


def test_a_judge_that_is_not_trained_on_is_reported(tiny_quickstart, tmp_path):
    model = next(o for o in tiny_quickstart if o.startswith("rewards.sentiment.model=")).partition("=")[2]
    judge = f"evaluation.metrics.judge={{reward: sentiment, model: {model}, of: both}}"
    folder = run_recipe(tiny_recipe("ppo", tiny_quickstart, tmp_path / "run", judge))
    after = json.loads((folder / "results.json").read_text())["after"]
    assert 0 <= after["judge"] <= 1 and 0 <= after["judge_positive_share"] <= 1


def test_an_adapter_trains_against_the_model_below_it(tiny_quickstart, tmp_path):
    folder = run_recipe(
        tiny_recipe("ppo", tiny_quickstart, tmp_path / "run", "adapter={r: 2, target_modules: all-linear}")
    )
    assert (folder / "model" / "adapter_config.json").is_file()
    assert json.loads((folder / "results.json").read_text())["before"]["kl"] == pytest.approx(0, abs=1e-4)


def test_a_second_data_set_is_kept_likely(tiny_quickstart, tmp_path):
    ptx = ["data.ptx={use: quickstart, form: text, train_size: 32, validation_size: 8}", "training.ptx_coef=0.5"]
    folder = run_recipe(tiny_recipe("ppo", tiny_quickstart, tmp_path / "run", *ptx))
    assert all(row["ptx_loss"] > 0 for row in lines_of(folder / "metrics.jsonl") if "loss" in row)


def test_prompts_that_do_not_fit_the_models_positions_are_refused(tmp_path):
    from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

    model = tiny_causal_lm("gpt2")
    model.save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    rows = [{"prompt": "the movie " * model.config.n_positions}] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**r, "n": i}) + "\n" for i, r in enumerate(rows)))
    (tmp_path / "recipe.yaml").write_text(f"""
trainer: ppo
model: {tmp_path}/lm
data: {{use: files, path: {tmp_path}/rows.jsonl, validation: {tmp_path}/rows.jsonl}}
rewards: [repetition]
training: {{output_dir: {tmp_path}/run, max_steps: 1, max_completion_length: 4, per_device_train_batch_size: 2}}
""")
    with pytest.raises(DataError, match=r"prompt 0 of train has \d+ tokens.*context of"):
        run_recipe(load_recipe(tmp_path / "recipe.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ppo", "grpo"])
def test_two_processes_train_one_model_and_write_one_folder(trainer, tiny_quickstart, tmp_path):
    recipe = tiny_recipe(trainer, tiny_quickstart, tmp_path / "run", "training.use_cpu=true")
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    with socket.create_server(("127.0.0.1", 0)) as free:  # two of these may run at the same time
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    done = subprocess.run(
        [*launch, "-m", "alignkit", "train", str(tmp_path / "resolved.yaml")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "ALIGNKIT_NUM_PROCESSES": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["num_processes"] == 2
    steps = [row["step"] for row in lines_of(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert steps == [1, 2]
    assert sum(s["phase"] == "after" for s in lines_of(tmp_path / "run" / "samples.jsonl")) == 4
    assert done.stdout.count("report.html") == 1


@pytest.mark.slow
def test_an_eight_bit_model_trains_through_its_adapter(tiny_quickstart, tmp_path):
    pytest.importorskip("bitsandbytes")
    extra = ["adapter={r: 2, target_modules: all-linear}", "quantization={load_in_8bit: true}"]
    folder = run_recipe(tiny_recipe("ppo", tiny_quickstart, tmp_path / "run", *extra))
    assert json.loads((folder / "results.json").read_text())["after"]["kl"] is not None
