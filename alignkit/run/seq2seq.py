"""An encoder-decoder, trained on prompts and references by transformers' Seq2SeqTrainer: what a policy starts from."""

import math
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from alignkit.decoding.prompts import encode_prompts, pad_right
from alignkit.errors import DataError, ModelError
from alignkit.models.adapters import TrainablePrecision, check_adapter
from alignkit.recipe import Recipe
from alignkit.recipe.evaluation_checks import COMPLETION_DEFAULTS
from alignkit.run.ingredients import Ingredients
from alignkit.run.language_model import judged_completions
from alignkit.run.models import adapter_config, load_generator
from alignkit.text import completion_text
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints

_NOTHING = -100  # a label that nothing is learned from


class Seq2SeqJob:
    """Maximum likelihood of references given prompts (Eq. 6 of Shin et al. 2019), and of the prompt's emotion where the
    model has a head for it (MultiSeq).

    Args:
        recipe: with trainer `seq2seq`.
        args: its config.
        found: data and metrics; the data have `prompt`, `reference` and maybe `emotion`.
        callbacks: for the trainer.
    """

    def __init__(self, recipe: Recipe, args: Seq2SeqTrainingArguments, found: Ingredients, callbacks: list[Any]):
        self.found = found
        self.settings = {**COMPLETION_DEFAULTS, **recipe.evaluation}
        _check_columns(found.data)
        self.model, self.tokenizer = load_generator(recipe, found.data)
        if not self.model.config.is_encoder_decoder:
            raise ModelError(
                f"the trainer seq2seq trains encoder-decoders, and {type(self.model).__name__} is none; "
                "use the trainer sft, or name an encoder-decoder (scratch: {architecture: gru} for a new one)"
            )
        adapter = adapter_config(recipe)
        check_adapter(self.model, adapter)
        precision = TrainablePrecision(self.model)
        if adapter is not None:
            from peft import get_peft_model

            self.model = get_peft_model(self.model, adapter)
        precision.restore(self.model)
        args.remove_unused_columns = False
        args.label_names = ["labels"]
        validation = found.data["validation"]
        self.trainer = with_whole_checkpoints(Seq2SeqTrainer)(
            model=self.model,
            args=args,
            train_dataset=self._encode(found.data["train"], with_emotions=True),
            # without emotions the loss on held-out text is the likelihood alone
            eval_dataset=self._encode(validation, with_emotions=False),
            data_collator=self._collate,
            processing_class=self.tokenizer,
            callbacks=callbacks,
        )

    def _encode(self, part: Dataset, with_emotions: bool) -> Dataset:
        """`input_ids` of the prompts, cut on the left, and `labels` of the references with an end token."""
        limit = self.tokenizer.model_max_length
        prompts = [ids[-limit:] for ids in encode_prompts(self.tokenizer, list(part["prompt"]))]
        replies = [completion_text(reply) for reply in part["reference"]]
        end = [self.tokenizer.eos_token_id]
        labels = [
            (list(ids) + end)[:limit] for ids in self.tokenizer(text=replies, add_special_tokens=False)["input_ids"]
        ]
        # `length` is what the host's group_by_length goes by: of both sides, since both cost
        lengths = [len(prompt) + len(reply) for prompt, reply in zip(prompts, labels, strict=True)]
        columns: dict[str, list[Any]] = {"input_ids": prompts, "labels": labels, "length": lengths}
        known = list(getattr(self.model.config, "emotions", ()))
        if with_emotions and known:
            places = {word: place for place, word in enumerate(known)}
            columns["emotion_labels"] = [places.get(word, _NOTHING) for word in part["emotion"]]
        return Dataset.from_dict(columns)

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad_right([row["input_ids"] for row in rows], self.tokenizer.pad_token_id)
        labels, kept = pad_right([row["labels"] for row in rows], _NOTHING)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(kept == 0, _NOTHING)}
        if "emotion_labels" in rows[0]:
            batch["emotion_labels"] = torch.tensor([row["emotion_labels"] for row in rows])
        return batch

    def sample_at(self, temperature: float) -> None:
        """From now on `evaluate` completes prompts at this temperature."""
        self.settings["temperature"] = temperature

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Loss and perplexity of held-out references, metrics of what the model replies, accuracy of emotions."""
        seen = self.trainer.evaluate()
        figures = {"loss": seen["eval_loss"], "perplexity_of_text": math.exp(min(seen["eval_loss"], 700.0))}
        figures.update(self._emotion_accuracy(self.trainer.accelerator.unwrap_model(self.trainer.model).eval()))
        validation = self.found.data["validation"]
        prompts = list(validation.select(range(min(self.settings["prompts"], len(validation)))))
        found, rows = judged_completions(self.trainer, self.tokenizer, prompts, self.settings, self.found)
        return {**figures, **found}, rows

    @torch.no_grad()
    def _emotion_accuracy(self, model: Any) -> dict[str, float]:
        """Share of held-out prompts whose emotion is known and is the one that the head names."""
        known = list(getattr(model.config, "emotions", ()))
        if not known:
            return {}
        part = self.found.data["validation"].filter(lambda row: row["emotion"] in known, load_from_cache_file=False)
        right = 0
        size = self.settings.get("batch_size", 32)
        for start in range(0, len(part), size):
            batch = part[start : start + size]
            ids, mask = pad_right(
                encode_prompts(self.tokenizer, batch["prompt"]), self.tokenizer.pad_token_id, model.device
            )
            said = model.emotion_head(model.get_encoder()(ids, mask).final_state).argmax(-1).tolist()
            right += sum(known[place] == word for place, word in zip(said, batch["emotion"], strict=True))
        return {"emotion_accuracy": right / len(part)} if len(part) else {}


def _check_columns(data: DatasetDict) -> None:
    for name, part in data.items():
        missing = [column for column in ("prompt", "reference") if column not in part.column_names]
        if missing:
            raise DataError(
                f"seq2seq learns from prompt and reference; {name} lacks {', '.join(missing)} and has: "
                f"{', '.join(part.column_names)}. Rename columns (data: {{use: files, columns: ...}})"
            )
