"""A recipe of a GAN's kind from beginning to end: a discriminator that learns along, and what is left."""

import json
import shutil

import pytest

from alignkit import load_reward
from alignkit.errors import ConfigError
from alignkit.recipe import load_recipe
from alignkit.report.reading import read_run
from alignkit.report.sections import figures_table, headline
from alignkit.run import run_recipe
from alignkit.run.compare import compare_runs
from alignkit.run.evaluate import evaluate_run

GENERATOR = """
trainer: sft
model: {scratch: {architecture: lstm, hidden_size: 16, layers: 1, context: 16, tokenizer: words}}
data: {use: files, path: texts}
training: {max_steps: 4, per_device_train_batch_size: 8, learning_rate: 0.01, save_strategy: no, use_cpu: true}
evaluation: {prompts: 4, max_new_tokens: 6}
"""
DISCRIMINATOR = """
trainer: cooperative
model: runs/generator/model
data: {use: files, path: texts}
rewards:
  discriminator:
    {kind: cnn, scratch: {context: 16}, tokenizer: runs/generator/model, of: completion, updates: 2, update_size: 8}
training:
  {max_steps: 2, per_device_train_batch_size: 8, num_generations: 1, weighting: reward, learning_rate: 0.0,
   max_completion_length: 6, save_strategy: no, use_cpu: true}
evaluation: {prompts: 8, references: true, metrics: [diversity]}
"""
GCN = """
extends: discriminator.yaml
rewards:
  discriminator: {model: runs/discriminator/rewards/discriminator, kind: null, scratch: null, tokenizer: null}
training: {num_generations: 4, num_iterations: 2, weighting: importance, learning_rate: 1.0e-3}
"""


def changes_in(said: str) -> dict[str, str]:
    """Those of the table of held-out figures."""
    table = said[said.index("Held-out data") :]
    rows = [line.split("│") for line in table[: table.index("└")].splitlines() if line.startswith("│")]
    return {key.strip(): change.strip() for _, key, _, _, change, _ in rows}


def unlike(said: str, run) -> set[str]:
    """Figures that are there before and after, and of which neither the terminal nor the report shows a change."""
    files = read_run(run)
    both = set(files.before) & set(files.after)
    printed = {key for key, change in changes_in(said).items() if key in both and not change}
    assert printed == {row["key"] for row in figures_table(files) if row["key"] in both and not row["change"]}
    assert bool(printed) == ("changed with training" in " ".join(headline(files)))
    return printed


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for split in ("train", "validation"):
        rows = [{"prompt": "<|endoftext|>", "reference": f"the {word} is here ."} for word in ("cat", "dog") * 16]
        (tmp_path / "texts" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("generator", GENERATOR), ("discriminator", DISCRIMINATOR), ("gcn", GCN)):
        (tmp_path / f"{name}.yaml").write_text(text)
        run_recipe(load_recipe(f"{name}.yaml"))
    return tmp_path / "runs"


def test_each_run_goes_on_from_what_the_last_one_left(study):
    before, after = (
        {
            key: weight.clone()
            for key, weight in load_reward("discriminator", model=str(folder)).network()[0].state_dict().items()
        }
        for folder in (study / "discriminator/rewards/discriminator", study / "gcn/rewards/discriminator")
    )
    assert set(before) == set(after) and any(not before[key].equal(after[key]) for key in before)
    generator, judged, gcn = (
        (study / name / "model/model.safetensors").read_bytes() for name in ("generator", "discriminator", "gcn")
    )
    assert generator == judged != gcn, "at learning rate 0 only the discriminator learns"
    results = json.loads((study / "gcn" / "results.json").read_text())
    assert results["after"]["reference_perplexity"] != results["before"]["reference_perplexity"]
    card = (study / "gcn" / "model" / "README.md").read_text()
    assert "cooperative training" in card and "Lamprier" in card
    figures = evaluate_run(study / "gcn")
    assert figures["distinct_2"] == pytest.approx(results["after"]["distinct_2"])


def test_evaluating_a_run_asks_its_discriminator_as_it_ended(study):
    first, run = study / "discriminator", study / "gcn"
    name = "rewards/discriminator/mean"
    ended = json.loads((run / "results.json").read_text())["after"][name]
    assert evaluate_run(run)[name] == pytest.approx(ended, abs=1e-6)
    assert evaluate_run("gcn.yaml", model=str(run))[name] != pytest.approx(ended, abs=1e-6), "as the recipe starts"
    # the recipe describes a new network, of which nothing but how it learns is still asked for
    ended = json.loads((first / "results.json").read_text())["after"][name]
    assert evaluate_run(first)[name] == pytest.approx(ended, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "changing"),
    [
        (["rewards.discriminator.updates=0"], set()),
        (
            ["rewards={a: {use: whiten, reward: {use: length, target: 3}}, b: {use: whiten, reward: repetition}}"],
            {"reward", "reward_std", "rewards/a/mean", "rewards/b/mean"},
        ),
    ],
)
def test_a_frozen_network_is_one_measure_and_a_scale_that_moves_is_two(study, capsys, changes, changing):
    settings = ["training.output_dir=runs/other", "training.reward_as=exponential"]
    run_recipe(load_recipe("gcn.yaml", [*changes, *settings]))
    said = capsys.readouterr().out
    assert unlike(said, study / "other") == changing
    assert ("a, b changed with training: what they say after does not compare with before" in said) == bool(changing)


@pytest.mark.parametrize("outer", ["bent", "discriminator"])
def test_a_discriminator_inside_a_composition_is_asked_as_it_ended(study, capsys, outer):
    spec = load_recipe("gcn.yaml").rewards["discriminator"]
    part = ", ".join(f"{key}: {value}" for key, value in {"use": "discriminator", **spec}.items())
    changes = [f"training.output_dir=runs/inside_{outer}", "training.reward_as=exponential"]
    run_recipe(load_recipe("gcn.yaml", [f"rewards={{{outer}: {{use: squash, reward: {{{part}}}}}}}", *changes]))
    run = study / f"inside_{outer}"
    said = capsys.readouterr().out
    assert f"rewards  runs/inside_{outer}/rewards, as they ended" in said
    assert f"{outer} changed with training: what it says after does not compare with before" in said
    assert changes_in(said)["distinct_2"] and unlike(said, run) == {"reward", "reward_std", f"rewards/{outer}/mean"}
    name = f"rewards/{outer}/mean"
    ended = json.loads((run / "results.json").read_text())["after"][name]
    assert evaluate_run(run)[name] == pytest.approx(ended, abs=1e-6)
    assert "is not known here" not in capsys.readouterr().out
    assert evaluate_run(run / "recipe.yaml", model=str(run))[name] != pytest.approx(ended, abs=1e-6), "as it starts"


def test_a_search_on_top_is_guided_by_what_the_run_learned(study):
    name = "rewards/discriminator/mean"
    plain = evaluate_run(study / "gcn")[name]
    search = "{use: best_of_n, reward: discriminator, n: 8}"
    assert evaluate_run(study / "gcn", [f"evaluation.decoder={search}"])[name] > plain


def test_perplexity_of_what_is_resampled_stands_beside_the_policys(study):
    search = "{use: resample, reward: discriminator, n: 4, alpha: 0}"
    figures = evaluate_run(study / "gcn", [f"evaluation.decoder={search}", "evaluation.references=true"])
    policy = pytest.approx(figures["reference_perplexity_sampled"], rel=1e-6)
    assert figures["reference_perplexity_resampled"] == policy, "without power it is the policy's"
    figures = evaluate_run(
        study / "gcn", [f"evaluation.decoder={search.replace(': 0', ': 1')}", "evaluation.references=true"]
    )
    assert figures["reference_perplexity_resampled"] != policy


def test_a_run_that_asks_each_prompt_once_is_judged_with_few_training_rows(study, monkeypatch):
    monkeypatch.setattr("alignkit.run.evaluate._TRAINING_ROWS", 4)
    assert "rewards/discriminator/mean" in evaluate_run(study / "discriminator")


def test_a_search_that_writes_one_text_for_all_says_so(study, capsys):
    search = "{use: mcts, reward: discriminator, simulations: 4, children: 3, value: rollout}"
    evaluate_run(study / "gcn", [f"evaluation.decoder={search}"])
    assert "all 8 completions are one text" in capsys.readouterr().out
    evaluate_run(study / "gcn", [f"evaluation.decoder={search[:-1]}, visit_temperature: 1.0}}"])
    assert "are one text" not in capsys.readouterr().out


def test_the_state_of_a_reward_without_a_network_is_kept_too(study, capsys):
    changes = ["rewards={distinct: {}}", "training.output_dir=runs/counts", "training.reward_as=exponential"]
    run_recipe(load_recipe("gcn.yaml", changes))
    run = study / "counts"
    name = "rewards/distinct/mean"
    ended = json.loads((run / "results.json").read_text())["after"][name]
    assert (run / "rewards" / "distinct.pt").is_file()
    assert evaluate_run(run)[name] == pytest.approx(ended, abs=1e-6)
    assert "is not known here" not in capsys.readouterr().out
    (run / "rewards" / "distinct.pt").unlink()  # as runs of earlier versions are
    evaluate_run(run)
    assert "distinct: what it learned in" in capsys.readouterr().out


def nested(name, of="gcn.yaml"):
    """A recipe's discriminator inside a composition of this name."""
    spec = {"use": "discriminator", **load_recipe(of).rewards["discriminator"]}
    return {name: {"use": "squash", "reward": spec}}


def mean_of(run, name="discriminator"):
    return json.loads((run / "results.json").read_text())["after"][f"rewards/{name}/mean"]


def test_a_folder_that_is_used_again_keeps_nothing_of_the_earlier_runs_rewards(study):
    run = study / "gcn"
    rewards = json.dumps(nested("discriminator"))
    run_recipe(load_recipe("gcn.yaml", [f"rewards={rewards}", "training.reward_as=exponential"]), overwrite=True)
    assert sorted(path.name for path in (run / "rewards").iterdir()) == ["discriminator.pt", "index.json"]
    run_recipe(load_recipe("gcn.yaml", ["training.learning_rate=0.01"]), overwrite=True)
    assert sorted(path.name for path in (run / "rewards").iterdir()) == ["discriminator", "index.json"]
    ended = mean_of(run)
    assert evaluate_run(run)["rewards/discriminator/mean"] == pytest.approx(ended, abs=1e-6)
    run_recipe(load_recipe("generator.yaml", ["training.output_dir=runs/gcn"]), overwrite=True)
    assert not (run / "rewards").exists()


def test_a_run_that_is_moved_aside_takes_its_rewards_along(study):
    ended = mean_of(study / "gcn")
    (study / "gcn/rewards/mine.txt").write_text("not the run's")
    run_recipe(load_recipe("gcn.yaml", ["training.seed=7", "training.learning_rate=0.1"]))
    aside = study / "gcn-1"
    assert evaluate_run(aside)["rewards/discriminator/mean"] == pytest.approx(ended, abs=1e-6)
    assert not (aside / "rewards/mine.txt").exists() and (study / "gcn/rewards/mine.txt").is_file()


def test_a_part_of_a_composition_takes_no_rewards_name(study, capsys):
    rewards = {**nested("bent"), "discriminator": load_recipe("gcn.yaml").rewards["discriminator"]}
    changes = ["training.reward_as=exponential", "training.output_dir=runs/both"]
    run_recipe(load_recipe("gcn.yaml", [f"rewards={json.dumps(rewards)}", *changes]))
    run = study / "both"
    assert sorted(path.name for path in (run / "rewards").iterdir()) == [
        *("discriminator", "discriminator_2.pt", "index.json"),
    ]  # fmt: skip
    ended = {name: mean_of(run, name) for name in ("bent", "discriminator")}
    capsys.readouterr()
    figures = evaluate_run(run)
    assert {name: figures[f"rewards/{name}/mean"] for name in ended} == pytest.approx(ended, abs=1e-6)
    assert "is not known here" not in capsys.readouterr().out


def test_compare_knows_which_compositions_learned_apart(study, capsys):
    changes = [f"rewards={json.dumps(nested('bent'))}", "training.reward_as=exponential"]
    for seed in (1, 2):
        own = [f"training.output_dir=runs/bent-{seed}", f"training.seed={seed}"]
        run_recipe(load_recipe("gcn.yaml", [*changes, *own]))
        evaluate_run(study / f"bent-{seed}", output=study / f"bent-{seed}.json")
    for runs in ([study / "bent-1", study / "bent-2"], [study / "bent-1.json", study / "bent-2.json"]):
        capsys.readouterr()
        found = compare_runs(runs)
        assert found.figures["rewards/bent"]["bent-2"].interval is None
        assert "rewards/bent is not the same in" in capsys.readouterr().out.replace("\n", " ")


def test_what_a_kill_at_the_very_end_left_out_is_written_on_resuming(study):
    changes = ["training.output_dir=runs/late", "training.save_strategy=steps", "training.save_steps=1"]
    run_recipe(load_recipe("gcn.yaml", changes))
    run = study / "late"
    ended = mean_of(run)
    shutil.rmtree(run / "rewards")
    (run / "results.json").unlink()
    run_recipe(load_recipe("gcn.yaml", changes), resume=True)
    assert mean_of(run) == ended
    assert evaluate_run(run)["rewards/discriminator/mean"] == pytest.approx(ended, abs=1e-6)


def test_a_run_and_its_own_evaluation_have_one_discriminator(study, capsys):
    evaluate_run(study / "gcn", output=study / "judged/of/gcn.json")
    found = compare_runs([study / "gcn", study / "judged/of/gcn.json"], plot=study / "plots/both.svg")
    assert "is not the same" not in capsys.readouterr().out
    [standings] = [found.figures[name] for name in found.figures if name == "rewards/discriminator"]
    assert [one.difference for one in standings.values()] == [None, pytest.approx(0, abs=1e-6)]
    assert (study / "plots/both.svg").is_file()
    for call in (evaluate_run, lambda run, output: compare_runs([run, run], output=output)):
        with pytest.raises(ConfigError, match=r"--output: .*judged is a folder; give a file in it"):
            call(study / "gcn", output=study / "judged")
