"""How likely a language model finds the completions: fluency, by the judgement of a model that was not trained."""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.decoding.prompts import encode_prompts, pad_left, pad_right, split_ids
from alignkit.errors import ConfigError
from alignkit.metrics.text_metric import TextMetric
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.models.scoring import add_scoring, score_completions
from alignkit.text import Text, completion_text, is_conversational

Pair = tuple[list[int], list[int]]


class PerplexityMetric(TextMetric):
    """Perplexity per token of the completions, given their prompts, under a language model.

    Key: `<name>`, exp of the mean negative log-likelihood over all completion tokens together. The text is tokenised
    anew with the model's own tokenizer; what a completion adds to the prompt is scored, without an end token. Empty
    completions have nothing to score; if all are empty the figure is nan.

    Args:
        model: causal LM or encoder-decoder; a folder or hub id is loaded when it is first needed.
        processing_class: its tokenizer; loaded from the model's folder where it is not given.
        name: for the key.
        batch_size: texts scored at a time.
        max_length: tokens of context; by default what the model allows. Long prompts lose their beginning.
    """

    def __init__(
        self,
        model: str | os.PathLike | PreTrainedModel | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        name: str = "perplexity",
        batch_size: int = 16,
        max_length: int | None = None,
    ):
        super().__init__()
        self.model = model
        self.processing_class = processing_class
        self.key = name
        self.batch_size = batch_size
        self.max_length = max_length

    def _compute(  # type: ignore[override]
        self,
        predictions: Sequence[str],
        prompts: Sequence[Text] | None = None,
    ) -> dict[str, float]:
        model, tokenizer = self._loaded()
        given = list(prompts) if prompts is not None else [""] * len(predictions)
        pairs = [self._encoded(tokenizer, model, p, t) for p, t in zip(given, predictions, strict=True)]
        pairs = sorted((pair for pair in pairs if pair[1]), key=lambda pair: len(pair[0]) + len(pair[1]))
        total, count = 0.0, 0
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for start in range(0, len(pairs), self.batch_size):
                batch = pairs[start : start + self.batch_size]
                prompt_part = pad_left([prompt for prompt, _ in batch], 0, model.device)
                completion_part = pad_right([completion for _, completion in batch], 0, model.device)
                scores = score_completions(model, *prompt_part, *completion_part)
                total -= float(scores["log_probs"].double().sum())
                count += int(completion_part[1].sum())
        model.train(was_training)
        return {self.key: _exp(total / count) if count else math.nan}

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self.model is None:
            raise ConfigError(
                "the metric 'perplexity' has no language model to ask; give it one: "
                "PerplexityMetric(model='path/to/model'), or `perplexity: {model: path/to/model}` in a recipe"
            )
        model = self.model
        if isinstance(model, str | os.PathLike):
            self.processing_class = self.processing_class or load_tokenizer(model)
            self.model = model = load_causal_or_seq2seq(model)
        tokenizer = self.processing_class or load_tokenizer(model.name_or_path)
        self.processing_class = tokenizer
        add_scoring(model)
        return model, tokenizer

    def _encoded(self, tokenizer: Any, model: PreTrainedModel, prompt: Text, text: str) -> Pair:
        """Token ids of prompt and completion, cut to the context; at least one token comes before a completion."""
        if is_conversational(prompt):
            before = encode_prompts(tokenizer, [prompt])[0]
            after = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            given = completion_text(prompt)
            before, after = split_ids(tokenizer, given + text, len(given), apart=model.config.is_encoder_decoder)
        if not before:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            before = [start if start is not None else tokenizer.pad_token_id]
        limit = self.max_length or getattr(model.config, "max_position_embeddings", None)
        if limit is None:
            return before, after
        if model.config.is_encoder_decoder:
            return before[-limit:], after[:limit]
        after = after[: limit - 1]
        return before[-(limit - len(after)) :], after


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf
