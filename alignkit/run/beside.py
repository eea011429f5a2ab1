"""Rows of decoders that choose: what was chosen for each prompt, and a plain sample of the same model beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.decoding.prompts import encode_prompts, pad_left
from alignkit.decoding.proposal import found_by
from alignkit.held_out import Row
from alignkit.reward import call_reward, in_evaluation, scalar_score, unique_names
from alignkit.text import Text


@dataclass
class Chosen:
    """What became of B prompts.

    Attributes:
        completions, completion_ids: what the decoder chose, B each, and its token ids.
        plain, plain_ids: the same of plain samples.
        more: B mappings, what else a row shall hold.
    """

    completions: list[Text]
    completion_ids: list[list[int]]
    plain: list[Text]
    plain_ids: list[list[int]]
    more: list[dict[str, Any]] = field(default_factory=list)


def generated(
    model: Any,
    processing_class: PreTrainedTokenizerBase,
    prompts: list[Text],
    columns: dict[str, list[Any]],
    generation_config: GenerationConfig,
    decoder: Any,
) -> Any:
    """The whole output of a `custom_generate` callable that takes `prompts` and `columns`."""
    ids, mask = pad_left(
        encode_prompts(processing_class, prompts), generation_config.pad_token_id, next(model.parameters()).device
    )
    return found_by(decoder, model, ids, mask, generation_config, prompts, columns)


def rows_beside(
    model: Any,
    examples: list[dict[str, Any]],
    choose: Callable[[list[Text], dict[str, list[Any]]], Chosen],
    *,
    beside: str,
    reward_funcs: Sequence[Any],
    batch_size: int,
    seed: int,
) -> list[Row]:
    """Complete each example's `prompt`, score what was chosen and the plain sample. The random state is left as it was.

    Args:
        model: what completes.
        examples: rows with a `prompt`; the other columns reach the rewards.
        choose: from prompts and columns to completions.
        beside: the key of the plain sample.
        reward_funcs: rewards whose scores are told.
        batch_size: prompts completed at a time.
        seed: of what is drawn.

    Returns:
        a row per example: `prompt`, `completion`, `rewards` (name -> score or None), `length` (tokens), `columns`, what
        `choose` added, and under `beside` the `completion` and `rewards` of the plain sample.
    """
    names = unique_names(reward_funcs)
    device = next(model.parameters()).device
    rows: list[Row] = []
    random_state = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with in_evaluation(reward_funcs), random_state:
        torch.manual_seed(seed)
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            prompts = [example["prompt"] for example in some]
            columns = {key: [example[key] for example in some] for key in some[0] if key != "prompt"}
            made = choose(prompts, columns)
            told, their_ids = [*made.completions, *made.plain], [*made.completion_ids, *made.plain_ids]
            twice = {key: values * 2 for key, values in columns.items()}
            scored = {
                name: call_reward(reward, prompts * 2, told, columns=twice, completion_ids=their_ids, name=name)
                for name, reward in zip(names, reward_funcs, strict=True)
            }
            for i, example in enumerate(some):
                chosen, plain = (
                    {"completion": told[at], "rewards": {name: scalar_score(scored[name][at]) for name in names}}
                    for at in (i, i + len(some))
                )
                rows.append(
                    {
                        "prompt": prompts[i],
                        **chosen,
                        "length": len(their_ids[i]),
                        "columns": {key: example[key] for key in columns},
                        **(made.more[i] if made.more else {}),
                        beside: plain,
                    }
                )
    return rows
