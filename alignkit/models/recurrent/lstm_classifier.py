"""An LSTM that gives every token a label, read from left to right."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import TokenClassifierOutput

from alignkit.models.recurrent.lstm import LSTMConfig, LSTMModel, LSTMPreTrainedModel
from alignkit.models.recurrent.state import RecurrentState


@dataclass
class RecurrentTokenOutput(TokenClassifierOutput):
    """`TokenClassifierOutput` with the state after the last token, so that reading can go on from there."""

    past_key_values: RecurrentState | None = None


class LSTMForTokenClassification(LSTMPreTrainedModel):
    """An `LSTMModel` and a linear head with `config.num_labels` outputs for each token."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LSTMModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Of the tokens."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces them."""
        self.model.embedding = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        **ignored: Any,
    ) -> RecurrentTokenOutput:
        """Logits (B, L, labels), and the mean cross-entropy where `labels` (B, L) are given, -100 being left out.

        Args:
            input_ids: (B, L).
            attention_mask: as `LSTMModel` takes it.
            labels: (B, L) class of each token.
            past_key_values: the state after the tokens before `input_ids`, which are then all real.
            use_cache: give the state after them.
        """
        read = self.model(input_ids, attention_mask, past_key_values, use_cache)
        logits = self.score(read.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return RecurrentTokenOutput(loss=loss, logits=logits, past_key_values=read.past_key_values)
