"""A convolutional text classifier: Kim (2014) with the highway layer of SeqGAN's discriminator (Yu et al. 2017)."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class TextCNNConfig(PreTrainedConfig):
    """Shape of a `TextCNNForSequenceClassification`.

    Args:
        vocab_size: tokens.
        embedding_size: width of the embeddings; 64 in SeqGAN.
        widths: tokens that a filter spans, one group of filters for each.
        filters: of each group.
        dropout: before the output layer, in training; 0.25 in SeqGAN (which keeps 0.75).
        initializer_range: standard deviation of new embeddings.
        max_position_embeddings: longest text; nothing in the network depends on it, it only bounds what is read.
        type_vocab_size: kinds of tokens, such as prompt (0) and completion (1).
    """

    model_type = "alignkit_text_cnn"

    vocab_size: int = 8192
    embedding_size: int = 64
    widths: list[int] | tuple[int, ...] = (1, 2, 3, 4, 5)
    filters: int = 100
    dropout: float = 0.25
    initializer_range: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 1


class TextCNNForSequenceClassification(PreTrainedModel):
    """Filters over windows of words, the largest answer of each, a highway layer, dropout, and a linear layer.

    Only windows within the text count; a text that is shorter than a filter is one window, filled with zeros. So
    padding, wherever it is, changes nothing.
    """

    config: TextCNNConfig
    config_class = TextCNNConfig
    base_model_prefix = "cnn"

    def __init__(self, config: TextCNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        features = config.filters * len(config.widths)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.types = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.filters, width) for width in config.widths
        )
        self.gate = nn.Linear(features, features)
        self.transform = nn.Linear(features, features)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(features, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """Of the tokens."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces them."""
        self.embedding = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **ignored: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, labels), and the mean cross-entropy where `labels` (B,) are given.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 for real tokens.
            token_type_ids: (B, L), the kind of each token; all 0 if not given.
            labels: (B,) class of each text.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        order = (mask == 0).long().argsort(dim=1, stable=True)  # real tokens to the front, in their order
        ids, types, mask = (tensor.gather(1, order) for tensor in (input_ids, types, mask))
        embedded = (self.embedding(ids) + self.types(types)) * mask[:, :, None]
        embedded = F.pad(embedded.transpose(1, 2), (0, max(max(self.config.widths) - ids.shape[1], 0)))
        lengths = mask.sum(1)
        found = [self._largest(convolution, embedded, lengths) for convolution in self.convolutions]
        features = torch.cat(found, dim=1)
        gate = self.gate(features).sigmoid()
        mixed = gate * F.relu(self.transform(features)) + (1 - gate) * features
        logits = self.classifier(self.dropout(mixed))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    @staticmethod
    def _largest(convolution: Any, embedded: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, filters) largest answer of each filter to a window within the text, at least 0."""
        answers = F.relu(convolution(embedded))
        last = (lengths - convolution.kernel_size[0]).clamp(min=0)
        places = torch.arange(answers.shape[2], device=answers.device)
        # nothing is below 0 after the relu, so 0 leaves a window out
        return (answers * (places <= last[:, None])[:, None]).amax(dim=2)


AutoConfig.register(TextCNNConfig.model_type, TextCNNConfig, exist_ok=True)
AutoModelForSequenceClassification.register(TextCNNConfig, TextCNNForSequenceClassification, exist_ok=True)
