"""A sequence classifier as a reward: what it cannot score is refused before training, not in its first step."""

import pytest
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from alignkit import PPOConfig, PPOTrainer
from alignkit.errors import ConfigError
from alignkit.models.module_reward import ModuleReward
from alignkit.models.tiny import WORDS, tiny_causal_lm, tiny_classifier, tiny_tokenizer

SIZE = len(WORDS) + 3


def decoder(kind, pad):
    if kind == "gpt2":
        config = GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=1, n_head=2, num_labels=1, pad_token_id=pad)
        return GPT2ForSequenceClassification(config)
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=pad,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_classifier_without_a_pad_token_is_refused_before_training(kind, tmp_path):
    data = Dataset.from_dict({"prompt": ["the film was"] * 8})
    settings = PPOConfig(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match=r"has no pad_token_id in its config.*set tokenizer\.pad_token = "):
        PPOTrainer(
            tiny_causal_lm(), decoder(kind, None), settings, data, processing_class=tiny_tokenizer(),
            reward_processing_classes=tiny_tokenizer(),
        )  # fmt: skip
    assert len(ModuleReward(decoder(kind, 0), tiny_tokenizer())(["the film"] * 2, ["was", "was very good"])) == 2


def test_what_the_message_says_mends_it():
    classifier, tokenizer = decoder("gpt2", None), tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="the tokenizer of the reward 'GPT2ForSequenceClassification' has no pad"):
        ModuleReward(classifier, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    classifier.config.pad_token_id = tokenizer.pad_token_id
    reward = ModuleReward(classifier, tokenizer)
    together = reward(["the film", "it"], [" was good", " is a story of"])
    alone = reward(["the film"], [" was good"]) + reward(["it"], [" is a story of"])
    assert together == pytest.approx(alone, abs=1e-5)


def test_two_different_pad_tokens_are_refused_where_they_change_the_score():
    classifier = decoder("gpt2", 2)
    classifier.score.weight.data.mul_(100)
    with pytest.raises(ConfigError, match="pad_token_id=2, its tokenizer pads with 0"):
        ModuleReward(classifier, tiny_tokenizer())
    encoder = tiny_classifier()
    encoder.config.pad_token_id = 2  # an encoder follows the mask, and does not mind
    assert len(ModuleReward(encoder, tiny_tokenizer())(["it"], ["is good"])) == 1
