"""Plain sampling, the plainest decoder: the second place that knows what kind of generator it has.

A decoder turns prompts into completions and says how likely it made them. It runs inside `generate()` as its
`custom_generate` callable, so that caches, encoders, logits processors and stopping criteria are the host's. Training
takes its completions from a decoder, and keeps the log-probabilities and values seen on the way.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import GenerationConfig, PreTrainedModel, TemperatureLogitsWarper
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from alignkit.decoding.cache import BY_ROW, make_roomy, shared_prompts
from alignkit.errors import ModelError
from alignkit.models.faster import attention_for
from alignkit.models.scoring import padded_right
from alignkit.models.value_head import CRITIC_NAME, HEAD_NAME
from alignkit.text import Text

_BLOCK = 128  # tokens of the vocabulary

LogDensityRatios = Callable[[list[Text], list[Text], list[list[int]], dict[str, list[Any]], list[int]], list[float]]


@dataclass
class Completions:
    """What a decoder gives for B prompts.

    Attributes:
        prompt_ids: (B, P) padded on the left.
        prompt_mask: (B, P).
        completion_ids: (B, T) padded on the right.
        completion_mask: (B, T) 1 up to and including the end-of-sequence token.
        log_probs: (B, T) log-probability of each token under the policy at the sampling temperature, before any
            truncation (top-k, top-p); None if the decoder does not know it.
        values: (B, T) value of the state each token was chosen in; None without a value head.
        log_density: (B,) log-density of the whole completion under the decoder itself, truncation included.
        log_density_ratios: by how many nats the decoder writes given texts likelier than the policy at the sampling
            temperature does; takes a prompt for each text, the texts, their tokens, further columns, and the places of
            these prompts in the batch.
    """

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    log_probs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    log_density: torch.Tensor | None = None
    log_density_ratios: LogDensityRatios | None = None

    def lengths(self) -> torch.Tensor:
        """(B,) tokens of each completion, its end-of-sequence token included."""
        return self.completion_mask.sum(1)

    def ids(self) -> list[list[int]]:
        """The completions' token ids, one list each, end-of-sequence token included and padding left out."""
        return [
            row[keep].tolist()
            for row, keep in zip(self.completion_ids.cpu(), self.completion_mask.bool().cpu(), strict=True)
        ]


class Decoder(Protocol):
    """What completes prompts. `GenerationConfig` says how long and how hot.

    `prompts` and `columns` are what a decoder needs that asks a reward: the prompts as the data have them, and further
    columns of the data, a value for each row. A decoder that asks nobody takes and ignores them.
    """

    def __call__(
        self,
        model: PreTrainedModel,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        generation_config: GenerationConfig,
        *,
        prompts: list[Text] | None = None,
        columns: Mapping[str, list[Any]] | None = None,
        synced_gpus: bool | None = None,
    ) -> Completions: ...


class SamplingDecoder:
    """Sample token by token (greedily if `do_sample` is False), and remember how likely each token was.

    Args:
        with_values: also keep the value head's view of each state; needs a model with one on a shared trunk.
        uniform: (B, T) numbers in [0, 1) to draw by instead of the random state's, one for each row and token: what
            becomes of a row then does not depend on the rows beside it.
    """

    def __init__(self, with_values: bool = False, uniform: torch.Tensor | None = None):
        self.with_values = with_values
        self.uniform = uniform

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        generation_config: GenerationConfig,
        *,
        prompts: list[Text] | None = None,
        columns: Mapping[str, list[Any]] | None = None,
        synced_gpus: bool | None = None,
    ) -> Completions:
        """Complete `prompt_ids` (B, P), padded on the left, with `prompt_mask` (B, P); the texts are not looked at.

        Raises:
            ModelError: values are asked of a model without a value head on its own trunk.
        """
        # `generate` drops the question on its way to a callable, so it is answered here
        loop = self.loop(len(prompt_ids), weights_are_shared(model) if synced_gpus is None else synced_gpus)
        # `Trainer` may have left the model in training mode, with dropout that scoring does not have
        was_training = model.training
        model.eval()
        encoded = model.config.is_encoder_decoder
        ids, mask = padded_right(prompt_ids, prompt_mask) if encoded else (prompt_ids, prompt_mask)
        try:
            with mask_is_not_forgotten(model):
                model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=generation_config,
                    custom_generate=loop,
                )
        finally:
            model.train(was_training)
        ids, mask = loop.drawn()
        values = torch.stack(loop.values, 1) * mask if loop.values else None
        return Completions(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=ids,
            completion_mask=mask,
            log_probs=torch.stack(loop.log_probs, 1) * mask,
            values=values,
            log_density=loop.log_density(mask),
        )

    def loop(self, rows: int, synced_gpus: bool) -> "SamplingLoop":
        """What samples one batch of so many rows."""
        return SamplingLoop(self.with_values, synced_gpus, self.uniform)


class SamplingLoop:
    """The `custom_generate` callable: the sampling loop of `generate`, with a memory. It serves one call.

    Args:
        with_values, uniform: see `SamplingDecoder`.
        synced_gpus: whether rows that have ended go on in the forward until other processes have ended too.
    """

    def __init__(self, with_values: bool, synced_gpus: bool, uniform: torch.Tensor | None):
        self.with_values = with_values
        self.synced_gpus = synced_gpus
        self.uniform = uniform
        self.tokens: list[torch.Tensor] = []
        self.alive: list[torch.Tensor] = []
        self.log_probs: list[torch.Tensor] = []
        self.log_densities: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def drawn(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of the completions (B, T), padded on the right, and their mask, 1 up to and including the end."""
        return torch.stack(self.tokens, 1), torch.stack(self.alive, 1).long()

    def log_density(self, mask: torch.Tensor) -> torch.Tensor:
        """(B,) log-density of each completion, whose tokens `mask` (B, T) says."""
        return (torch.stack(self.log_densities, 1) * mask).sum(1)

    def choose(
        self, input_ids: torch.Tensor, logits: torch.Tensor, logits_processor: Any, generation_config: GenerationConfig
    ) -> torch.Tensor:
        """(B,) the next tokens from (B, V) logits; notes how likely they were."""
        scores = logits_processor(input_ids, logits)
        probabilities = scores.softmax(-1)
        given = None if self.uniform is None else self.uniform[:, len(self.tokens)]
        tokens = draw(probabilities, given) if generation_config.do_sample else scores.argmax(-1)
        at_token = tokens[:, None]
        density = probabilities.gather(-1, at_token).log().squeeze(-1)
        self.log_densities.append(density)
        if generation_config.do_sample and only_tempered(logits_processor):
            self.log_probs.append(density)  # nothing but the temperature lies between policy and decoder
        else:
            tempered = logits / (generation_config.temperature if generation_config.do_sample else 1.0)
            self.log_probs.append(tempered.gather(-1, at_token).squeeze(-1) - tempered.logsumexp(-1))
        return tokens

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        value_head = _value_head(model) if self.with_values else None
        make_roomy(model_kwargs.get("past_key_values"), generation_config.max_length)
        pad = generation_config.pad_token_id
        unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        all_finished = False
        while model._has_unfinished_sequences(all_finished, self.synced_gpus, device=input_ids.device):
            inputs = model.prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=1 if self.tokens and model_kwargs.get("use_cache") else None,
                is_first_iteration=not self.tokens,
                **model_kwargs,
            )
            shared = None if self.tokens else shared_prompts(inputs)
            if shared is not None:
                inputs = {key: value[shared.first] if key in BY_ROW else value for key, value in inputs.items()}
            new = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0  # an encoder-decoder has others
            with attention_for(model, new):
                outputs = model(**inputs, return_dict=True, output_hidden_states=value_head is not None)
            rows = slice(None) if shared is None else shared.copies
            if shared is not None:
                outputs.past_key_values.batch_select_indices(shared.copies)
            model_kwargs = model._update_model_kwargs_for_generation(
                outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
            )
            if self.synced_gpus and all_finished:  # other ranks still sample: keep them company in the forward only
                continue
            logits = outputs.logits[:, -1][rows]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            tokens = self.choose(input_ids, logits, logits_processor, generation_config)
            if value_head is not None:
                states = getattr(outputs, "decoder_hidden_states", None) or outputs.hidden_states
                self.values.append(value_head(states[-1][:, -1][rows]))
            if pad is not None:
                tokens = torch.where(unfinished, tokens, pad)
            self.tokens.append(tokens)
            self.alive.append(unfinished.clone())
            input_ids = torch.cat([input_ids, tokens[:, None]], -1)
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            all_finished = not bool(unfinished.any())
        return input_ids


@contextmanager
def mask_is_not_forgotten(model: nn.Module) -> Iterator[None]:
    """`generate` drops a mask of ones; some models then take the padding of rows that have ended, or a beginning with a
    token that also pads, for padding without a mask, and tell the user to pass one. They do not look here."""
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    for module in inside:
        module.warn_if_padding_and_no_attention_mask = _say_nothing
    try:
        yield
    finally:
        for module in inside:
            module.__dict__.pop(
                "warn_if_padding_and_no_attention_mask", None
            )  # gone already where one ran inside another


def _say_nothing(*arguments: Any) -> None:
    pass


def only_tempered(processors: Iterable[Any]) -> bool:
    """Whether no more than a temperature lies between the policy and what is drawn."""
    return all(isinstance(processor, TemperatureLogitsWarper) for processor in processors)


def draw(probabilities: torch.Tensor, uniform: torch.Tensor | None = None) -> torch.Tensor:
    """Draw an index from each row by inverting its cumulative distribution: one random number a row, not one a token.

    An index of probability 0 is never drawn.

    Args:
        probabilities: (B, V), rows that sum to 1 up to rounding.
        uniform: (B,) the numbers in [0, 1); those of the random state when None.

    Returns:
        (B,) indices.
    """
    # in double precision: in single, the tail of a large vocabulary would be rounded away (a Mac's GPU has no double)
    dtype = torch.float32 if probabilities.device.type == "mps" else torch.float64
    rows, size = probabilities.shape
    # a block of the vocabulary, then a token in it: a running sum over all of it is slow
    blocks = nn.functional.pad(probabilities, (0, -size % _BLOCK)).view(rows, -1, _BLOCK)
    before = blocks.sum(-1, dtype=dtype).cumsum(-1)
    luck = torch.rand((rows, 1), dtype=dtype, device=before.device) if uniform is None else uniform.to(dtype)[:, None]
    at = luck * before[:, -1:]
    block = _first_above(before, at)
    at = at - torch.cat([torch.zeros_like(at), before], 1).gather(1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1).cumsum(-1, dtype=dtype)
    drawn = (block * _BLOCK + _first_above(inside, at)).squeeze(-1)
    return drawn.clamp(max=size - 1)  # where they are NaN; its log-probability says so then


def _first_above(cumulative: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """(B, 1) the first index of each row of `cumulative` (B, N) that is above `at` (B, 1), which never grew by 0."""
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))  # rounding may have brought `at` to the total
    index = torch.searchsorted(cumulative, torch.minimum(at, below_total), right=True)
    return index.clamp(max=cumulative.shape[1] - 1)


def weights_are_shared(model: nn.Module) -> bool:
    """Whether a forward gathers weights from other processes (FSDP, ZeRO-3), so that none may stop sampling before the
    others have finished."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return False
    return is_deepspeed_zero3_enabled() or isinstance(model, FullyShardedDataParallel | FSDPModule)


def _value_head(model: PreTrainedModel) -> nn.Module:
    if not hasattr(model, HEAD_NAME) or hasattr(model, CRITIC_NAME):
        raise ModelError(
            "values can be kept while sampling only from a value head on the policy's own trunk; "
            f"{type(model).__name__} has {'a separate critic' if hasattr(model, CRITIC_NAME) else 'no value head'}"
        )
    return getattr(model, HEAD_NAME)
