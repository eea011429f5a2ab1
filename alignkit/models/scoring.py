"""How likely a model finds given completions: one of the two places that know what kind of generator it is.

`score_completions` takes any generator: a causal LM reads prompt and completion as one sequence, an encoder-decoder
reads the prompt in its encoder and the completion in its decoder. Positions are passed explicitly: without them a
model with learned positions scores a left-padded prompt differently from how it sampled from it.

The computation runs inside the model's `forward`, because DDP and FSDP synchronise only what comes out of it. Hence
`add_scoring`, which teaches a model's forward one more way of being called.
"""

import copy
import functools
import inspect
import logging
from collections.abc import Iterable
from types import MethodType
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn
from transformers import PreTrainedModel

from alignkit.models.faster import attention_for, fuse_activations
from alignkit.models.head import chunked_log_probs, log_probs_at, log_probs_from_logits, top_log_probs
from alignkit.models.shared_prompts import predicting_states

logger = logging.getLogger(__name__)
HEAD_NAME = "value_head"
CRITIC_NAME = "critic"


class Scores(TypedDict):
    """What scoring gives for B completions of at most T tokens; positions outside the mask hold 0."""

    log_probs: torch.Tensor
    """(B, T) log-probability of each token, in nats."""
    entropy: torch.Tensor | None
    """(B, T) entropy of the distribution it was drawn from, in nats, if it was asked for."""
    values: torch.Tensor | None
    """(B, T) value of the state in which it was chosen, if there is a value head."""
    at: NotRequired[torch.Tensor]
    """(B, T, K) log-probabilities of the tokens that were asked about by `at`."""
    top_ids: NotRequired[torch.Tensor]
    """(B, T, K) the likeliest tokens, if they were asked for by `top`."""
    top_log_probs: NotRequired[torch.Tensor]
    """(B, T, K) their log-probabilities, without a gradient."""


def position_ids_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens only: (B, L) -> (B, L), padding at 0. The same as `generate` uses."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def padded_right(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts (B, P) and their mask as an encoder reads them: each row's padding behind its tokens.

    An encoder with learned positions (BART) counts from the row's first place and takes no `position_ids`.
    """
    order = (~mask.bool()).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def add_scoring(model: PreTrainedModel) -> None:
    """Let `model(..., completion_ids=...)` return `Scores`; every other call is the model's own forward.

    Call it before DDP or FSDP; an adapter's base is what is taught. A second call changes nothing.
    """
    model = _without_adapter(model)
    if getattr(model, "_alignkit_scoring", False):
        return
    original = model.forward

    @functools.wraps(type(model).forward)  # keeps the signature that `generate` validates its arguments against
    def forward(
        self: PreTrainedModel,
        *args: Any,
        completion_ids: torch.Tensor | None = None,
        completion_mask: torch.Tensor | None = None,
        inverse_temperature: torch.Tensor | None = None,
        values: str = "none",
        entropy: bool = True,
        at: torch.Tensor | None = None,
        top: int = 0,
        **kwargs: Any,
    ) -> Any:
        if completion_ids is None:
            return original(*args, **kwargs)
        batch = (kwargs["input_ids"], kwargs["attention_mask"], completion_ids, completion_mask.bool())
        return _score(self, original, *batch, inverse_temperature, values, entropy, at, top)

    fuse_activations(model)
    model._alignkit_scoring = True
    model._alignkit_plain_head = _head_is_plain(model, original)
    model._alignkit_prompts_once = model._alignkit_plain_head and _prompts_can_be_read_once(model)
    model.forward = MethodType(forward, model)


def untaught_copy(model: PreTrainedModel, shared: Iterable[torch.Tensor] = ()) -> PreTrainedModel:
    """A deep copy whose forward is its class's own; `shared` tensors are not copied.

    A forward that was taught something (here, or by TRL) sits on the instance and remembers *that* instance: a copy of
    a model that already served a trainer would go on computing with the original's weights.
    """
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for name in ("forward", "_original_forward", "_alignkit_scoring", "_alignkit_plain_head", "_alignkit_prompts_once"):
        _without_adapter(copied).__dict__.pop(name, None)
    return copied


def _without_adapter(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def score_completions(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    values: str = "none",
    entropy: bool = True,
    at: torch.Tensor | None = None,
    top: int = 0,
) -> Scores:
    """Log-probabilities and, where asked for, entropies and values of completions.

    Args:
        model: a generator prepared by `add_scoring`, wrapped (PEFT, DDP, FSDP) or not.
        prompt_ids: (B, P), padded on the left.
        prompt_mask: (B, P), 1 for real tokens.
        completion_ids: (B, T), padded on the right.
        completion_mask: (B, T), 1 up to and including the end-of-sequence token.
        temperature: divides the logits; a number or one per row (B,).
        values: `none`; `full` runs the value head; `detached` runs it on detached states, so that the trunk learns
            nothing from the value loss; `only` gives the values alone, which spares a separate critic the policy.
        entropy: whether to compute entropies.
        at: (B, T, K) tokens whose log-probabilities are wanted besides, each in the place of the completion's.
        top: so many of the likeliest tokens at each place are wanted besides.
    """
    inverse = torch.as_tensor(1.0 / temperature, dtype=torch.float32, device=prompt_ids.device)
    return model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        inverse_temperature=inverse.expand(len(prompt_ids)),
        values=values,
        entropy=entropy,
        **({} if at is None else {"at": at}),
        **({"top": top} if top else {}),
    )


def _score(
    model: PreTrainedModel,
    original: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    inverse_temperature: torch.Tensor,
    values: str,
    entropy: bool,
    at: torch.Tensor | None = None,
    top: int = 0,
) -> dict[str, Any]:
    inputs = _inputs(model, input_ids, attention_mask, completion_ids, completion_mask)
    keep = completion_ids.shape[1]
    kept = completion_mask.flatten().nonzero().squeeze(-1)

    def at_kept(states: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1).index_select(0, kept)

    def spread(flat: torch.Tensor) -> torch.Tensor:
        # keeps the graph when no position is kept: a batch with nothing to learn from still has a backward
        wide = flat.new_zeros((completion_mask.numel(), *flat.shape[1:])).index_copy(0, kept, flat)
        return wide.view(*completion_mask.shape, *flat.shape[1:])

    if values == "only" and hasattr(model, CRITIC_NAME):
        return {"values": spread(getattr(model, HEAD_NAME)(at_kept(_critic_states(model, inputs, keep))))}
    labels = completion_ids.flatten()[kept]
    inverse = inverse_temperature[:, None].expand_as(completion_ids).flatten()[kept]
    head = model.get_output_embeddings()
    more: dict[str, torch.Tensor] = {}
    if model._alignkit_plain_head and isinstance(head, nn.Linear):  # PEFT may have wrapped it since it was tried
        hidden = _states(model, inputs, input_ids.shape[1], keep)
        states = at_kept(hidden)
        log_probs, entropies = chunked_log_probs(states, head, labels, inverse, entropy)
        if at is not None:
            more["at"] = spread(log_probs_at(states, head, labels, log_probs, at_kept(at), inverse))
        if top:
            more["top_ids"], more["top_log_probs"] = map(spread, top_log_probs(states, head, inverse, top))
    else:
        outputs = original(**inputs, output_hidden_states=True, use_cache=False)
        hidden = _predicting_states(model, _last_hidden(outputs), keep)
        logits = _predicting_states(model, outputs.logits, keep)
        log_probs, entropies = log_probs_from_logits(at_kept(logits), labels, inverse)
        if at is not None or top:
            wide = at_kept(logits).to(torch.promote_types(logits.dtype, torch.float32))
            log_p = (wide * inverse[:, None].to(wide)).log_softmax(-1)
            if at is not None:
                more["at"] = spread(log_p.gather(-1, at_kept(at)))
            if top:
                found = log_p.detach().topk(min(top, log_p.shape[-1]))
                more["top_ids"], more["top_log_probs"] = spread(found.indices), spread(found.values)
    state_values = None
    if values != "none":
        states = _critic_states(model, inputs, keep) if hasattr(model, CRITIC_NAME) else hidden
        states = states.detach() if values == "detached" else states
        state_values = spread(getattr(model, HEAD_NAME)(at_kept(states)))
    seen = spread(entropies) if entropy and entropies is not None else None
    return {"log_probs": spread(log_probs), "entropy": seen, "values": state_values, **more}


def _states(model: PreTrainedModel, inputs: dict[str, torch.Tensor], prompt_length: int, keep: int) -> torch.Tensor:
    backbone = _backbone(model)
    with attention_for(model, inputs["input_ids"].shape[1]):
        if model._alignkit_prompts_once:
            hidden = predicting_states(model, backbone, inputs, prompt_length)
            if hidden is not None:
                return hidden
        return _predicting_states(model, backbone(**inputs, use_cache=False).last_hidden_state, keep)


def _critic_states(model: PreTrainedModel, inputs: dict[str, torch.Tensor], keep: int) -> torch.Tensor:
    critic = getattr(model, CRITIC_NAME)
    with attention_for(critic, inputs["input_ids"].shape[1]):
        # the critic's language-model head is an identity: its "logits" are its hidden states
        return _predicting_states(model, critic(**inputs, use_cache=False).logits, keep)


def _inputs(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    if model.config.is_encoder_decoder:
        labels = completion_ids.masked_fill(~completion_mask, -100)
        ids, read = padded_right(prompt_ids, prompt_mask)
        return {
            "input_ids": ids,
            "attention_mask": read,
            "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=labels),
        }
    # the last token predicts nothing
    mask = torch.cat([prompt_mask.long(), completion_mask[:, :-1].long()], 1)
    inputs = {"input_ids": torch.cat([prompt_ids, completion_ids[:, :-1]], 1), "attention_mask": mask}
    if accepts_position_ids(model):
        inputs["position_ids"] = position_ids_of(mask)
    return inputs


def accepts_position_ids(model: PreTrainedModel) -> bool:
    """Whether the model's forward takes `position_ids`."""
    return "position_ids" in inspect.signature(type(model).forward).parameters


def _predicting_states(model: PreTrainedModel, states: torch.Tensor, keep: int) -> torch.Tensor:
    """The `keep` states that predict the completion's tokens, the last ones in a causal model: (B, keep, ...)."""
    return states if model.config.is_encoder_decoder else states[:, -keep:]


def _last_hidden(outputs: Any) -> torch.Tensor:
    states = getattr(outputs, "decoder_hidden_states", None) or outputs.hidden_states
    return states[-1]


def _backbone(model: PreTrainedModel) -> nn.Module | None:
    # looked up at each call: PEFT and FSDP replace modules after the forward was taught to score
    backbone = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    return None if backbone is model else backbone


@torch.no_grad()
def _head_is_plain(model: PreTrainedModel, original: Any) -> bool:
    """Whether logits are just `head(hidden)`: nothing scales or caps what goes into the head or comes out of it.

    Found out by trying, rather than from a list of architectures and their settings that would grow old. The head's
    output is replaced by numbers so large that a cap shows (Gemma's is 30) whatever the weights are, and must come back
    as the logits; what the head was given must be the backbone's states.
    """
    head, backbone = model.get_output_embeddings(), _backbone(model)
    if model.config.is_encoder_decoder or backbone is None or type(head) is not nn.Linear:
        return False
    seen: dict[str, torch.Tensor] = {}

    def replace(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        large = torch.linspace(-1e4, 1e4, output.shape[-1], device=output.device)
        seen.update(states=args[0], logits=large.to(output.dtype).expand_as(output))
        return seen["logits"]

    was_training = model.training
    model.eval()
    ids = torch.arange(3, device=model.device)[None] % model.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    hook = head.register_forward_hook(replace)
    try:
        logits = original(**inputs).logits
    finally:
        hook.remove()
    states = backbone(**inputs).last_hidden_state
    model.train(was_training)
    return bool(seen) and _alike(logits, seen["logits"]) and _alike(seen["states"], states)


@torch.no_grad()
def _prompts_can_be_read_once(model: PreTrainedModel) -> bool:
    """Whether a prompt's keys and values can stand for it: found out by trying, on a prompt with two completions."""
    was_training = model.training
    model.eval()
    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.tensor([[0, 3, 5, 7, 11], [0, 3, 5, 13, 17]], device=model.device)) % vocabulary
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if accepts_position_ids(model):
        inputs["position_ids"] = position_ids_of(mask)
    backbone: Any = _backbone(model)
    once = predicting_states(model, backbone, inputs, 3)
    whole = None if once is None else backbone(**inputs, use_cache=False).last_hidden_state[:, -3:]
    model.train(was_training)
    alike = once is not None and whole is not None and _alike(once, whole)
    if not alike:
        logger.info("%s reads a prompt again for each of its completions", type(model).__name__)
    return alike


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to rounding in their precision, measured by the largest entry."""
    limit = 1e-3 if other.dtype == torch.float32 else 3e-2
    one, other = one.float(), other.float()
    return one.shape == other.shape and bool((one - other).abs().max() <= limit * other.abs().max())
