"""Rows of `alignkit generate --decoder mcts` and `das`: of each prompt what the search found, and a plain sample of the
same model beside it."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.decoding.das import DAS
from alignkit.decoding.mcts import MCTS
from alignkit.decoding.prompts import decode_completions, encode_prompts, pad_left, pad_right
from alignkit.decoding.sampling import SamplingDecoder, mask_is_not_forgotten
from alignkit.errors import AlignkitError, ConfigError
from alignkit.held_out import Row
from alignkit.reward import call_reward, in_evaluation, scalar_score, unique_names
from alignkit.text import is_conversational

SEARCHES = {"mcts": MCTS, "das": DAS}
# option of the command line -> the setting, by decoder
SETTINGS = {
    "mcts": (
        *("simulations", "children", "exploration", "value", "backup", "visit_temperature", "policy_share"),
        "leaves_per_wave",
    ),
    "das": ("beams", "candidates", "alpha", "reward_as", "policy_share", "sample"),
}


def search_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the search that the command line names, those that were given.

    Raises:
        AlignkitError: one of another decoder.
    """
    given = {name: getattr(args, name) for names in SETTINGS.values() for name in names if hasattr(args, name)}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    own = SETTINGS.get(args.decoder, ())
    foreign = sorted(set(given) - set(own))
    if foreign:
        homes = [decoder for decoder, names in SETTINGS.items() if foreign[0] in names]
        raise AlignkitError(
            f"--{foreign[0].replace('_', '-')} is for --decoder {' and '.join(homes)}, not for {args.decoder}"
        )
    return given


def build_search(decoder: str, reward: Any, processing_class: Any, settings: dict[str, Any]) -> MCTS | DAS:
    """The search of a name.

    Raises:
        AlignkitError: a setting that is out of its range.
    """
    try:
        return SEARCHES[decoder](reward, processing_class, **settings)
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
        generation_config: how to sample, see `alignkit.decoding.sampling.generation_config_for`.
        search: what completes.
        reward_funcs: rewards whose scores are told.
        batch_size: prompts completed at a time.
        seed: of what is drawn.

    Returns:
        a row per example: `prompt`, `completion`, `rewards` (name -> score or None), `length` (tokens), `columns`,
        `log_density` where the search samples, and `sample`: the `completion` and `rewards` of plain sampling.
    """
    names = unique_names(reward_funcs)
    device = next(model.parameters()).device
    config = GenerationConfig.from_dict({**generation_config.to_dict(), "return_dict_in_generate": True})
    rows: list[Row] = []
    random_state = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with in_evaluation(reward_funcs), random_state:
        torch.manual_seed(seed)
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            prompts = [example["prompt"] for example in some]
            columns = {key: [example[key] for example in some] for key in some[0] if key != "prompt"}
            encoded = encode_prompts(processing_class, prompts)
            drawn = SamplingDecoder()(model, *pad_left(encoded, config.pad_token_id, device), generation_config)
            pad = pad_right if model.config.is_encoder_decoder else pad_left  # an encoder may count places
            ids, mask = pad(encoded, config.pad_token_id, device)
            with mask_is_not_forgotten(model):
                found = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=config,
                    custom_generate=search,
                    prompts=prompts,
                    columns=columns,
                )
            plain = decode_completions(processing_class, drawn.ids(), is_conversational(prompts[0]))
            told, their_ids = [*found.completions, *plain], [*found.completion_ids, *drawn.ids()]
            twice = {key: values * 2 for key, values in columns.items()}
            scored = {
                name: call_reward(reward, prompts * 2, told, columns=twice, completion_ids=their_ids, name=name)
                for name, reward in zip(names, reward_funcs, strict=True)
            }
            for i, example in enumerate(some):
                best, sample = (
                    {"completion": told[at], "rewards": {name: scalar_score(scored[name][at]) for name in names}}
                    for at in (i, i + len(some))
                )
                density = {} if found.log_density is None else {"log_density": float(found.log_density[i])}
                rows.append(
                    {
                        "prompt": prompts[i],
                        **best,
                        "length": len(their_ids[i]),
                        "columns": {key: example[key] for key in columns},
                        **density,
                        "sample": sample,
                    }
                )
    return rows
