"""How to sample from a model: its tokens' ends, and nothing that shapes the distribution unless it was asked for."""

from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignkit.errors import ModelError

# `generate` fills what is left out from the model's own defaults and the host's, top-k 50 among them
_NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
}


def generation_config_for(
    model: PreTrainedModel, processing_class: PreTrainedTokenizerBase, **settings: Any
) -> GenerationConfig:
    """How to sample from `model`: its own end-of-sequence tokens and the tokenizer's, and `settings` on top.

    A `temperature` of 0 takes the likeliest token at every step. What `settings` leave out, or give as None, shapes
    nothing, whatever the model's own `generation_config` would have it be; only what this forbids or forces (as
    `no_repeat_ngram_size`, `forced_bos_token_id`) holds.

    Raises:
        ModelError: the model's own config shapes the distribution by what no setting switches off.
    """
    own = model.generation_config
    if getattr(own, "top_h", None) is not None and settings.get("top_h") is None:
        raise ModelError(
            f"the generation_config of {type(model).__name__} has top_h={own.top_h}, so that samples would not be the "
            "model's; set model.generation_config.top_h = None, or take it out of generation_config.json"
        )
    if settings.get("temperature") == 0:
        settings = {**settings, "do_sample": False, "temperature": 1.0}
    ends = own.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if processing_class.eos_token_id is not None and processing_class.eos_token_id not in ends:
        ends.insert(0, processing_class.eos_token_id)
    pad = processing_class.pad_token_id
    return GenerationConfig(
        **{
            "do_sample": True,
            "eos_token_id": ends or None,
            "pad_token_id": pad if pad is not None else (ends[0] if ends else None),
            "bos_token_id": processing_class.bos_token_id,
            "decoder_start_token_id": getattr(model.config, "decoder_start_token_id", None),
            **_NEUTRAL,
            # where it is given at all, tokens are sorted at every step
            "min_p": 0.0 if own.min_p else None,
            **{name: value for name, value in settings.items() if value is not None},
        },
        disable_compile=True,
    )
