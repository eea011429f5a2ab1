"""A language model, trained on text by TRL's SFTTrainer: what a policy starts from."""

import math
from typing import Any

from datasets import Dataset, DatasetDict
from trl import SFTConfig

from alignkit.decoding.generation import generation_config_for
from alignkit.errors import DataError
from alignkit.evaluation import evaluate_rows
from alignkit.held_out import generate_rows
from alignkit.models.adapters import TrainablePrecision, check_adapter
from alignkit.recipe import Recipe
from alignkit.recipe.evaluation_checks import COMPLETION_DEFAULTS
from alignkit.run.ingredients import Ingredients
from alignkit.run.models import adapter_config, load_generator
from alignkit.trainers.evaluation import summarise
from alignkit.trainers.labelled_positions import LabelledPositionsSFTTrainer
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints


class LanguageModelJob:
    """Supervised fine-tuning, or pretraining of a model from scratch.

    Args:
        recipe: with trainer `sft`.
        args: its config.
        found: data and metrics; the data have `text`, `messages`, or `prompt` with `completion` or `reference`.
        callbacks: for the trainer.
    """

    def __init__(self, recipe: Recipe, args: SFTConfig, found: Ingredients, callbacks: list[Any]):
        self.recipe = recipe
        self.found = found
        data = learnable(found.data)
        self.model, self.tokenizer = load_generator(recipe, data)
        self.settings = {**COMPLETION_DEFAULTS, **recipe.evaluation}
        adapter = adapter_config(recipe)
        check_adapter(self.model, adapter)
        precision = TrainablePrecision(self.model)
        self.prompts = held_out_prompts(found.data["validation"], self.settings["given_words"])
        self.trainer = with_whole_checkpoints(LabelledPositionsSFTTrainer)(
            model=self.model,
            args=args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=self.tokenizer,
            callbacks=callbacks,
            peft_config=adapter,
        )
        precision.restore(self.model)

    def sample_at(self, temperature: float) -> None:
        """From now on `evaluate` completes prompts at this temperature."""
        self.settings["temperature"] = temperature

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Loss and perplexity on held-out text, and metrics of completions of its beginnings."""
        seen = self.trainer.evaluate()
        figures = {"loss": seen["eval_loss"], "perplexity_of_text": math.exp(min(seen["eval_loss"], 700.0))}
        if "eval_mean_token_accuracy" in seen:
            figures["token_accuracy"] = seen["eval_mean_token_accuracy"]
        found, rows = judged_completions(
            self.trainer, self.tokenizer, self.prompts[: self.settings["prompts"]], self.settings, self.found
        )
        return {**figures, **found}, rows


def judged_completions(
    trainer: Any, tokenizer: Any, prompts: list[dict[str, Any]], settings: dict[str, Any], found: Ingredients
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What a trainer's model makes of held-out prompts: mean length, perplexity of references if asked for, metrics;
    and the rows.

    Args:
        trainer: of transformers or TRL.
        tokenizer: of its model.
        prompts: rows with `prompt`, maybe `reference`, and other columns.
        settings: a recipe's `evaluation` over `COMPLETION_DEFAULTS`.
        found: its metrics and decoder.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    rows = generate_rows(
        model,
        tokenizer,
        prompts,
        generation_config=generation_config_for(
            model, tokenizer, max_new_tokens=settings["max_new_tokens"], temperature=settings.get("temperature", 1.0)
        ),
        with_kl=False,
        decoder=found.decoder(tokenizer),
        batch_size=settings.get("batch_size", 32),
        seed=settings.get("seed", 1234),
        autocast=trainer.accelerator.autocast,
        score_references=settings.get("references", False),
    )
    model.train(was_training)
    figures = summarise(rows, [])
    return {**figures, **evaluate_rows(rows, found.metrics)}, rows


def learnable(data: DatasetDict) -> DatasetDict:
    """The columns that SFTTrainer learns from, and no others; `reference` serves as the completion of a prompt."""
    columns = data["train"].column_names
    if "prompt" in columns and "completion" not in columns and "reference" in columns:
        data = data.rename_column("reference", "completion")
        columns = data["train"].column_names
    for wanted in (["messages"], ["prompt", "completion"], ["text"]):
        if all(column in columns for column in wanted):
            return data.select_columns(wanted)
    raise DataError(
        f"sft learns from text, messages, or prompt with completion or reference; the data have: {', '.join(columns)}"
    )


def held_out_prompts(part: Dataset, given_words: int) -> list[dict[str, Any]]:
    """Rows with `prompt` and `reference`: the data's own with every column, or first words of texts and the rest."""
    if "prompt" in part.column_names:
        other = next((column for column in ("reference", "completion") if column in part.column_names), None)
        return [{**row, "reference": row[other] if other else None} for row in part]
    if "messages" in part.column_names:
        rows = [row["messages"] for row in part]
        return [{"prompt": m[:-1], "reference": m[-1:]} for m in rows if len(m) > 1 and m[-1]["role"] == "assistant"]
    cut = [(text.split(" ")[:given_words], text.split(" ")[given_words:]) for text in part["text"]]
    rows = [{"prompt": " ".join(given), "reference": " " + " ".join(rest)} for given, rest in cut if rest]
    if not rows:
        raise DataError(
            f"none of the {len(cut)} held-out texts has more than {given_words} words, of which the model is given the "
            "first ones to complete; set evaluation.given_words to fewer"
        )
    return rows
