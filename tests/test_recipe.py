"""Recipes are read strictly, and every mistake in one is named at once."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.errors import RecipeError
from alignkit.recipe import TRAINERS, load_recipe
from alignkit.recipe.reading import apply_overrides, dump_yaml, parse_yaml
from alignkit.settings import did_you_mean, misfit

GOOD = """
trainer: ppo
model: some/model
data: {use: quickstart}
rewards:
  length: {weight: 0.5, target: 20}
training: {learning_rate: 1e-5, max_steps: 2, save_strategy: no}
evaluation: [reward, diversity]
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def problems_of(path, overrides=(), **settings):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, **settings)
    return caught.value.problems


def test_a_good_recipe_becomes_its_trainers_config(write):
    recipe = load_recipe(write(GOOD))
    config = recipe.config()
    assert type(config).__name__ == "PPOConfig"
    assert (config.learning_rate, config.max_steps, config.save_strategy) == (1e-5, 2, "no")
    assert config.reward_weights == [0.5]
    assert recipe.model == {"name": "some/model"}
    assert recipe.evaluation["metrics"] == {"reward": {}, "diversity": {}}


def test_all_mistakes_come_at_once_each_with_the_nearest_known_name(write):
    path = write("""
trainer: ppo
modle: gpt2
model: {name: gpt2, dytpe: float32}
data: {use: quickstart, train_sise: 4}
rewards:
  lenght: {target: 20}
  repetition: {wieght: 1}
  lexicon: {weight: heavy}
training: {learning_rat: 1e-4, max_steps: many, num_iterations: 1.5}
evaluation: [diversety, {overlap: {ngrams: 4}}]
adapter: {rank: 8}
quantization: {load_in_8bits: true}
""")
    found = "\n".join(problems_of(path))
    for expected in (
        "unknown key 'modle'; did you mean 'model'?",
        "model: the section has no setting 'dytpe'; did you mean 'dtype'?",
        "no setting 'train_sise'; did you mean 'train_size'?",
        "no reward is called 'lenght'. Did you mean 'length'?",
        "rewards.repetition: reward 'repetition' has no setting 'wieght'; did you mean 'weight'?",
        "rewards.lexicon.weight: expected a number, got the text 'heavy'",
        "training: PPOConfig has no setting 'learning_rat'; did you mean 'learning_rate'?",
        "training.max_steps: expected a whole number, got the text 'many'",
        "training.num_iterations: expected a whole number, got the number 1.5",
        "there is no metric 'diversety'; did you mean 'diversity'?",
        "metric 'overlap' has no setting 'ngrams'",
        "adapter: LoraConfig has no setting 'rank'",
        "BitsAndBytesConfig has no setting 'load_in_8bits'; did you mean 'load_in_8bit'?",
    ):
        assert expected in found, f"missing: {expected}\n{found}"


def test_settings_that_contradict_each_other_come_with_the_other_mistakes(write):
    overrides = ["training.num_generations=3", "training.per_device_train_batch_size=8", "modle=x"]
    first, second = problems_of(write(GOOD), overrides)
    assert "unknown key 'modle'" in first
    assert "PPOConfig refuses these settings: num_generations=3 must" in second


@pytest.mark.parametrize("name", ["pp0", "PPO", "reinforc", "grpoo"])
def test_a_misspelt_trainer_is_answered_with_the_nearest(write, name):
    (problem,) = problems_of(write(GOOD), [f"trainer={name}"])
    assert f"there is no trainer {name!r}; did you mean" in problem


def test_missing_sections_are_named_together(write):
    assert problems_of(write("training: {}")) == [
        "the key 'trainer' is missing",
        "the key 'model' is missing",
        "the key 'data' is missing",
    ]


@pytest.mark.parametrize(
    "override, expected",
    [
        ("training.max_steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("trainer.name=ppo", "trainer holds the text 'ppo', not keys"),
        ("training={a: [", "not valid YAML"),
        ("rewards=null", "needs at least one reward"),
        ("trainer=sft", "takes no rewards"),
        ("model={scratch: {hidden_size: 30, heads: 4}}", "hidden_size 30 is no multiple of heads 4"),
        ("model={name: a, scratch: {}}", "give either a name"),
        ("model.labels=[a, b]", "only the trainer 'classifier' has it"),
        ("data.ptx={use: imdbb}", "did you mean 'imdb'?"),
        ("training.reward_weights=[1.0]", "weights stand with the rewards"),
        ("training.cliprange=-1", "cliprange=-1; expected a number above 0"),
        ("quantization={load_in_8bit: true}", "add an adapter"),
        ("evaluation.prompts=0", "expected a positive number"),
        ("evaluation.health={kll: warn}", "there is no check 'kll'"),
        ("evaluation.health={kl: panic}", "expected one of off, warn, stop, rollback"),
        ("evaluation.metrics.judge={reward: sentimnet}", "Did you mean 'sentiment'?"),
        ("evaluation.given_words=4", "only the trainer 'sft' has it"),
        ("evaluation.max_new_tokens=few", "expected a whole number, got the text 'few'"),
        ("model.reference={revision: v1}", "model.reference: the section needs the setting 'name'"),
        ("model.reference={name: a, revison: v1}", "no setting 'revison'; did you mean 'revision'?"),
        ("model.reference={name: a, revision: v1, trust_remote_code: true}", None),
        ("model.reference=some/other", None),
        ("rewards.length.target=null", None),
        ("training.learning_rate=1e-4", None),
        ("data.ptx={use: quickstart, form: text}", None),
    ],
)
def test_overrides_are_checked_like_the_recipe_itself(write, override, expected):
    path = write(GOOD)
    if expected is None:
        load_recipe(path, [override])
    else:
        assert expected in "\n".join(problems_of(path, [override]))


def test_overrides_reach_into_shorthands_and_are_typed(write):
    overrides = [
        "model.dtype=bfloat16",
        "evaluation.prompts=7",
        "training.learning_rate=3e-6",
        "rewards.length.weight=2",
    ]
    recipe = load_recipe(write(GOOD), overrides)
    assert recipe.model == {"name": "some/model", "dtype": "bfloat16"}
    assert recipe.evaluation == {"metrics": {"reward": {}, "diversity": {}}, "prompts": 7}
    assert recipe.training["learning_rate"] == 3e-6
    assert recipe.reward_weights == [2.0]


def test_shorthands_mean_their_long_forms(write):
    short = load_recipe(
        write("{trainer: ppo, model: m, data: quickstart, rewards: [repetition], evaluation: [length]}")
    )
    written_out = (
        "model: {name: m}, data: {use: quickstart}, rewards: {repetition: }, evaluation: {metrics: {length: }}"
    )
    long = load_recipe(write(f"{{trainer: ppo, {written_out}}}"))
    assert short.to_dict() == long.to_dict()


def test_the_resolved_recipe_reads_back_as_itself(write, tmp_path):
    recipe = load_recipe(write(GOOD), ["training.seed=7", "evaluation.prompts=3"])
    again = load_recipe(write(recipe.to_yaml("where it came from\n  and more"), "resolved.yaml"))
    assert again.to_dict() == recipe.to_dict()
    assert again.to_yaml() == recipe.to_yaml()


def test_the_runs_folder_follows_the_recipes_place(write, tmp_path):
    (tmp_path / "recipes" / "deep").mkdir(parents=True)
    recipe = load_recipe(write(GOOD, "recipes/deep/one.yaml"))
    assert recipe.output_dir.as_posix() == "runs/deep/one"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("trainer: ppo\ntrainer: sft\n", "the key 'trainer' stands twice"),
        ("trainer: [ppo", "not valid YAML: line"),
        ("- ppo\n", "this file holds a list"),
        ("", "this file holds nothing"),
        ("trainer: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe_are_refused(write, text, expected):
    (problem,) = problems_of(write(text))
    assert expected in problem


def test_a_missing_file_names_its_neighbours(write, tmp_path):
    write(GOOD, "near.yaml")
    (problem,) = problems_of(tmp_path / "nera.yaml")
    assert "there is no file" in problem and "near.yaml" in problem


@pytest.mark.parametrize("text, value", [("1e-5", 1e-5), ("5e-6", 5e-6), ("2E3", 2000.0), (".5", 0.5), ("1_000", 1000)])
def test_numbers_are_numbers(text, value):
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "1e", "e5", "2024-01-01", "0x1f", "1:30"])
def test_words_stay_words(word):
    assert parse_yaml(word) == word


# PyYAML's writer loses control characters
TEXT = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufeff")
) | st.sampled_from(["1e-5", "no", "~", "true", "1_0", ".5", "-", "", "null", ".inf", "007"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    )
)
def test_whatever_is_written_out_is_read_back(value):
    """A text that looks like a number, a boolean or nothing comes back as text."""
    assert parse_yaml(dump_yaml(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_spelling_of_a_float_survives(value):
    assert parse_yaml(repr(value)) == value
    assert math.isclose(parse_yaml(f"{value:e}"), value, rel_tol=1e-6, abs_tol=5e-324)


def test_an_override_may_be_what_a_type_check_refuses():
    content = {"training": {"a": 1}}
    assert apply_overrides(content, ["training.a=[1, 2]", "new.deep.key=x=y"]) == []
    assert content == {"training": {"a": [1, 2]}, "new": {"deep": {"key": "x=y"}}}


def test_did_you_mean_offers_the_list_only_where_it_is_short():
    assert did_you_mean("qqq", [f"name{i}" for i in range(50)]) == ""
    assert did_you_mean("nam7", [f"name{i}" for i in range(50)]).startswith("; did you mean 'name")


@pytest.mark.parametrize(
    "value, annotation, fits",
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1, bool, False),
        ("a", str | None, True),
        (None, str | None, True),
        (None, int, False),
        ([1, 2], list[int], True),
        ([1, "a"], list[int], False),
        ({"a": 1}, dict | str | None, True),
        ({"a": 1}, int | float, False),
    ],
)
def test_misfit_follows_the_annotation(value, annotation, fits):
    assert (misfit(value, annotation) is None) is fits


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_kind_imports(name):
    kind = TRAINERS[name]
    assert kind.trainer_class().__name__.endswith("Trainer")
    assert kind.config_class()(output_dir="unused", use_cpu=True, bf16=False).output_dir == "unused"


def test_code_in_files_is_refused_on_request(write, tmp_path):
    (tmp_path / "mine.py").write_text("def short(completions, **columns):\n    return [-len(c) for c in completions]\n")
    recipe = GOOD.replace("length: {weight: 0.5, target: 20}", f"short: {{use: '{tmp_path}/mine.py:short'}}")
    assert load_recipe(write(recipe)).rewards["short"]["use"].endswith("mine.py:short")
    (problem,) = problems_of(write(recipe), allow_code=False)
    assert "is refused" in problem and "--no-code" in problem


def test_rewards_inside_rewards_are_checked_with_the_others_and_in_the_same_words(write, tmp_path):
    path = write("""
trainer: ppo
model: some/model
data: {use: quickstart}
rewards:
  steady: {use: whiten, reward: {use: repetition, ngramm: 2}}
  lenght: {}
  sum: {use: weighted_sum, rewards: [repetition, lenght, {use: clip, low: 0, reward: {use: nope}}], weights: [1, 1, 1]}
  bare: {use: clip}
evaluation: {metrics: {judge: {reward: weighted_sum, rewards: [{use: squash}]}}}
""")
    inner, outer, listed, deepest, bare, metric = problems_of(path)
    assert inner.startswith("rewards.steady.reward: reward 'repetition' has no ") and "'ngramm'" in inner
    assert outer.removeprefix("rewards.lenght: ") == listed.removeprefix("rewards.sum.rewards[1]: ")
    assert "no reward is called 'lenght'. Did you mean 'length'?" in outer
    assert deepest.startswith("rewards.sum.rewards[2].reward: no reward is called 'nope'.")
    assert bare.startswith("rewards.bare: reward 'clip' needs the ")
    assert metric.startswith("evaluation.judge.rewards[0]: reward 'squash' needs the ")


def test_code_is_refused_inside_compositions_too(write, tmp_path):
    path = write(GOOD.replace("target: 20", f"use: clip, low: 0, reward: '{tmp_path}/mine.py:short'"))
    (problem,) = problems_of(path, allow_code=False)
    assert problem.startswith("rewards.length.reward: ") and "is refused" in problem


@pytest.mark.parametrize(
    "override",
    [
        "model.trust_remote_code",
        "model.reference.trust_remote_code",
        "training.trust_remote_code",
        "training.model_init_kwargs.trust_remote_code",
        "rewards.kind.reward.trust_remote_code",
        "evaluation.metrics.judge.trust_remote_code",
    ],
)
def test_code_of_checkpoints_is_refused_wherever_a_recipe_trusts_it(write, override):
    inner = "{use: sentiment, model: some/model}"
    text = GOOD.replace("some/model", "{name: some/model, reference: other/model}")
    text = text.replace("rewards:", f"rewards:\n  kind: {{use: clip, low: 0, reward: {inner}}}")
    path = write(text.replace("[reward, diversity]", "{metrics: {judge: {reward: sentiment, model: some/model}}}"))
    load_recipe(path, allow_code=False)
    problems = problems_of(path, [f"{override}=true"], allow_code=False)
    assert f"{override}: refused: it runs the Python code that a checkpoint brings along, and --no-code" in problems[-1]
