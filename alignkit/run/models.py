"""The models that a recipe names or describes, and how it says that they are loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from alignkit.errors import ConfigError, ModelError
from alignkit.models.adapters import holds_adapter, let_learn, require_bitsandbytes
from alignkit.models.from_scratch import build_causal_lm, build_seq2seq, generator_kind
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.locating import RUN_MODEL, RUN_REWARDS, resolve_model
from alignkit.recipe import Recipe
from alignkit.text import completion_text, joined_text

# These belong to one repository, and its configuration and tokenizer are loaded with them too.
SOURCE_OPTIONS = ("revision", "trust_remote_code")
_WEIGHT_OPTIONS = ("dtype", "attn_implementation")


def named_models(recipe: Recipe) -> dict[str, str]:
    """Every model that the recipe names: the key where it stands -> name."""
    named = {"model": recipe.model.get("name"), "model.reference": recipe.model.get("reference", {}).get("name")}
    named["data.labeller"] = recipe.data.get("labeller", {}).get("model")
    for where, spec in _with_parts({f"rewards.{name}": spec for name, spec in recipe.rewards.items()}):
        named |= {where: spec.get("model"), f"{where}.tokenizer": spec.get("tokenizer")}
    metrics = recipe.evaluation.get("metrics", {})
    for name, spec in metrics.items():
        judge = spec.get("reward")
        named[f"evaluation.{name}"] = spec.get("model")
        named[f"evaluation.{name}.user"] = spec.get("user")
        named[f"evaluation.{name}.reward"] = judge.get("model") if isinstance(judge, dict) else None
    asked = (recipe.evaluation.get("decoder") or {}).get("reward")
    named["evaluation.decoder.reward"] = asked.get("model") if isinstance(asked, dict) else None
    return {where: name for where, name in named.items() if isinstance(name, str)}


def _with_parts(specs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of each reward with their dotted key, and of those inside it: a composition has some of its own."""
    for where, spec in specs.items():
        yield where, spec
        inside: dict[str, Any] = {}
        for key, value in spec.items():
            listed = enumerate(value) if isinstance(value, list) else ()
            inside |= {f"{where}.{key}": value} | {f"{where}.{key}.{place}": part for place, part in listed}
        yield from _with_parts({key: part for key, part in inside.items() if isinstance(part, dict) and "use" in part})


def recipe_that_writes(model: str) -> str | None:
    """The recipe whose run would leave the model there: `runs/X/model`, `runs/X/rewards/NAME` and `runs/X` come from
    `recipes/X.yaml`."""
    parts = Path(model).parts
    inside = 1 if parts[-1:] == (RUN_MODEL,) else 2 if parts[-2:-1] == (RUN_REWARDS,) else 0
    run = parts[1 : len(parts) - inside]
    if parts[:1] != ("runs",) or not run:
        return None
    recipe = Path("recipes", *run).with_suffix(".yaml")
    return str(recipe) if recipe.is_file() else None


def check_models_here(recipe: Recipe) -> None:
    """Every model that is no id of the hub must be there: those that other recipes write are told all at once.

    Raises:
        ModelError: names the keys, and the recipes that write them.
    """
    missing = []
    for where, name in named_models(recipe).items():
        try:
            resolve_model(name)
        except ModelError as error:
            writer = None if Path(name).expanduser().exists() else recipe_that_writes(name)
            missing.append(f"{where}: {error}{f'; it is written by: alignkit train {writer}' if writer else ''}")
    if missing:
        raise ModelError("; ".join(missing))


def check_starting_models(recipe: Recipe) -> None:
    """A run must not need the model that stands where its own will be: it is moved aside, or written over.

    Raises:
        ConfigError: names the key that holds it.
    """
    own = recipe.output_dir.resolve()
    for where, name in named_models(recipe).items():
        place = Path(name).expanduser().resolve()
        if place in (own, own / RUN_MODEL) or own / RUN_REWARDS in place.parents:
            raise ConfigError(
                f"{where}: {name} is where this run will save its own model; give it another training.output_dir"
            )


def loading_options(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says about loading its model, for `from_pretrained`."""
    return {key: recipe.model[key] for key in (*_WEIGHT_OPTIONS, *SOURCE_OPTIONS) if key in recipe.model}


def reference_options(recipe: Recipe) -> dict[str, Any]:
    """How to load the model of `model.reference`: as it says itself, its weights else as those of the model, quantised
    with them: with an adapter the reference of training is the quantised model, the adapter switched off.

    A revision, and trust in code that comes along, are given to one repository; they do not pass to another.
    """
    own = {key: value for key, value in recipe.model.get("reference", {}).items() if key != "name"}
    quantization = quantization_config(recipe)
    quantised = {} if quantization is None else {"quantization_config": quantization}
    return {**{key: recipe.model[key] for key in _WEIGHT_OPTIONS if key in recipe.model}, **quantised, **own}


def load_generator(recipe: Recipe, data: DatasetDict) -> tuple[Any, Any]:
    """The language model of a recipe and its tokenizer; a model from scratch learns its tokenizer from the data."""
    if "scratch" in recipe.model:
        spec, train = recipe.model["scratch"], data["train"]
        if generator_kind(spec) == "causal":
            return build_causal_lm(spec, _texts(data))
        emotions = sorted({word for word in train["emotion"] if word}) if "emotion" in train.column_names else []
        return build_seq2seq(spec, _texts(data), emotions)
    options = loading_options(recipe)
    quantization = quantization_config(recipe)
    if quantization is not None:
        options["quantization_config"] = quantization
    source = {key: options[key] for key in SOURCE_OPTIONS if key in options}
    model = load_causal_or_seq2seq(recipe.model["name"], **options)
    let_learn(model)
    return model, load_tokenizer(recipe.model["name"], **source)


def quantization_config(recipe: Recipe) -> Any:
    """BitsAndBytesConfig, or None."""
    if recipe.quantization is None:
        return None
    require_bitsandbytes("quantization")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**recipe.quantization)


def adapter_config(recipe: Recipe) -> Any:
    """LoraConfig, or None; its task is that of the model unless the recipe says it."""
    if recipe.adapter is None:
        return None
    from peft import LoraConfig
    from transformers import AutoConfig

    task = "CAUSAL_LM"
    if "name" in recipe.model:
        source = {key: recipe.model[key] for key in SOURCE_OPTIONS if key in recipe.model}
        folder = resolve_model(recipe.model["name"])
        if holds_adapter(folder):
            raise ConfigError(
                f"adapter: {recipe.model['name']} is an adapter already and goes on learning; leave the new one out, "
                "or fold the first into its base before (alignkit merge)"
            )
        config = AutoConfig.from_pretrained(folder, **source)
        task = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else task
    return LoraConfig(**{"task_type": task, **recipe.adapter})


def _texts(data: DatasetDict) -> list[str]:
    part = data["train"]
    columns = part.column_names
    if "text" in columns:
        return list(part["text"])
    if "messages" in columns:
        return [completion_text(messages) for messages in part["messages"]]
    for column in ("completion", "reference"):
        if "prompt" in columns and column in columns:
            return [joined_text(row["prompt"], row[column]) for row in part]
    raise ModelError(
        f"a model from scratch learns its tokenizer from the texts of the data, which have: {', '.join(columns)}; "
        "expected text, messages, or prompt with completion or reference"
    )
