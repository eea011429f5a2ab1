"""Completions of held-out prompts, scored: what every before/after comparison, table and report is made of.

One function for every trainer, ours and TRL's: it takes the model, not the trainer.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.decoding.prompts import behind, decode_completions, encode_prompts, pad_left, pad_right
from alignkit.decoding.sampling import Completions, Decoder, SamplingDecoder
from alignkit.errors import RewardError
from alignkit.models.reference import reference_of
from alignkit.models.scoring import add_scoring, score_completions
from alignkit.reward import call_reward, in_evaluation, scalar_score, unique_names
from alignkit.text import completion_text, is_conversational

Row = dict[str, Any]


def generate_rows(
    model: Any,
    processing_class: PreTrainedTokenizerBase,
    examples: list[dict[str, Any]],
    *,
    generation_config: GenerationConfig,
    reward_funcs: Sequence[Any] = (),
    reward_weights: list[float] | None = None,
    ref_model: Any = None,
    with_kl: bool = True,
    decoder: Decoder | None = None,
    batch_size: int = 32,
    seed: int = 1234,
    autocast: Any = nullcontext,
    chat_template_kwargs: dict[str, Any] | None = None,
    reference_column: str = "reference",
    score_references: bool = False,
) -> list[Row]:
    """Complete each example's `prompt` and say what came of it. The random state is left as it was.

    Args:
        model: the policy; with an adapter and no `ref_model`, the reference is the policy without it.
        processing_class: its tokenizer.
        examples: rows of the data; every column but `prompt` reaches the rewards.
        generation_config: how to sample, see `alignkit.decoding.generation.generation_config_for`.
        reward_funcs: rewards to score with.
        reward_weights: their weights in the row's `reward`; 1 each when None.
        ref_model: the reference for the KL.
        with_kl: whether to score under the reference at all.
        decoder: what completes; plain sampling when None. It gets the prompts and the other columns of the data.
        batch_size: prompts completed at a time.
        seed: of the sampling.
        autocast: context manager to run the models in.
        chat_template_kwargs: for conversational prompts.
        reference_column: column shown as the row's `reference`.
        score_references: whether the model also says how likely the references are, cut to the length that completions
            may have.

    Returns:
        a row per example: `prompt`, `completion`, `rewards` (name -> score or None), `reward` (weighted sum, or
        None), `length` (tokens), `kl` (nats of the whole response, or None), `reference`, `columns`; with
        `score_references` also `reference_nll` (nats of the text, its end token included where that is not cut off, at
        temperature 1; or None), `reference_nll_sampled` (the same at the temperature that completions are sampled
        with, before top-p and its like; None where they are not sampled), `reference_tokens`, and where the decoder
        resamples from no more than a temperature, `reference_nll_resampled` (the same under what it writes, see
        `log_density_ratio`; infinite where that has no weight beside candidates that have some).

    Raises:
        RewardError: a reward that cannot be asked about a completion, or about a reference with `score_references`.
    """
    decoder = decoder or SamplingDecoder()
    names = unique_names(reward_funcs)
    weights = [1.0] * len(names) if reward_weights is None else list(reward_weights)
    device = next(model.parameters()).device
    rows: list[Row] = []
    # lengths sorted: batches without padding to speak of; put back in order at the end
    encoded = encode_prompts(processing_class, [e["prompt"] for e in examples], chat_template_kwargs)
    order = sorted(range(len(examples)), key=lambda i: len(encoded[i]))
    random_state = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with in_evaluation(reward_funcs), random_state, torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = [examples[i] for i in order[start : start + batch_size]]
            ids, mask = pad_left(
                [encoded[i] for i in order[start : start + batch_size]], generation_config.pad_token_id, device
            )
            prompts = [example["prompt"] for example in chosen]
            columns = {key: [e[key] for e in chosen] for key in chosen[0] if key != "prompt"}
            with autocast():
                made = decoder(model, ids, mask, generation_config, prompts=prompts, columns=columns)
                kl = _kl_per_response(model, ref_model, made, generation_config) if with_kl else [None] * len(chosen)
                likely: list[Row] = [{} for _ in chosen]
                if score_references:
                    cut = _reference_ids(processing_class, chosen, reference_column, generation_config)
                    likely = _of_references(model, ids, mask, cut, generation_config)
                    if made.log_density_ratios is not None:
                        _add_resampled(likely, made, model, processing_class, prompts, columns, cut)
            completions = decode_completions(
                processing_class, made.ids(), is_conversational(prompts[0]), behind(model, prompts)
            )
            scored = {
                name: call_reward(func, prompts, completions, columns=columns, completion_ids=made.ids(), name=name)
                for name, func in zip(names, reward_funcs, strict=True)
            }
            for i, example in enumerate(chosen):
                rewards = {name: scalar_score(scored[name][i]) for name in names}
                known = [w * rewards[n] for n, w in zip(names, weights, strict=True) if rewards[n] is not None]
                rows.append(
                    {
                        "prompt": prompts[i],
                        "completion": completions[i],
                        "rewards": rewards,
                        "reward": sum(known) if known else None,
                        "length": int(made.lengths()[i]),
                        "kl": kl[i],
                        "reference": example.get(reference_column),
                        "columns": {key: example[key] for key in columns},
                        **likely[i],
                    }
                )
    in_order: list[Row] = [{}] * len(rows)
    for place, row in zip(order, rows, strict=True):
        in_order[place] = row
    return in_order


def _reference_ids(
    processing_class: PreTrainedTokenizerBase, examples: list[dict[str, Any]], column: str, config: GenerationConfig
) -> list[list[int]]:
    """Each example's reference as the model would have written it, cut to its length; no tokens where there is none."""
    texts = [None if example.get(column) is None else completion_text(example[column]) for example in examples]
    ends = [] if processing_class.eos_token_id is None else [processing_class.eos_token_id]
    encoded = [
        [] if text is None else [*processing_class(text=text, add_special_tokens=False)["input_ids"], *ends]
        for text in texts
    ]
    return [ids[: config.max_new_tokens] for ids in encoded]


def _of_references(
    model: Any,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    cut: list[list[int]],
    config: GenerationConfig,
) -> list[Row]:
    """`reference_nll`, `reference_nll_sampled` and `reference_tokens` of each reference's tokens."""
    if not any(cut):
        return [{"reference_nll": None, "reference_nll_sampled": None, "reference_tokens": 0} for _ in cut]
    ids, mask = pad_right(cut, config.pad_token_id, prompt_ids.device)
    add_scoring(model)

    def nats(temperature: float) -> list[float]:
        scores = score_completions(model, prompt_ids, prompt_mask, ids, mask, temperature=temperature)
        return (-(scores["log_probs"].double() * mask).sum(1)).tolist()

    plain = nats(1.0)
    sampled: Sequence[float | None] = [None] * len(cut)
    if config.do_sample:
        sampled = plain if config.temperature in (None, 1.0) else nats(config.temperature)
    return [
        {
            "reference_nll": plain[i] if own else None,
            "reference_nll_sampled": sampled[i] if own else None,
            "reference_tokens": len(own),
        }
        for i, own in enumerate(cut)
    ]


def _add_resampled(
    likely: list[Row],
    made: Completions,
    model: Any,
    processing_class: PreTrainedTokenizerBase,
    prompts: list[Any],
    columns: dict[str, list[Any]],
    cut: list[list[int]],
) -> None:
    """Adds `reference_nll_resampled` to the rows whose reference's likelihood as sampled is known."""
    assert made.log_density_ratios is not None
    known = [i for i, row in enumerate(likely) if row["reference_nll_sampled"] is not None]
    if not known:
        return
    asked, ids = [prompts[i] for i in known], [cut[i] for i in known]
    texts = decode_completions(processing_class, ids, is_conversational(prompts[0]), behind(model, asked))
    own = {key: [values[i] for i in known] for key, values in columns.items()}
    try:
        ratios = made.log_density_ratios(asked, texts, ids, own, known)
    except RewardError as error:
        raise RewardError(f"asked about held-out references (evaluation.references): {error}") from error
    for i, ratio in zip(known, ratios, strict=True):
        likely[i]["reference_nll_resampled"] = likely[i]["reference_nll_sampled"] - ratio


def _kl_per_response(model: Any, ref_model: Any, made: Any, config: GenerationConfig) -> list[float]:
    """Sum over the response of log p - log q, in nats, at the sampling temperature."""
    temperature = config.temperature if config.do_sample else 1.0
    batch = (made.prompt_ids, made.prompt_mask, made.completion_ids, made.completion_mask)
    log_probs = made.log_probs
    if log_probs is None:
        add_scoring(model)
        log_probs = score_completions(model, *batch, temperature=temperature)["log_probs"]
    with reference_of(model, ref_model) as reference:
        add_scoring(model if ref_model is None else ref_model)
        ref_log_probs = score_completions(reference, *batch, temperature=temperature)["log_probs"]
    return ((log_probs - ref_log_probs) * made.completion_mask).sum(1).tolist()
