"""Rows of `alignkit generate --decoder mcts` and `das`: of each prompt what the search found, and a plain sample of the
same model beside it."""

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.decoding.choosing import CHOOSERS
from alignkit.decoding.das import DAS
from alignkit.decoding.mcts import MCTS
from alignkit.decoding.prompts import behind, decode_completions, encode_prompts, pad_left
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import AlignkitError, ConfigError
from alignkit.held_out import Row
from alignkit.run.beside import Chosen, generated, rows_beside
from alignkit.text import Text, is_conversational


def build_chooser(decoder: str, reward: Any, processing_class: Any, settings: dict[str, Any]) -> Any:
    """The decoder of a name that chooses by a reward.

    Raises:
        AlignkitError: a setting that is out of its range.
    """
    try:
        return CHOOSERS[decoder](reward, processing_class, **settings)
    except ConfigError as error:
        raise AlignkitError(f"--decoder {decoder}: {error}") from error


def search_rows(
    model: Any,
    processing_class: PreTrainedTokenizerBase,
    examples: list[dict[str, Any]],
    *,
    generation_config: GenerationConfig,
    search: MCTS | DAS,
    reward_funcs: Sequence[Any],
    batch_size: int = 32,
    seed: int = 1234,
) -> list[Row]:
    """Complete each example's `prompt` by the search, and by plain sampling. The random state is left as it was.

    Args:
        model: a causal LM or an encoder-decoder.
        processing_class: its tokenizer.
        examples: rows with a `prompt`; the other columns reach the rewards.
        generation_config: how to sample, see `alignkit.decoding.generation.generation_config_for`.
        search: what completes.
        reward_funcs: rewards whose scores are told.
        batch_size: prompts completed at a time.
        seed: of what is drawn.

    Returns:
        rows of `rows_beside`, the plain sample under `sample`; with `log_density` where the search samples.
    """

    def choose(prompts: list[Text], columns: dict[str, list[Any]]) -> Chosen:
        pad, device = generation_config.pad_token_id, next(model.parameters()).device
        drawn = SamplingDecoder()(
            model, *pad_left(encode_prompts(processing_class, prompts), pad, device), generation_config
        )
        found = generated(model, processing_class, prompts, columns, generation_config, search)
        plain = decode_completions(processing_class, drawn.ids(), is_conversational(prompts[0]), behind(model, prompts))
        densities = [] if found.log_density is None else found.log_density.tolist()
        more = [{"log_density": density} for density in densities]
        return Chosen(found.completions, found.completion_ids, plain, drawn.ids(), more)

    return rows_beside(
        model, examples, choose, beside="sample", reward_funcs=reward_funcs, batch_size=batch_size, seed=seed
    )
