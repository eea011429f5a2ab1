"""A sequence classifier that reads the mean of an encoder's states.

Sentence encoders were trained to be read so; the head that transformers puts on a BERT reads the first token through a
layer that their training never saw.
"""

import copy
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

POOLINGS = ("mean",)


class PooledClassifierConfig(PreTrainedConfig):
    """Shape of a `PooledClassifier`.

    Args:
        encoder: configuration of the encoder, as an object or as the dictionary that config.json holds.
        pooling: what of its states is read; `mean`, over the tokens of the text.
        classifier_dropout: on what was read, in training.
    """

    model_type = "alignkit_pooled_classifier"
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012  (the host's name and type)

    encoder: Any = None
    pooling: str = "mean"
    classifier_dropout: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder, dict):
            settings = dict(self.encoder)
            self.encoder = AutoConfig.for_model(settings.pop("model_type"), **settings)
        if self.encoder is not None:
            kwargs.setdefault("pad_token_id", self.encoder.pad_token_id)
        super().__post_init__(**kwargs)

    @property
    def max_position_embeddings(self) -> int | None:
        """How many tokens the encoder's positions allow, if it says."""
        return getattr(self.encoder, "max_position_embeddings", None)

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's states."""
        return self.encoder.hidden_size


class PooledClassifier(PreTrainedModel):
    """An encoder, the mean of its states over the tokens of each text, and a linear layer.

    `AutoModelForSequenceClassification` loads a saved one once alignkit is imported.
    """

    config_class = PooledClassifierConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: PooledClassifierConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        encoder = AutoModel.from_config(config.encoder)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # it would be saved, and never be read
        self.encoder = encoder
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._told_apart = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self.post_init()

    @classmethod
    def on(cls, encoder: PreTrainedModel, labels: dict[int, str]) -> "PooledClassifier":
        """A new, random head on an encoder.

        Args:
            encoder: a model that gives `last_hidden_state`.
            labels: number -> name of the classes.
        """
        config = PooledClassifierConfig(
            encoder=copy.deepcopy(encoder.config),
            num_labels=len(labels),
            id2label=labels,
            label2id={label: i for i, label in labels.items()},
        )
        config.encoder._name_or_path = ""  # where it came from is no part of what it is
        how = {"attn_implementation": encoder.config._attn_implementation, "dtype": encoder.dtype}
        model = cls._from_config(config, **how)
        weights = encoder.state_dict()
        model.encoder.load_state_dict({key: weights[key] for key in model.encoder.state_dict()})
        return model

    def _init_weights(self, module: nn.Module) -> None:
        if module is getattr(self, "classifier", None):
            nn.init.normal_(self.classifier.weight, std=getattr(self.config.encoder, "initializer_range", 0.02))
            nn.init.zeros_(self.classifier.bias)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, C) of B texts, and their cross-entropy where `labels` (B,) are given."""
        if token_type_ids is not None and self._told_apart:
            kwargs["token_type_ids"] = token_type_ids
        given = input_ids if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
        outputs = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, return_dict=True, **kwargs
        )
        logits = self.classifier(self.dropout(mean_of_tokens(outputs.last_hidden_state, attention_mask)))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
        )


def mean_of_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of states (B, L, H) over the positions where `mask` (B, L) is 1: (B, H)."""
    keep = mask.bool()[..., None]
    total = torch.where(keep, states, 0.0).sum(1)
    return total / keep.sum(1).clamp(min=1).to(total.dtype)


AutoConfig.register(PooledClassifierConfig.model_type, PooledClassifierConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PooledClassifierConfig, PooledClassifier, exist_ok=True)
