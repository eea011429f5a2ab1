"""Rows of `alignkit generate --decoder best_of_n` and `resample`: of each prompt the one that was chosen, and the
first that was drawn beside it."""

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.decoding.best_of_n import BestOfN
from alignkit.held_out import Row
from alignkit.run.beside import Chosen, generated, rows_beside
from alignkit.text import Text


def best_of_n_rows(
    model: Any,
    processing_class: PreTrainedTokenizerBase,
    examples: list[dict[str, Any]],
    *,
    generation_config: GenerationConfig,
    decoder: BestOfN,
    reward_funcs: Sequence[Any],
    batch_size: int = 32,
    seed: int = 1234,
) -> list[Row]:
    """Complete each example's `prompt` n times and keep the chosen one. The random state is left as it was.

    Args:
        model: a causal LM or an encoder-decoder.
        processing_class: its tokenizer.
        examples: rows with a `prompt`; the other columns reach the rewards.
        generation_config: how to sample, see `alignkit.decoding.generation.generation_config_for`.
        decoder: what draws and chooses.
        reward_funcs: rewards whose scores are told.
        batch_size: prompts completed at a time, n samples each.
        seed: of the sampling.

    Returns:
        a row per example: `prompt`, `completion`, `rewards` (name -> score or None), `length` (tokens), `columns`, and
        `first`: the `completion` and `rewards` of the first sample, what plain sampling would have said.
    """

    def choose(prompts: list[Text], columns: dict[str, list[Any]]) -> Chosen:
        made = generated(model, processing_class, prompts, columns, generation_config, decoder)
        return Chosen(
            made.completions,
            made.completion_ids,
            [row[0] for row in made.candidate_completions],
            [row[0] for row in made.candidate_completion_ids],
        )

    return rows_beside(
        model, examples, choose, beside="first", reward_funcs=reward_funcs, batch_size=batch_size, seed=seed
    )
