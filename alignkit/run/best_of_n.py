"""Rows of `alignkit generate --decoder best_of_n`: of each prompt the completion that its rewards choose, and the first
that was drawn beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.decoding.best_of_n import BestOfN
from alignkit.decoding.prompts import encode_prompts, pad_left, pad_right
from alignkit.held_out import Row
from alignkit.reward import call_reward, in_evaluation, scalar_score, unique_names


def best_of_n_rows(
    model: Any,
    processing_class: PreTrainedTokenizerBase,
    examples: list[dict[str, Any]],
    *,
    generation_config: GenerationConfig,
    chooser: Any,
    reward_funcs: Sequence[Any],
    n: int,
    batch_size: int = 32,
    seed: int = 1234,
) -> list[Row]:
    """Complete each example's `prompt` n times and keep the best. The random state is left as it was.

    Args:
        model: a causal LM or an encoder-decoder.
        processing_class: its tokenizer.
        examples: rows with a `prompt`; the other columns reach the rewards.
        generation_config: how to sample, see `alignkit.decoding.sampling.generation_config_for`.
        chooser: the reward that chooses.
        reward_funcs: rewards whose scores are told.
        n: samples of each prompt.
        batch_size: prompts completed at a time, n samples each.
        seed: of the sampling.

    Returns:
        a row per example: `prompt`, `completion`, `rewards` (name -> score or None), `length` (tokens), `columns`, and
        `first`: the `completion` and `rewards` of the first sample, what plain sampling would have said.
    """
    best = BestOfN(chooser, processing_class, n)
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
            pad = pad_right if model.config.is_encoder_decoder else pad_left  # an encoder may count places
            ids, mask = pad(encode_prompts(processing_class, prompts), config.pad_token_id, device)
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                custom_generate=best,
                prompts=prompts,
                columns=columns,
            )
            places = [*made.chosen.tolist(), *[0] * len(some)]  # what was chosen, then what was drawn first
            told = [made.completions[i % len(some)][place] for i, place in enumerate(places)]
            their_ids = [made.completion_ids[i % len(some)][place] for i, place in enumerate(places)]
            twice = {key: values * 2 for key, values in columns.items()}
            scored = {
                name: call_reward(reward, prompts * 2, told, columns=twice, completion_ids=their_ids, name=name)
                for name, reward in zip(names, reward_funcs, strict=True)
            }
            for i, example in enumerate(some):
                chosen, first = (
                    {"completion": told[at], "rewards": {name: scalar_score(scored[name][at]) for name in names}}
                    for at in (i, i + len(some))
                )
                columns_of_row = {key: example[key] for key in columns}
                rows.append(
                    {
                        "prompt": prompts[i],
                        **chosen,
                        "length": len(their_ids[i]),
                        "columns": columns_of_row,
                        "first": first,
                    }
                )
    return rows
