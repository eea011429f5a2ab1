"""Every reward of this distribution keeps the contract: one test for each check and each reward."""

import pytest
from alignkit_rewards import (
    Discriminator,
    Distinct,
    LanguageStyle,
    Length,
    Lexicon,
    LookAhead,
    ReferenceOverlap,
    Repetition,
    Sentiment,
    Similarity,
)

from alignkit.testing import tiny_causal_lm, tiny_classifier, tiny_seq2seq, tiny_tokenizer

MAKE = {
    "lexicon": lambda: Lexicon(["film", "thank you"]),
    "length": lambda: Length(target=5),
    "repetition": lambda: Repetition(n=2),
    "distinct": lambda: said(Distinct(n=2, window=20)),
    "overlap_f1": lambda: ReferenceOverlap(),
    "overlap_bleu": lambda: ReferenceOverlap("bleu"),
    "sentiment": lambda: Sentiment(tiny_classifier(), tokenizer=tiny_tokenizer(), batch_size=4),
    "sentiment_of_both": lambda: Sentiment(tiny_classifier(), of="both", output="logit", tokenizer=tiny_tokenizer()),
    "look_ahead": lambda: LookAhead(tiny_classifier(), tokenizer=tiny_tokenizer(), batch_size=4),
    "style": lambda: LanguageStyle(tiny_causal_lm(), tokenizer=tiny_tokenizer(), batch_size=4),
    "style_of_nothing": lambda: LanguageStyle(tiny_causal_lm("llama"), given="nothing", tokenizer=tiny_tokenizer()),
    "style_encoder_decoder": lambda: LanguageStyle(tiny_seq2seq(), tokenizer=tiny_tokenizer()),
    "similarity": lambda: Similarity(tiny_classifier().bert, tokenizer=tiny_tokenizer(), batch_size=4),
    "discriminator": lambda: discriminator("causal", hidden_size=16, heads=2),
    "discriminator_lstm": lambda: discriminator("causal", architecture="lstm", hidden_size=16),
    "discriminator_of_pairs": lambda: discriminator("bidirectional", hidden_size=16),
    "discriminator_cnn": lambda: discriminator("cnn", filters=8),
}
_made = {}


def said(reward):
    reward.update(["it was"] * 3, ["a film", "thank you", "very good !"], [None] * 3)
    return reward


def discriminator(kind, **scratch):
    reward = Discriminator(kind=kind, scratch=scratch, tokenizer=tiny_tokenizer(), learning_rate=1e-2, batch_size=4)
    reward.update(["it was"] * 4, ["bad ."] * 4, ["very good !"] * 4)
    return reward


@pytest.fixture(params=MAKE)
def alignkit_reward(request):
    if request.param not in _made:
        _made[request.param] = MAKE[request.param]()
    return _made[request.param]


def test_contract(alignkit_check):
    alignkit_check()
