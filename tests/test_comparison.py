"""Systems side by side: differences and intervals against scipy's own pairing, verdicts, and the command."""

import json

import numpy as np
import pytest
import yaml
from scipy import stats

from alignkit.cli import main
from alignkit.comparison import compare_rows
from alignkit.errors import ConfigError, DataError
from alignkit.json_lines import append_json_lines
from alignkit.trainers.ended_rewards import write_ended


def rows(count=40, prompts=None, trained=None, reward=0.0, length=5, **metrics):
    """Rows of one system; a number for a figure is its mean, around which it lies evenly."""
    names = prompts or [f"prompt {i}" for i in range(count)]
    spread = [((7 * i) % 10 - 4.5) / 100 for i in range(len(names))]
    return [
        {
            "prompt": prompt,
            "completion": "a b",
            "rewards": {} if trained is None else {trained: reward + extra},
            "reward": None if trained is None else reward + extra,
            "length": length,
            "kl": None,
            "metrics": {name: None if value is None else value + extra for name, value in metrics.items()},
        }
        for prompt, extra in zip(names, spread, strict=True)
    ]


def test_differences_and_intervals_are_those_of_scipys_paired_bootstrap():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=60), generator.normal(size=60) + 0.4
    systems = {
        name: [{**row, "metrics": {"judge": value}} for row, value in zip(rows(60), values.tolist(), strict=True)]
        for name, values in (("one", one), ("other", other))
    }
    standing = compare_rows(systems).figures["judge"]["other"]
    expected = stats.bootstrap(
        (other, one),
        lambda a, b, axis=-1: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        paired=True,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert standing.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert standing.difference == pytest.approx(float(np.mean(other) - np.mean(one)))
    assert standing.mean == pytest.approx(float(np.mean(other))) and standing.prompts == 60


def test_prompts_are_paired_by_their_text_and_their_turn():
    """In whatever order they come, equal ones one by one, and those that not all have are left out."""
    first = rows(prompts=["a", "b", "a", "c"], judge=0.0)
    second = rows(prompts=["a", "d", "b", "a"])
    for row, value in zip(first, [1.0, 2.0, 3.0, 100.0], strict=True):
        row["metrics"] = {"judge": value}
    for row, value in zip(second, [1.5, 100.0, 2.5, 3.5], strict=True):
        row["metrics"] = {"judge": value}
    found = compare_rows({"first": first, "second": second})
    assert found.prompts == 3
    standing = found.figures["judge"]["second"]
    assert (standing.mean, standing.difference, standing.interval) == (2.5, 0.5, (0.5, 0.5))
    assert found.figures["judge"]["first"].mean == 2.0 and found.figures["judge"]["first"].interval is None


def test_a_row_without_an_opinion_is_left_out_of_its_figure_only():
    first, second = rows(3, judge=1.0), rows(3, judge=2.0)
    second[0]["metrics"]["judge"] = None
    standing = compare_rows({"first": first, "second": second}).figures["judge"]["second"]
    assert standing.prompts == 2 and standing.difference == pytest.approx(1.0)
    assert compare_rows({"first": first, "second": second}).figures["length"]["second"].prompts == 3


@pytest.mark.parametrize(
    ("judge", "next_turn", "verdict"),
    [
        (0.9, 0.9, "rl: reward up (r), judge up (judge, next_turn)"),
        (0.5, 0.9, "rl: reward up (r), judge not up (judge): reward hacking"),
        (0.2, 0.5, "rl: reward up (r), judge not up (judge, next_turn): reward hacking"),
        (None, 0.5, "rl: reward up (r), judge not up (next_turn): reward hacking"),
    ],
)
def test_a_reward_that_rises_alone_is_called_by_its_name(judge, next_turn, verdict):
    base = rows(r=0.5, judge=0.5, next_turn=0.5)
    trained = rows(trained="r", reward=0.8, r=0.8, judge=judge, next_turn=next_turn)
    for i, row in enumerate(trained):  # differences that are not all the same
        row["metrics"] = {name: v if v is None else v + (-1) ** i / 50 for name, v in row["metrics"].items()}
    found = compare_rows({"mle": base, "rl": trained})
    assert found.verdicts == [verdict]
    assert "rl" in found.figures["rewards/r"] and found.figures["rewards/r"]["rl"].interval is None


def test_the_trained_reward_itself_is_compared_where_both_have_it():
    systems = {
        "a": rows(trained="r", reward=0.5, judge=0.5),
        "b": rows(trained="r", reward=0.8, judge=0.4),
        "c": rows(trained="r", reward=0.5, judge=0.9),
    }
    found = compare_rows(systems)
    assert found.verdicts == ["b: reward up (r), judge not up (judge): reward hacking", "c: reward not up (r)"]
    assert [found.figures["reward"][name].direction for name in "abc"] == [0, 1, 0]
    assert found.figures["judge"]["b"].direction == -1


def test_verdicts_say_what_is_missing():
    assert compare_rows({"a": rows(), "b": rows(trained="r")}).verdicts[0].startswith("b: a has no figure for r; give")
    assert compare_rows({"a": rows(trained="r"), "b": rows()}).verdicts == ["b: was not trained on a reward"]
    lonely = compare_rows({"a": rows(trained="r"), "b": rows(trained="r", reward=1.0)})
    assert lonely.verdicts == ["b: reward up (r), and no judge to say whether rightly; add a metric"]


def test_what_one_system_is_trained_on_judges_no_other():
    systems = {
        "mle": rows(sentiment=0.5, look_ahead=0.5, judge=0.5),
        "current": rows(trained="sentiment", reward=0.8, sentiment=0.8, look_ahead=0.1, judge=0.7),
        "ahead": rows(trained="look_ahead", reward=0.8, sentiment=0.1, look_ahead=0.8, judge=0.4),
    }
    assert compare_rows(systems).verdicts == [
        "current: reward up (sentiment), judge up (judge)",
        "ahead: reward up (look_ahead), judge not up (judge): reward hacking",
    ]


def test_only_some_figures():
    systems = {"a": rows(trained="r", one=0.5, two=0.5), "b": rows(trained="r", reward=1.0, one=0.9, two=0.1)}
    found = compare_rows(systems, only=["one"])
    assert list(found.figures) == ["one"] and found.verdicts == ["b: reward up (r), judge up (one)"]
    with pytest.raises(ConfigError, match="no system has the figure 'tow'; did you mean 'two'"):
        compare_rows(systems, only=["tow"])


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ConfigError, match="at least two systems, got 1: a"):
        compare_rows({"a": rows()})
    with pytest.raises(DataError, match=r"no prompt was answered by all of them \(rows: a 1, b 1\)"):
        compare_rows({"a": rows(prompts=["x"]), "b": rows(prompts=["y"])})


def run_folder(place, own, **recipe):
    before = [{"phase": "before", "step": 0, **row, "metrics": {"judge": 100.0}} for row in own]
    append_json_lines(place / "samples.jsonl", [*before, *({"phase": "after", "step": 9, **row} for row in own)])
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(place)


def test_the_command_reads_runs_and_writes_json(tmp_path, capsys):
    judge = {"judge": {"reward": "sentiment", "model": "m"}}
    mle = run_folder(tmp_path / "mle", rows(r=0.5, judge=0.5), evaluation={"metrics": judge})
    rl = rows(trained="r", reward=0.9, r=0.9, judge=0.5)[:30]
    judged_otherwise = {"judge": {"reward": "sentiment", "model": "other"}}
    rl = run_folder(tmp_path / "rl", rl, rewards={"r": {"weight": 2}}, evaluation={"metrics": judged_otherwise})
    assert main(["compare", mle, rl, "--output", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    assert "rl: reward up (r), judge not up (judge): reward hacking" in said
    assert "30 held-out prompts" in said and "mle: 10 of 40 prompts are not shared by all" in said
    assert "judge is not the same in mle" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert (
        found["systems"] == ["mle", "rl"] and found["prompts"] == 30 and found["folders"] == {"mle": [mle], "rl": [rl]}
    )
    assert found["figures"]["judge"]["rl"]["difference"] == 0.0
    assert found["figures"]["r"]["rl"]["interval"] == pytest.approx([0.4, 0.4])
    assert found["verdicts"] == ["rl: reward up (r), judge not up (judge): reward hacking"]
    assert main(["compare", mle, rl, "--metric", "judge"]) == 0
    assert "length" not in capsys.readouterr().out


def test_who_searched_and_how_hot_is_said(tmp_path, capsys):
    """A search against samples compares more than the models."""
    own = rows(r=0.5, judge=0.5)
    recipes = {
        "greedy": {"evaluation": {"temperature": 0}, "training": {"temperature": 0.4}},
        "sampled": {"training": {"temperature": 0.4}},
        "plain": {},
        "searched": {"evaluation": {"decoder": {"use": "best_of_n", "reward": {"use": "look_ahead", "model": "m"}}}},
        "named": {"evaluation": {"decoder": {"use": "mcts", "reward": "look_ahead"}}},
    }
    assert main(["compare", *(run_folder(tmp_path / name, own, **recipe) for name, recipe in recipes.items())]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("what completed")] == [
        f"what completed the prompts is not the same in greedy (greedy) and {name}"
        for name in ("sampled (temperature 0.4)", "plain (temperature 1)", "searched (best_of_n by look_ahead)",
                     "named (mcts by look_ahead)")
    ]  # fmt: skip


class Learned:
    """A reward with a state."""

    __name__ = "discriminator"

    def __call__(self, prompts, completions, **columns):
        return [0.5] * len(completions)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_rewards_that_learned_apart_get_no_difference_and_no_verdict(tmp_path, capsys):
    """Each discriminator ends as another judge, even where all began as one."""
    begun = {"discriminator": {"model": "start", "updates": 2}, "length": {"target": 5}}
    paths = {}
    for name, value in (("gan", 0.2), ("gcn", 0.6)):
        own = rows(trained="discriminator", reward=value, discriminator=value)
        for row in own:
            row["rewards"]["length"] = value
        paths[name] = run_folder(tmp_path / name, own, rewards=begun)
        write_ended([Learned()], tmp_path / name)
    assert main(["compare", paths["gan"], paths["gcn"], "--output", str(tmp_path / "found.json")]) == 0
    assert "rewards/discriminator is not the same in gan (" in capsys.readouterr().out.replace("\n", " ")
    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("reward", "rewards/discriminator"):
        standing = found["figures"][name]["gcn"]
        assert standing.pop("mean") == pytest.approx(0.6)
        assert standing == {"prompts": 40, "difference": None, "interval": None}
    assert found["figures"]["rewards/length"]["gcn"]["difference"] == pytest.approx(0.4)
    assert found["verdicts"] == ["gcn: reward up (length), and no judge to say whether rightly; add a metric"]
    alone = {name: rows(trained="d", reward=value, d=value) for name, value in (("a", 0.1), ("b", 0.9))}
    [verdict] = compare_rows(alone, unlike=["d"]).verdicts
    assert verdict == "b: d is not the same in all systems; judge all by one metric to compare them"


def test_files_of_evaluate_are_compared_like_runs(tmp_path, capsys):
    judge = {"evaluation": {"metrics": {"judge": {"use": "a"}}}}
    mle = tmp_path / "mle.json"
    mle.write_text(json.dumps({"rows": rows(r=0.5, judge=0.5), "recipe": judge}))
    rl = run_folder(tmp_path / "rl", rows(trained="r", reward=0.9, r=0.9, judge=0.5), evaluation={"metrics": {}})
    assert main(["compare", str(mle), rl]) == 0
    assert "rl: reward up (r), judge not up (judge): reward hacking" in capsys.readouterr().out
    (tmp_path / "other.json").write_text('{"rows": ["x"]}')
    (tmp_path / "torn.json").write_text('{"rows": [')
    for name, message in (
        ("other", "has no `rows` of completions"),
        ("torn", "is not what `alignkit evaluate --output` writes"),
    ):
        assert main(["compare", str(mle), str(tmp_path / f"{name}.json")]) == 2
        assert message in capsys.readouterr().err


def test_seeds_of_a_system_are_its_mean(tmp_path, capsys):
    paths = {}
    for name, values in (("mle", (0.2, 0.4)), ("rl", (0.5, 0.7))):
        for seed, value in enumerate(values):
            file = tmp_path / f"{name}-{seed}.json"
            file.write_text(json.dumps({"rows": rows(judge=value, length=seed)[seed:]}))
            paths[name, seed] = str(file)
    asked = [f"{name}={paths[name, 0]},{paths[name, 1]}" for name in ("mle", "rl")]
    assert main(["compare", *asked, "--output", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "mle-0.json: 1 of 40 prompts are not shared by all" in said and "mle-1.json: " not in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["prompts"] == 39 and found["figures"]["length"]["mle"]["mean"] == 0.5
    assert found["figures"]["judge"]["rl"]["difference"] == pytest.approx(0.3)
    assert main(["compare", *asked, f"third={paths['rl', 1]}"]) == 2
    assert "a run of one of the systems: " in capsys.readouterr().err
    many = "many=" + ",".join(paths["mle", 0] for _ in range(99))
    for wrong, message in ((many, "was given twice"), ("gap=a.json,,b.json", "a run between two commas is empty")):
        assert main(["compare", asked[0], wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_system_of_fewer_seeds_is_held_against_those_of_the_first(tmp_path, capsys):
    def judged(name, value, seed):
        file = tmp_path / f"{name}-{seed}.json"
        file.write_text(json.dumps({"rows": rows(judge=value), "recipe": {"training": {"seed": seed}}}))
        return str(file)

    first = ",".join([judged("mle", 0.2, 1), judged("mle", 0.6, 2), judged("mle", 0.7, 3)])
    some, other = ",".join([judged("rl", 0.5, 3), judged("rl", 0.3, 1)]), judged("gan", 0.5, 7)
    part = ",".join([judged("part", 0.9, 2), judged("part", 0.7, 9)])
    found = tmp_path / "found.json"
    systems = [f"mle={first}", f"rl={some}", f"gan={other}", f"part={part}"]
    assert main(["compare", *systems, "--output", str(found)]) == 0
    content = json.loads(found.read_text())
    standings = content["figures"]["judge"]
    assert standings["mle"]["mean"] == pytest.approx(0.5)
    assert standings["rl"]["difference"] == pytest.approx(0.4 - 0.45)
    assert standings["gan"]["difference"] == pytest.approx(0.0)  # the first has no seed 7
    assert standings["part"]["difference"] == pytest.approx(0.3)  # nor a seed 9
    assert content["baselines"] == {"rl": [1, 3]}
    assert content["remarks"] == [
        "rl: differences are to mle of seeds 3, 1, as it has no other",
        "gan has seed 7; its differences are to the mean of mle over seeds 1, 2, 3",
        "part has seeds 2, 9; its differences are to the mean of mle over seeds 1, 2, 3",
    ]
    assert "rl: differences are to mle of seeds 3, 1" in capsys.readouterr().out


def test_names_of_systems_are_anyones(tmp_path):
    own, again = rows(judge=0.2), rows(judge=0.4)
    systems = {"a": own, "b": rows(judge=0.6), "a, for b": rows(judge=0.9)}
    found = compare_rows(systems, baselines={"b": again}).figures["judge"]
    assert found["b"].difference == pytest.approx(0.2) and found["a, for b"].mean == pytest.approx(0.9)
    assert found["a, for b"].difference == pytest.approx(0.7)
    with pytest.raises(DataError, match=r"\(rows: a 40, b 2\)"):
        compare_rows({"a": own, "b": rows(prompts=["x", "y"])}, baselines={"b": again})


def test_mistakes_of_the_command_are_messages(tmp_path, capsys):
    mle = run_folder(tmp_path / "mle", rows())
    for arguments, message in (
        ([mle], "at least two systems, got 1: mle"),
        ([mle, mle], "was given twice"),
        ([mle, str(tmp_path / "none")], "has no completions after training"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err
