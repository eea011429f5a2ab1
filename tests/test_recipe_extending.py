"""A recipe extends another one: what it says wins, and everything else is the other's."""

import pytest
from test_recipe import GOOD, problems_of

from alignkit.errors import RecipeError
from alignkit.recipe import load_recipe
from alignkit.recipe.extending import merged


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD)
    return tmp_path


def written(folder, text, name="own.yaml"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_what_it_says_wins_and_the_rest_is_the_others(folder):
    own = written(
        folder,
        "extends: base.yaml\nrewards: {length: {target: 9}}\ntraining: {max_steps: 7, kl_coef: 0.2}\n",
    )
    found = load_recipe(own).to_dict()
    expected = load_recipe(
        folder / "base.yaml", ["rewards.length.target=9", "training.max_steps=7", "training.kl_coef=0.2"]
    ).to_dict()
    expected["training"]["output_dir"] = found["training"]["output_dir"]
    assert found == expected
    assert found["training"]["output_dir"] == "runs/own"


def test_an_override_comes_last(folder):
    own = written(folder, "extends: base.yaml\ntraining: {max_steps: 7}\n")
    assert load_recipe(own, ["training.max_steps=9"]).training["max_steps"] == 9


def test_shorthands_meet_long_forms(folder):
    own = written(
        folder, "extends: base.yaml\nevaluation: {prompts: 8, metrics: {length: {}}}\nrewards: [repetition]\n"
    )
    found = load_recipe(own)
    assert list(found.evaluation["metrics"]) == ["reward", "diversity", "length"]
    assert found.evaluation["prompts"] == 8
    assert list(found.rewards) == ["length", "repetition"]


def test_another_model_or_data_set_takes_no_settings_over(folder):
    written(folder, "extends: base.yaml\nmodel: {dtype: bfloat16}\ndata: {seed: 3}\n", "middle.yaml")
    same = load_recipe(written(folder, "extends: middle.yaml\nmodel: some/model\n"))
    assert same.model == {"name": "some/model", "dtype": "bfloat16"}
    other = load_recipe(written(folder, "extends: middle.yaml\nmodel: another/model\ndata: {use: imdb}\n"))
    assert (other.model, other.data) == ({"name": "another/model"}, {"use": "imdb"})
    new = load_recipe(written(folder, "extends: middle.yaml\nmodel: {scratch: {layers: 1}}\n"))
    assert new.model == {"scratch": {"layers": 1}}
    assert merged({"model": {"scratch": {"layers": 1, "seed": 1}}}, {"model": {"scratch": {"seed": 2}}}) == {
        "model": {"scratch": {"layers": 1, "seed": 2}}
    }


@pytest.mark.parametrize(
    ("own", "gone", "left"),
    [
        ("training: {learning_rate: null}", ("training", "learning_rate"), 2),
        ("rewards: {length: {weight: null}}", ("rewards", "length", "weight"), 20),
        ("evaluation: {metrics: {diversity: null}}", ("evaluation", "metrics", "diversity"), {}),
        ("evaluation: {metrics: null}", ("evaluation", "metrics", "reward"), None),
        ("evaluation: null", ("evaluation", "metrics"), None),
    ],
)
def test_null_removes_what_the_other_says(folder, own, gone, left):
    found = load_recipe(written(folder, f"extends: base.yaml\n{own}\n")).to_dict()
    inner = found
    for key in gone[:-1]:
        inner = inner.get(key, {})
    assert gone[-1] not in inner
    assert left is None or left in inner.values()


def test_a_reward_can_be_removed_for_another(folder):
    own = written(folder, "extends: base.yaml\nrewards: {length: null, repetition: {}}\n")
    assert load_recipe(own).rewards == {"repetition": {}}


def test_a_reward_keeps_its_settings_unless_it_is_another_one(folder):
    same = written(folder, "extends: base.yaml\nrewards: {length: {use: length, target: 3}}\n")
    assert load_recipe(same).rewards == {"length": {"weight": 0.5, "use": "length", "target": 3}}
    other = written(folder, "extends: base.yaml\nrewards: {length: {use: repetition}}\n")
    assert load_recipe(other).rewards == {"length": {"use": "repetition"}}
    network = {"rewards": {"discriminator": {"model": "m", "weight": 2}}}
    new = {"rewards": {"discriminator": {"model": None, "scratch": {"context": 8}}}}
    assert merged(network, new) == {"rewards": {"discriminator": {"weight": 2, "scratch": {"context": 8}}}}


def test_a_metric_of_another_reward_takes_no_settings_over():
    judge = {"evaluation": {"metrics": {"judge": {"reward": "sentiment", "model": "runs/judge"}}}}
    other = {"evaluation": {"metrics": {"judge": {"reward": "look_ahead"}}}}
    assert merged(judge, other) == other
    same = {"evaluation": {"metrics": {"judge": {"positive_above": 0.6}}}}
    assert merged(judge, same)["evaluation"]["metrics"]["judge"]["model"] == "runs/judge"


def test_every_recipe_has_a_folder_of_its_own(folder):
    written(folder, "extends: base.yaml\ntraining: {output_dir: runs/there}\n", "middle.yaml")
    assert load_recipe(written(folder, "extends: middle.yaml\n")).training["output_dir"] == "runs/own"
    own = written(folder, "extends: middle.yaml\ntraining: {output_dir: runs/here}\n")
    assert load_recipe(own).training["output_dir"] == "runs/here"


def test_code_in_the_other_recipe_is_refused_too(folder):
    written(folder, "extends: base.yaml\nrewards: {mine: {use: 'mine.py:Mine'}}\n", "unsafe.yaml")
    own = written(folder, "extends: unsafe.yaml\n")
    with pytest.raises(RecipeError, match=r"mine\.py:Mine"):
        load_recipe(own, allow_code=False)


def test_a_name_that_stands_twice_in_the_other_is_found(folder):
    written(folder, "extends: base.yaml\nevaluation: [length, length]\n", "twice.yaml")
    (problem,) = problems_of(written(folder, "extends: twice.yaml\n"))
    assert "'length' stands twice" in problem


def test_its_place_is_that_of_the_file_that_names_it(folder):
    written(folder, "extends: ../base.yaml\ntraining: {max_steps: 5}\n", "far/middle.yaml")
    own = written(folder, "extends: far/middle.yaml\n")
    assert load_recipe(own).training["max_steps"] == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: own.yaml\n", "extends: comes back to a file that is read already: own.yaml -> own.yaml"),
        ("extends: other.yaml\n", "own.yaml -> other.yaml -> own.yaml"),
        ("extends: [base.yaml]\n", "extends: expected the path of another recipe, such as base.yaml; got a list"),
        ("extends: ''\n", "extends: expected the path of another recipe, such as base.yaml; got "),
        ("extends: bsae.yaml\n", "extends: there is no file"),
    ],
)
def test_what_cannot_be_extended_is_refused(folder, text, expected):
    written(folder, "extends: own.yaml\n", "other.yaml")
    (problem,) = problems_of(written(folder, text))
    assert expected in problem


def test_mistakes_of_both_come_together(folder):
    written(folder, "trainer: ppo\nmodel: a\ndata: quickstart\nrewards: {lenght: {}}\n", "wrong.yaml")
    own = written(folder, "extends: wrong.yaml\ntraining: {max_stesp: 3}\n")
    with pytest.raises(RecipeError, match=r"own\.yaml, which extends .*wrong\.yaml: 2 problems") as caught:
        load_recipe(own)
    assert "lenght" in str(caught.value) and "max_stesp" in str(caught.value)


def test_the_resolved_recipe_extends_nothing(folder):
    own = written(folder, "extends: base.yaml\ntraining: {max_steps: 7}\n")
    resolved = written(folder, load_recipe(own).to_yaml(), "resolved.yaml")
    assert "extends" not in resolved.read_text()
    assert load_recipe(resolved).to_dict() == load_recipe(own).to_dict()


def test_an_override_cannot_extend(folder):
    (problem,) = problems_of(folder / "base.yaml", ["extends=other.yaml"])
    assert problem == "extends: stands in a recipe's file, and cannot be an override"


def test_a_misspelt_extends_is_answered_with_it(folder):
    problems = problems_of(written(folder, "extnds: base.yaml\n"))
    assert "did you mean 'extends'?" in problems[0]
