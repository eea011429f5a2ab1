"""The model that a recipe names or describes, with its tokenizer."""

from typing import Any

from datasets import DatasetDict

from alignkit.errors import ModelError
from alignkit.models.from_scratch import build_causal_lm
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.locating import resolve_model
from alignkit.recipe import Recipe
from alignkit.text import completion_text, joined_text

_OPTIONS = ("dtype", "attn_implementation", "revision", "trust_remote_code")


def loading_options(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says about loading, for `from_pretrained`."""
    return {key: recipe.model[key] for key in _OPTIONS if key in recipe.model}


def load_generator(recipe: Recipe, data: DatasetDict) -> tuple[Any, Any]:
    """The language model of a recipe and its tokenizer; a model from scratch learns its tokenizer from the data."""
    if "scratch" in recipe.model:
        return build_causal_lm(recipe.model["scratch"], _texts(data))
    options = loading_options(recipe)
    quantization = quantization_config(recipe)
    if quantization is not None:
        options["quantization_config"] = quantization
    trusted = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    return load_causal_or_seq2seq(recipe.model["name"], **options), load_tokenizer(recipe.model["name"], **trusted)


def quantization_config(recipe: Recipe) -> Any:
    """BitsAndBytesConfig, or None."""
    if recipe.quantization is None:
        return None
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
        trusted = recipe.model.get("trust_remote_code", False)
        config = AutoConfig.from_pretrained(resolve_model(recipe.model["name"]), trust_remote_code=trusted)
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
