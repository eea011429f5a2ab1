"""Recurrent networks as ordinary `PreTrainedModel`s: a GRU encoder-decoder, an LSTM language model, an LSTM that labels
tokens.

They are known to `AutoConfig` and the auto classes once this package is imported: `from_pretrained`, `generate`,
trainers and decoders then take them like any other model.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

from alignkit.models.recurrent.gru_seq2seq import GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration
from alignkit.models.recurrent.lstm import LSTMConfig, LSTMForCausalLM, LSTMModel
from alignkit.models.recurrent.lstm_classifier import LSTMForTokenClassification

__all__ = [
    "GRUSeq2SeqConfig",
    "GRUSeq2SeqForConditionalGeneration",
    "LSTMConfig",
    "LSTMForCausalLM",
    "LSTMForTokenClassification",
    "LSTMModel",
]

AutoConfig.register(GRUSeq2SeqConfig.model_type, GRUSeq2SeqConfig, exist_ok=True)
AutoConfig.register(LSTMConfig.model_type, LSTMConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration, exist_ok=True)
AutoModel.register(LSTMConfig, LSTMModel, exist_ok=True)
AutoModelForCausalLM.register(LSTMConfig, LSTMForCausalLM, exist_ok=True)
AutoModelForTokenClassification.register(LSTMConfig, LSTMForTokenClassification, exist_ok=True)
