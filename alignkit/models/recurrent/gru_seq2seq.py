"""A GRU encoder-decoder with attention: the generator of Shin et al. (2019, section 2.1), Eqs. 1 to 5.

The temperature of Eq. 5 is no part of the model: it belongs to sampling and scoring, which both have it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from alignkit.models.recurrent.state import RecurrentState, read_padded


class GRUSeq2SeqConfig(PreTrainedConfig):
    """Shape of a `GRUSeq2SeqForConditionalGeneration`.

    Args:
        vocab_size: tokens.
        hidden_size: width of embeddings and states, so that embeddings and output layer can be tied; 300 in the paper.
        num_hidden_layers: of the encoder (in each direction) and of the decoder.
        dropout: on embeddings and on what goes into the output layer, in training.
        initializer_range: standard deviation of new embeddings.
        emotions: words for the classes of the emotion head on the encoder (MultiSeq); none without it.
        emotion_weight: of the emotion loss beside the likelihood; the paper adds it as it is.
    """

    model_type = "alignkit_gru_seq2seq"

    vocab_size: int = 8192
    hidden_size: int = 300
    num_hidden_layers: int = 1
    dropout: float = 0.0
    initializer_range: float = 0.05
    emotions: list[str] | tuple[str, ...] = ()
    emotion_weight: float = 1.0
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 1


@dataclass
class EmotionalOutput(Seq2SeqLMOutput):
    """`Seq2SeqLMOutput` with `emotion_logits` (B, emotions) where the model has an emotion head."""

    emotion_logits: torch.Tensor | None = None


@dataclass
class GRUEncoderOutput(BaseModelOutput):
    """`BaseModelOutput` with `final_state`, (B, H), after the last token of each direction."""

    final_state: torch.Tensor | None = None


class GRUEncoder(nn.Module):
    """A bidirectional GRU; a token's state is the sum of its two directions', of width `hidden_size`.

    Its embeddings are the decoder's too.
    """

    main_input_name = "input_ids"

    def __init__(self, config: GRUSeq2SeqConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.hidden_size, config.hidden_size, config.num_hidden_layers, batch_first=True, bidirectional=True
        )

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **ignored: Any
    ) -> GRUEncoderOutput:
        """States (B, P, H), 0 at padding, and the last layer's final state (B, H)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states, (last,) = read_padded(self.gru, self.dropout(self.embed_tokens(input_ids)), mask)
        forth, back = states.chunk(2, dim=-1)
        return GRUEncoderOutput(last_hidden_state=forth + back, final_state=last[-2] + last[-1])


class GRUSeq2SeqForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Bidirectional GRU encoder, GRU decoder with dot-product attention (Luong et al. 2015), tied weights.

    With `config.emotions` the encoder also names the emotion of the context (MultiSeq, after Rashkin et al. 2019).
    Prompts may be padded on either side: padding is neither read nor attended to.
    """

    config: GRUSeq2SeqConfig
    config_class = GRUSeq2SeqConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "encoder.embed_tokens.weight"}  # noqa: RUF012  (the host's name and type)

    def __init__(self, config: GRUSeq2SeqConfig):
        super().__init__(config)
        width = config.hidden_size
        self.encoder = GRUEncoder(config)
        self.bridge = nn.Linear(width, config.num_hidden_layers * width)
        self.decoder = nn.GRU(width, width, config.num_hidden_layers, batch_first=True)
        self.combine = nn.Linear(2 * width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(width, config.vocab_size)
        if config.emotions:
            self.emotion_head = nn.Linear(width, len(config.emotions))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        spread = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=spread)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.GRU):
            for name, weight in module.named_parameters():
                nn.init.zeros_(weight) if "bias" in name else nn.init.orthogonal_(weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """Of encoder and decoder alike."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces them everywhere."""
        self.encoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """V and b of Eq. 5."""
        return self.lm_head

    def get_encoder(self, modality: str | None = None) -> GRUEncoder:
        """The encoder, for `generate`, which runs it once."""
        return self.encoder

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a state, no keys and values

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        encoder_outputs: GRUEncoderOutput | None = None,
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **ignored: Any,
    ) -> EmotionalOutput:
        """Logits of each decoder position, and losses where labels are given.

        Args:
            input_ids: (B, P), or `encoder_outputs` in its place.
            attention_mask: (B, P), 1 for real tokens.
            decoder_input_ids: (B, T); made of `labels` if not given.
            labels: (B, T), -100 where there is nothing to learn.
            emotion_labels: (B,) classes, -100 where unknown.
            encoder_outputs: what the encoder gave.
            past_key_values: the state after the tokens before `decoder_input_ids`.
            use_cache: give the state after them.
            output_hidden_states: give `decoder_hidden_states`, whose last is m_t of Eq. 1, (B, T, H).
            skip_logits: give no logits, and make only those that the loss needs, where there is a label; by default in
                training with labels.
            num_items_in_batch: labels of the whole optimiser step, over which the loss is a mean.

        Raises:
            ValueError: neither `decoder_input_ids` nor `labels`.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids, or labels to make them of")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        memory = encoder_outputs.last_hidden_state
        if past_key_values is None:
            start, length = self._first_state(encoder_outputs.final_state), 0
        else:
            start, length = past_key_values.tensors[0], past_key_values.length
        embedded = self.dropout(self.get_input_embeddings()(decoder_input_ids))
        states, last = self.decoder(embedded, start.contiguous())
        combined = self.attend(states, memory, attention_mask)
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        logits = None if skip_logits else self.lm_head(self.dropout(combined))
        emotion_logits = self.emotion_head(encoder_outputs.final_state) if self.config.emotions else None
        keeps = self.config.use_cache if use_cache is None else use_cache
        return EmotionalOutput(
            loss=self._loss(combined, logits, labels, emotion_logits, emotion_labels, num_items_in_batch),
            logits=logits,
            past_key_values=RecurrentState((last,), length + decoder_input_ids.shape[1]) if keeps else None,
            decoder_hidden_states=(combined, states) if output_hidden_states else None,
            encoder_last_hidden_state=memory,
            emotion_logits=emotion_logits,
        )

    def attend(self, states: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """m*_t of Eq. 4 from m_t (B, T, H) and the encoder's states (B, P, H), by Eqs. 1 to 3."""
        energies = states @ memory.transpose(1, 2)
        if mask is not None:
            energies = energies.masked_fill(~mask.bool()[:, None], torch.finfo(energies.dtype).min)
        context = energies.softmax(-1) @ memory
        return torch.tanh(self.combine(torch.cat([context, states], -1)))

    def _first_state(self, summary: torch.Tensor) -> torch.Tensor:
        """(layers, B, H) from the encoder's final state (B, H)."""
        first = torch.tanh(self.bridge(summary))
        return first.view(len(first), self.config.num_hidden_layers, -1).transpose(0, 1)

    def _loss(
        self,
        combined: torch.Tensor,
        logits: torch.Tensor | None,
        labels: torch.Tensor | None,
        emotion_logits: torch.Tensor | None,
        emotion_labels: torch.Tensor | None,
        count: torch.Tensor | int | None,
    ) -> torch.Tensor | None:
        if labels is None:
            return None
        kept = labels != -100
        chosen = self.lm_head(self.dropout(combined[kept])) if logits is None else logits[kept]
        summed = F.cross_entropy(chosen.float(), labels[kept], reduction="sum")
        total: Any = kept.sum().clamp(min=1) if count is None else count
        loss = summed / total
        if emotion_logits is not None and emotion_labels is not None and bool((emotion_labels != -100).any()):
            loss = loss + self.config.emotion_weight * F.cross_entropy(emotion_logits.float(), emotion_labels)
        return loss

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, T) labels one place to the right, behind the start token; -100 becomes padding."""
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1]], 1).masked_fill_(
            torch.cat([torch.zeros_like(start), labels[:, :-1]], 1) == -100, self.config.pad_token_id
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: RecurrentState | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens that the state has not read: the newest one, once there is a state."""
        wanted = ("attention_mask", "encoder_outputs", "use_cache")
        inputs = {key: kwargs[key] for key in wanted if kwargs.get(key) is not None}
        unread = input_ids if past_key_values is None else input_ids[:, past_key_values.length :]
        return {**inputs, "decoder_input_ids": unread, "past_key_values": past_key_values}
