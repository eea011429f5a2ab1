"""Networks that tell people's texts from a model's: three kinds, on a pretrained backbone or from scratch.

Each has one output, the log-odds that a person wrote the text: for every token, read from left to right (`causal`), or
for a whole text (`bidirectional`, `cnn`).
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, get_type_hints

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.errors import ModelError
from alignkit.models.from_scratch import CausalSpec, ClassifierSpec, bert_config, causal_config, spec_problems
from alignkit.models.loading import load_classifier
from alignkit.models.locating import explained, resolve_model
from alignkit.models.text_cnn import TextCNNConfig
from alignkit.settings import argument_problems

DiscriminatorKind = Literal["causal", "bidirectional", "cnn"]
KINDS: tuple[DiscriminatorKind, ...] = ("causal", "bidirectional", "cnn")
LABELS = {0: "person"}
# Rates that networks of transformers keep as numbers and not in a module, such as `attention_dropout` (Llama),
# `attn_dropout` (GPT-BigCode) and `residual_dropout` (StarCoder2). `layerdrop` leaves out layers: another thing.
_RATE = re.compile(r"(?<!layer)drop")
# Where a saved discriminator keeps how it reads texts, in its config.json.
SETTINGS = "discriminator"


@dataclass(frozen=True)
class TextCNNSpec:
    """The size of a new convolutional discriminator; SeqGAN's has more filters (Yu et al. 2017, appendix B).

    Attributes:
        embedding_size: width of the embeddings.
        widths: tokens that a filter spans, one group of filters for each.
        filters: of each group.
        context: longest text, in tokens.
        dropout: before the output layer, in training.
        seed: of the weights.
    """

    embedding_size: int = 64
    widths: tuple[int, ...] | list[int] = (1, 2, 3, 4, 5)
    filters: int = 100
    context: int = 128
    dropout: float = 0.25
    seed: int = 0


def discriminator_spec_problems(spec: Mapping[str, Any], kind: DiscriminatorKind) -> list[str]:
    """What is wrong with the specification of a new discriminator, one sentence each; builds nothing."""
    if "vocab_size" in spec:
        return ["a new discriminator: vocab_size is that of its tokenizer; leave it out"]
    if kind != "cnn":
        return spec_problems(spec, "causal" if kind == "causal" else "classifier")
    owner = "a new text CNN"
    problems = argument_problems(owner, spec, signature(TextCNNSpec).parameters, hints=get_type_hints(TextCNNSpec))
    if problems:
        return problems
    built = TextCNNSpec(**spec)
    for name in ("embedding_size", "filters"):
        if getattr(built, name) < 1:
            problems.append(f"{owner}: {name} must be at least 1, got {getattr(built, name)}")
    if not built.widths or min(built.widths) < 1:
        problems.append(f"{owner}: widths are one number of tokens or more, each at least 1, got {built.widths}")
    if built.context < 2:
        problems.append(f"{owner}: context must be at least 2 tokens, got {built.context}")
    if not 0 <= built.dropout < 1:
        problems.append(f"{owner}: dropout must lie in [0, 1), got {built.dropout}")
    return problems


def build_discriminator(
    spec: Mapping[str, Any], kind: DiscriminatorKind, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A discriminator with random weights for the tokens of a tokenizer, in eval mode.

    Args:
        spec: fields of `CausalSpec` (causal), `ClassifierSpec` (bidirectional) or `TextCNNSpec` (cnn) without
            `vocab_size`; what is left out has its default.
        kind: see the module.
        tokenizer: with a pad token.

    Raises:
        ModelError: a wrong specification.
    """
    problems = discriminator_spec_problems(spec, kind)
    if problems:
        raise ModelError("; ".join(problems))
    config: PretrainedConfig
    built: Any
    if kind == "causal":
        built = CausalSpec(**spec)
        config = causal_config(built, tokenizer)
        config.classifier_dropout = built.dropout
    elif kind == "bidirectional":
        built = ClassifierSpec(**spec)
        config = bert_config(built, tokenizer, LABELS)
    else:
        built = TextCNNSpec(**spec)
        config = TextCNNConfig(
            vocab_size=len(tokenizer),
            embedding_size=built.embedding_size,
            widths=list(built.widths),
            filters=built.filters,
            dropout=built.dropout,
            max_position_embeddings=built.context,
            **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")},
        )
    config.id2label, config.label2id = dict(LABELS), {label: i for i, label in LABELS.items()}
    if config.pad_token_id == config.eos_token_id and kind != "bidirectional":
        # the embedding of the padding stands still, that of the end token must learn
        config.pad_token_id = None
    family: Any = AutoModelForTokenClassification if kind == "causal" else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(built.seed)
        return family.from_config(config).eval()


def saved_settings(name: str) -> dict[str, Any]:
    """How a saved discriminator reads texts; empty for any other model."""
    folder = resolve_model(name)
    with explained(name, folder, "model"):
        return dict(getattr(AutoConfig.from_pretrained(folder), SETTINGS, None) or {})


def load_discriminator(
    name: str, kind: DiscriminatorKind, *, trained: bool, seed: int = 0, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A discriminator on the backbone `name`, and its tokenizer; its own output is kept where it has one.

    Args:
        name: see `alignkit.models.locating.resolve_model`.
        kind: "causal" or "bidirectional"; "cnn" for one that was saved.
        trained: its output must be in the checkpoint, for it will not learn.
        seed: of a new output.
        kwargs: for `load_classifier`, such as `dtype`.

    Raises:
        ModelError: no such model, no output where there must be one, or one of another size.
    """
    head: dict[str, Any] = {} if trained else {"new_head": True, "id2label": LABELS}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, tokenizer = load_classifier(name, of_tokens=kind == "causal", **head, **kwargs)
    check_discriminator(model, kind)
    return model, tokenizer


def set_dropout(network: nn.Module, share: float) -> None:
    """Gives all dropout of a network one rate, that of the embeddings, of the states and of the attention's weights.

    Args:
        network: its dropout stands in modules, in numbers with "drop" in their names, or in such numbers of the configs
            that its parts read (Falcon; its own config, which is saved, stays as it is). What was built without (an
            `Identity` where another network has dropout) stays without.
        share: of what is set to 0 in training, in [0, 1).
    """
    configs: dict[int, PretrainedConfig] = {}
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        if not isinstance(module, nn.RNNBase):  # between its layers it has dropout of its own, or none
            _set_rates(module, share)
        config = vars(module).get("config")
        if isinstance(config, PretrainedConfig) and module is not network:
            if id(config) not in configs:
                configs[id(config)] = copy.copy(config)
                _set_rates(configs[id(config)], share)
            vars(module)["config"] = configs[id(config)]


def _set_rates(holder: Any, share: float) -> None:
    for name, value in vars(holder).items():
        if type(value) in (int, float) and _RATE.search(name):
            setattr(holder, name, share)


def check_discriminator(model: PreTrainedModel, kind: DiscriminatorKind) -> None:
    """Holds a network against what its kind must do, by trying it.

    Raises:
        ModelError: it has not one output, or a causal one does not read from left to right.
    """
    if model.config.num_labels != 1:
        raise ModelError(
            f"a discriminator has one output, the log-odds that a person wrote the text; this {type(model).__name__} "
            f"has {model.config.num_labels}. Load it with num_labels=1"
        )
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=device).clamp(max=model.config.vocab_size - 1)
    with torch.inference_mode():
        dimensions = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.dim()
        if dimensions != (3 if kind == "causal" else 2):
            wanted = "token classifier, with a label on every token" if kind == "causal" else "sequence classifier"
            raise ModelError(f"kind {kind!r} takes a {wanted}; {type(model).__name__} is none")
        if kind != "causal":
            return
        states = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    rounding = 64 * torch.finfo(states.dtype).eps * states.abs().max()
    if bool((states[0, :3] - states[1, :3]).abs().max() > rounding):
        raise ModelError(
            f"{type(model).__name__} reads a text from both sides: what it makes of the first tokens changes with the "
            "last one. Kind 'causal' takes a decoder (GPT, Llama, Qwen ...); for this network give kind: bidirectional"
        )
