"""An LSTM language model: the generator of adversarial text generation before transformers (SeqGAN and its heirs)."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from alignkit.models.recurrent.state import RecurrentState, read_padded


class LSTMConfig(PreTrainedConfig):
    """Shape of an `LSTMForCausalLM`.

    Args:
        vocab_size: tokens.
        embedding_size: width of the embeddings; tied weights need it to be `hidden_size`.
        hidden_size: width of the states.
        num_hidden_layers: number of layers.
        dropout: on embeddings and on what goes into the output layer, in training.
        initializer_range: standard deviation of new embeddings.
    """

    model_type = "alignkit_lstm"

    vocab_size: int = 8192
    embedding_size: int = 128
    hidden_size: int = 128
    num_hidden_layers: int = 1
    dropout: float = 0.0
    initializer_range: float = 0.05
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 1


class LSTMPreTrainedModel(PreTrainedModel):
    """What the models on an LSTM share: their configuration and how new weights are drawn."""

    config: LSTMConfig
    config_class = LSTMConfig
    base_model_prefix = "model"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LSTM):
            for name, weight in module.named_parameters():
                nn.init.zeros_(weight) if "bias" in name else nn.init.orthogonal_(weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class LSTMModel(LSTMPreTrainedModel):
    """Embeddings and LSTM: the states that the head reads. Padding, wherever it is, is not read."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, config.num_hidden_layers, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

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
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        **ignored: Any,
    ) -> BaseModelOutputWithPast:
        """States (B, L, H), in training with dropout.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L) or, with a state, (B, all so far): 1 for real tokens.
            past_key_values: the state after the tokens before `input_ids`, which are then all real.
            use_cache: give the state after them.
        """
        embedded = self.dropout(self.embedding(input_ids))
        if past_key_values is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            states, last = read_padded(self.lstm, embedded, mask)
            length = 0
        else:
            first: Any = tuple(tensor.contiguous() for tensor in past_key_values.tensors)
            states, last = self.lstm(embedded, first)
            length = past_key_values.length
        keeps = self.config.use_cache if use_cache is None else use_cache
        return BaseModelOutputWithPast(
            last_hidden_state=self.dropout(states),
            past_key_values=RecurrentState(last, length + input_ids.shape[1]) if keeps else None,  # type: ignore[arg-type]
        )


class LSTMForCausalLM(LSTMPreTrainedModel, GenerationMixin):
    """An `LSTMModel` and a linear head."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012  (the host's name and type)

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        if config.tie_word_embeddings and config.embedding_size != config.hidden_size:
            raise ValueError(
                f"tie_word_embeddings needs embedding_size == hidden_size, got {config.embedding_size} and "
                f"{config.hidden_size}; make them equal or untie them"
            )
        self.model = LSTMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Of the tokens."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces them."""
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a state, no keys and values

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, V), and the loss where labels are given.

        Args:
            input_ids: (B, L).
            attention_mask: as `LSTMModel` takes it.
            labels: (B, L), the same tokens, -100 where there is nothing to learn.
            past_key_values: the state after the tokens before `input_ids`, which are then all real.
            use_cache: give the state after them.
            output_hidden_states: give `hidden_states`, the last (B, L, H).
            num_items_in_batch: labels of the whole optimiser step, over which the loss is a mean.
        """
        read = self.model(input_ids, attention_mask, past_key_values, use_cache)
        logits = self.lm_head(read.last_hidden_state)
        loss = None
        if labels is not None:
            wanted = labels[:, 1:].flatten()
            summed = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, reduction="sum")
            total: Any = (wanted != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = summed / total
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=read.past_key_values,
            hidden_states=(read.last_hidden_state,) if output_hidden_states else None,
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: RecurrentState | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens that the state has not read: the newest one, once there is a state."""
        unread = input_ids if past_key_values is None else input_ids[:, past_key_values.length :]
        inputs = {"input_ids": unread, "past_key_values": past_key_values, "use_cache": kwargs.get("use_cache")}
        return {**inputs, "attention_mask": kwargs.get("attention_mask")}
