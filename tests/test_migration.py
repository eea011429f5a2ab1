"""The page for those who come from TRL 1.12's PPOTrainer names what there is.

That it leaves out nothing of theirs, `make compat` checks, where their TRL is installed.
"""

import copy
import dataclasses
import inspect
import pickle
import re
from pathlib import Path

import pytest
from datasets import Dataset

from alignkit import OnPolicyConfig, OnPolicyTrainer, PPOConfig, PPOTrainer, ReinforceConfig, ReinforceTrainer
from alignkit.errors import ConfigError, DataError, RecipeError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.trainers.trl_ppo import ARGUMENTS, OLDER_ARGUMENTS, OLDER_SETTINGS, SETTINGS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "migrate-from-trl-ppo.md").read_text(encoding="utf-8")
METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")
GONE = "-"


def table(heading):
    """Rows of the first table under a heading, as lists of cells, without their head."""
    body = re.split(r"\n## ", PAGE.split(f"\n## {heading}\n")[1])[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", body, re.M)[2:]]


def named(cell):
    return re.findall(r"`([^`]+)`", cell)


def settings_here():
    return {name for row in table("Settings") for name in named(row[1])}


def unknown_settings(names):
    return sorted(set(names) - {field.name for field in dataclasses.fields(PPOConfig)})


def test_every_setting_that_it_names_exists():
    assert len(settings_here()) > 20
    assert unknown_settings(settings_here()) == []
    counted = {
        name for row in table("Batches and steps") for part in named(row[1]) for name in re.findall(r"\w+", part)
    }
    assert counted and unknown_settings(counted) == []
    assert unknown_settings({"kl_coef", "num_ppo_epochs"}) == ["num_ppo_epochs"]


def test_every_argument_that_it_names_exists():
    ours = {name for cls in PPOTrainer.__mro__ for name in inspect.signature(cls.__init__).parameters}
    rows = table("Arguments")
    assert len(rows) == 12
    assert sorted({name for row in rows for name in named(row[1])} - ours) == []


def test_every_figure_that_it_names_is_one_of_ours():
    listed = METRICS.split("<!-- metrics table -->\n")[1].split("\n\n")[0]
    keys = {name for line in listed.splitlines() for name in named(line.split("|")[1])}
    rows = table("Logged figures")
    assert len(rows) == 17
    assert sorted({name for row in rows for name in named(row[1])} - keys) == []


@pytest.mark.parametrize("heading", ["Settings", "Arguments", "Older names", "Logged figures"])
def test_every_row_says_where_it_went_or_that_it_is_gone(heading):
    for theirs, ours, change in table(heading):
        assert theirs and change
        assert named(ours) or ours == GONE, theirs
        if ours == GONE and heading != "Logged figures":
            assert change.startswith("gone"), theirs
        if change == "same" and heading != "Logged figures":
            assert theirs == ours


def plain(cell):
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", cell).replace("`", "")


def missing_here(heading, ours):
    """Name of theirs that ours does not have -> where it went and what changed, by the page."""
    rows = [(name, row) for row in table(heading) for name in named(row[0]) if name not in ours]
    return {name: (tuple(named(here)), plain(change)) for name, (_, here, change) in rows}


def test_the_page_and_the_errors_say_the_same_of_what_is_gone():
    fields = {field.name for field in dataclasses.fields(PPOConfig)}
    assert missing_here("Settings", fields) == SETTINGS
    assert missing_here("Arguments", inspect.signature(OnPolicyTrainer).parameters) == ARGUMENTS
    assert len(SETTINGS) > 15 and not fields & (set(SETTINGS) | set(OLDER_SETTINGS))
    assert missing_here("Older names", fields) == {**OLDER_SETTINGS, **OLDER_ARGUMENTS}


@pytest.mark.parametrize("name", [*SETTINGS, *OLDER_SETTINGS])
def test_a_setting_of_theirs_is_refused_with_where_it_went(name, tmp_path):
    with pytest.raises(ConfigError) as refused:
        PPOConfig(output_dir=str(tmp_path), **{name: 2})
    said = str(refused.value)
    here, change = {**SETTINGS, **OLDER_SETTINGS}[name]
    assert said.startswith(f"PPOConfig has no setting {name!r}; ") and "docs/migrate-from-trl-ppo.md" in said
    assert all(setting in said for setting in here) and change.removeprefix("gone: ") in said
    # a recipe, whose `training` is this config, says the same
    (tmp_path / "ppo.yaml").write_text(
        f"trainer: ppo\nmodel: gpt2\ndata: quickstart\nrewards: [repetition]\ntraining: {{{name}: 2}}\n"
    )
    with pytest.raises(RecipeError) as refused:
        load_recipe(tmp_path / "ppo.yaml")
    assert refused.value.problems == [f"training: {said}"]


@pytest.mark.parametrize("name", [*ARGUMENTS, *OLDER_ARGUMENTS])
def test_an_argument_of_theirs_is_refused_with_where_it_went(name, tmp_path):
    with pytest.raises(ConfigError) as refused:
        PPOTrainer(model="not-even-looked-for", args=PPOConfig(output_dir=str(tmp_path), use_cpu=True), **{name: None})
    here, change = {**ARGUMENTS, **OLDER_ARGUMENTS}[name]
    assert f"PPOTrainer has no argument {name!r}; " in str(refused.value)
    assert all(word in str(refused.value) for word in (*here, change.removeprefix("gone: ")))


@pytest.mark.parametrize(("trainer", "config"), [(PPOTrainer, PPOConfig), (ReinforceTrainer, ReinforceConfig)])
def test_arguments_in_the_order_of_theirs_are_refused_in_words(trainer, config, tmp_path):
    args, data = config(str(tmp_path), use_cpu=True), Dataset.from_dict({"prompt": ["the film"] * 8})
    for given in ((args, tiny_tokenizer(), tiny_causal_lm(), None), (tiny_causal_lm(), tiny_tokenizer(), args, data)):
        with pytest.raises(ConfigError) as refused:
            trainer(*given)
        said = str(refused.value)
        assert said.startswith(f"{trainer.__name__} was given ({type(given[0]).__name__}, {type(given[1]).__name__}, ")
        assert "the order here is model, reward_funcs, args, train_dataset" in said
        assert "was args, processing_class, model, ref_model, reward_model" in said and "by its name" in said


EVERY_TRAINER = [(OnPolicyTrainer, OnPolicyConfig), (PPOTrainer, PPOConfig), (ReinforceTrainer, ReinforceConfig)]


@pytest.mark.parametrize(("trainer", "config"), EVERY_TRAINER)
def test_every_trainer_advises_what_it_has_itself(trainer, config, tmp_path):
    args = config(str(tmp_path), use_cpu=True)

    def said(**named):
        with pytest.raises(ConfigError) as refused:
            trainer("not-even-looked-for", **named)
        return str(refused.value)

    name = trainer.__name__
    assert f"{name} has no argument 'tokenizer'; use processing_class" in said(args=args, tokenizer=tiny_tokenizer())
    assert f"{name} has no argument 'config'; use args: " in said(config=args)
    assert f" {config.__name__} of ours" in said(config=args)
    about_values = said(args=args, value_model=None)
    assert f"{name} has no argument 'value_model'; " in about_values
    fields = {field.name for field in dataclasses.fields(config)}
    assert ("separate_critic" in about_values) is ("separate_critic" in fields)
    assert ("baseline" in about_values) is ("baseline" in fields)


@pytest.mark.parametrize(("trainer", "config"), EVERY_TRAINER)
def test_a_config_in_the_place_of_the_model_is_refused_though_the_model_is_named(trainer, config, tmp_path):
    with pytest.raises(
        ConfigError, match=rf"^{trainer.__name__} was given \({config.__name__}\) by position; the order "
    ):
        trainer(config(str(tmp_path), use_cpu=True), model=tiny_causal_lm(), train_dataset=None)


def test_a_trainer_of_your_own_may_have_arguments_of_its_own():
    class TakesOut(PPOTrainer):
        def __init__(self, *given, **named):
            self.taken = named.pop("config"), given

    class BeginsOtherwise(ReinforceTrainer):
        def __init__(self, settings, extra=None):
            self.taken = settings, extra

    args = ReinforceConfig("unused", use_cpu=True)
    assert TakesOut("a model", config=3).taken == (3, ("a model",))
    assert BeginsOtherwise(args, extra=3).taken == (args, 3)
    with pytest.raises(ConfigError, match=r"TakesOut was given .* by position"):
        TakesOut(args, config=3)


def test_prompts_that_are_tokenised_already_are_refused_with_how_to_give_them(tmp_path):
    tokenizer = tiny_tokenizer()
    data = Dataset.from_dict({"prompt": ["the film was"] * 8})
    theirs = data.map(lambda row: tokenizer(row["prompt"]), remove_columns=data.column_names)
    with pytest.raises(DataError) as refused:
        PPOTrainer("not-even-looked-for", len, PPOConfig(str(tmp_path), use_cpu=True), theirs)
    said = str(refused.value)
    assert "train_dataset has input_ids and no column 'prompt'" in said
    advised = said[said.index("dataset.map(") : said.rindex(")") + 1]
    back = eval(advised, {"dataset": theirs, "tokenizer": tokenizer})
    assert back.column_names == ["prompt"] and back["prompt"][0] == "the film was"


def test_all_that_is_gone_is_named_at_once_and_what_is_misspelt_too(tmp_path):
    with pytest.raises(ConfigError) as refused:
        PPOConfig(total_episodes=32, num_ppo_epochs=4, learning_rat=1e-5, no_such_thing_at_all=1)
    said = str(refused.value)
    assert "use max_steps, num_train_epochs" in said and "use num_iterations" in said
    assert "has no setting 'learning_rat'; did you mean 'learning_rate'?" in said and "'no_such_thing_at_all'" in said
    with pytest.raises(ConfigError, match="'ptx_datset'; did you mean 'ptx_dataset'"):
        PPOTrainer("not-even-looked-for", args=PPOConfig(output_dir=str(tmp_path), use_cpu=True), ptx_datset=None)
    with pytest.raises(ConfigError, match="ReinforceConfig has no setting 'num_ppo_epochs'"):
        ReinforceConfig(num_ppo_epochs=4)


def test_a_config_is_still_copied_pickled_and_shown_as_any_other(tmp_path):
    config = PPOConfig(output_dir=str(tmp_path), use_cpu=True, kl_coef=0.3)
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(other) is PPOConfig and other.kl_coef == 0.3 and other.output_dir == str(tmp_path)
    for kind in (OnPolicyConfig, PPOConfig, ReinforceConfig):
        assert "kl_coef" in inspect.signature(kind).parameters
