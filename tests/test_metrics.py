"""Metrics against independent computations, and their way through `evaluate.Metric`."""

import math
import pickle
import random
from collections import Counter
from itertools import combinations
from statistics import mean

import evaluate
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu import sentence_bleu
from tokenizers import processors

from alignkit.decoding.prompts import split_ids
from alignkit.errors import ConfigError, MissingColumnError
from alignkit.metrics import METRICS, load_metric, metric_parameters
from alignkit.metrics.diversity import distinct, distinct_of, duplicates, self_bleu
from alignkit.metrics.overlap import token_f1
from alignkit.metrics.perplexity import PerplexityMetric
from alignkit.metrics.repetition import repetition
from alignkit.metrics.reward import RewardMetric
from alignkit.models.from_scratch import train_tokenizer
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer

TEXTS = st.lists(st.lists(st.sampled_from(list("abcd")), max_size=8).map(" ".join), min_size=1, max_size=6)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_is_an_evaluate_metric_with_a_summary(name):
    assert issubclass(METRICS[name].load(), evaluate.Metric)
    assert METRICS[name].summary
    assert "self" not in metric_parameters(name)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(1, 3))
def test_distinct_counts_ngrams(texts, n):
    counts = Counter()
    for text in texts:
        tokens = text.split()
        counts.update(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    expected = len(counts) / counts.total() if counts else 0.0
    assert distinct(texts, n) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(list("abc")), max_size=4).map(" ".join), max_size=3), st.integers(1, 6))
def test_distinct_of_so_many_draws_is_the_mean_over_all_draws(texts, draws):
    tokens = [token for text in texts for token in text.split()]
    all_draws = list(combinations(tokens, min(draws, len(tokens))))
    expected = mean(len(set(draw)) / len(draw) for draw in all_draws) if tokens else 0.0
    assert distinct_of(texts, 1, draws) == pytest.approx(expected)


def test_distinct_of_so_many_draws_keeps_its_digits_in_long_text():
    words = [str(number) for number in range(200_000)]
    assert distinct_of([" ".join(words)], 1) == pytest.approx(1.0, abs=1e-12)
    assert distinct_of([" ".join(words + words)], 1) == pytest.approx(1 - 999 / 2 / 399_999, abs=1e-8)


def test_distinct_of_so_many_draws_does_not_fall_with_more_text_from_the_same_source():
    dice = random.Random(0)
    few, many = ([" ".join(dice.choices("abcdefgh", k=10)) for _ in range(count)] for count in (40, 400))
    assert distinct(many, 2) < distinct(few, 2) / 5
    assert distinct_of(many, 2, 200) == pytest.approx(distinct_of(few, 2, 200), rel=0.05)


def test_self_bleu_is_the_mean_of_each_text_against_the_others():
    texts = ["the film was very good indeed", "the film was very bad indeed", "a dull evening for all of us"]
    expected = [
        sentence_bleu(text, [other for other in texts if other is not text], lowercase=True).score for text in texts
    ]
    assert self_bleu(texts) == pytest.approx(sum(expected) / 300)
    assert self_bleu(["one and the same text here"] * 5) == pytest.approx(1.0)
    assert self_bleu(["alone"]) == 0.0


def test_self_bleu_of_many_texts_uses_a_fixed_choice():
    texts = [f"text number {i} of many that differ {i % 7}" for i in range(60)]
    assert self_bleu(texts, samples=10, seed=1) == self_bleu(texts, samples=10, seed=1)
    assert self_bleu(texts, samples=10, seed=1) != self_bleu(texts, samples=10, seed=2)


def test_duplicates_ignore_case_and_spaces():
    assert duplicates(["A b", "a  B", "c", "c"]) == pytest.approx(0.5)
    assert duplicates(["a", "b"]) == 0.0


def test_diversity_falls_when_a_policy_collapses():
    metric = load_metric("diversity")
    varied = metric.compute(predictions=["red cats sleep well", "tall trees grow slowly", "rain fell all night"])
    collapsed = metric.compute(predictions=["great great film here"] * 3)
    assert all(collapsed[f"distinct_{n}"] < varied[f"distinct_{n}"] for n in (1, 2, 3))
    assert collapsed["self_bleu"] > varied["self_bleu"] and collapsed["duplicates"] > varied["duplicates"]


def test_repetition_is_the_share_of_ngrams_seen_before():
    assert repetition("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert repetition("a b c", 3) == 0.0
    assert repetition("a b", 3) is None
    result = load_metric("repetition", n=2).compute(predictions=["so so so so so", "one two three four", "", "x"])
    assert result == {"repetition": pytest.approx(0.75 / 2), "looping": 0.5}


def test_length_counts_words_and_empty_completions():
    result = load_metric("length").compute(predictions=["one two", "", "one two three four", "  "])
    assert result == {"words_mean": 1.5, "words_std": pytest.approx(1.9149, abs=1e-4), "empty": 0.5}


def test_overlap_with_itself_is_one_and_with_nothing_in_common_zero():
    metric = load_metric("overlap")
    texts = ["the cat sat on the mat", "it rained for the whole day"]
    same = metric.compute(predictions=texts, columns={"reference": texts})
    assert same == {"bleu": pytest.approx(1.0), "sentence_bleu": pytest.approx(1.0), "f1": 1.0}
    other = metric.compute(predictions=texts, columns={"reference": ["q w e r t z", None]})
    assert other["f1"] == 0.0 and other["bleu"] < 0.05
    assert metric.row_scores["f1"] == [0.0, None] and metric.row_scores["sentence_bleu"][1] is None


def test_a_text_is_split_where_its_characters_say_and_without_what_a_tokenizer_closes_with():
    """The token that reaches over the border belongs to the continuation; a closing mark belongs to neither part."""
    tokenizer = train_tokenizer(["low lower lowest"] * 8, 300, 32, for_classifier=True)
    start = tokenizer.cls_token_id
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.cls_token} $A {tokenizer.cls_token}", special_tokens=[(tokenizer.cls_token, start)]
    )
    whole = tokenizer("low lowest")["input_ids"]
    assert whole[0] == whole[-1] == start and len(whole) == 4
    assert split_ids(tokenizer, "low lowest", 3) == (whole[:2], whole[2:3])
    assert split_ids(tokenizer, "low lowest", 6) == (whole[:2], whole[2:3])
    assert split_ids(tokenizer, "low lowest", 0) == (whole[:1], whole[1:3])
    apart = tokenizer("low")["input_ids"], tokenizer(" lowest", add_special_tokens=False)["input_ids"]
    assert split_ids(tokenizer, "low lowest", 3, apart=True) == apart


def test_token_f1_against_the_definition():
    assert token_f1("a b b c", "b b d") == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert token_f1("", "") == 1.0 and token_f1("a", "") == 0.0


def test_overlap_without_the_column_says_what_there_is():
    with pytest.raises(MissingColumnError, match=r"needs a column 'reference'.*persona"):
        load_metric("overlap").compute(predictions=["a"], columns={"persona": ["b"]})


class LengthReward:
    """Scores half of the words; no opinion on empty texts."""

    __name__ = "half"
    positive_above = 1.0

    def __call__(self, prompts, completions, **columns):
        return [len(text.split()) / 2 if text else None for text in completions]


def test_a_reward_is_a_metric_and_none_is_left_out():
    result = RewardMetric(LengthReward()).compute(predictions=["a b", "a b c d", ""], prompts=["p"] * 3)
    assert result == {"half": 1.5, "half_std": pytest.approx(0.7071, abs=1e-4), "half_positive_share": 0.5}
    named = RewardMetric(LengthReward(), name="judge", positive_above=3).compute(predictions=["a b"])
    assert named == {"judge": 1.0, "judge_std": 0.0, "judge_positive_share": 0.0}


def test_a_reward_without_any_opinion_is_no_number():
    result = RewardMetric(LengthReward()).compute(predictions=["", ""])
    assert all(math.isnan(value) for value in result.values())


def test_a_reward_metric_sees_columns_and_messages():
    def seen(prompts, completions, *, persona, **columns):
        return [
            float(completion[0]["content"] == wanted) for completion, wanted in zip(completions, persona, strict=True)
        ]

    messages = [[{"role": "assistant", "content": "tea"}], [{"role": "assistant", "content": "coffee"}]]
    metric = RewardMetric(seen)
    result = metric.compute(predictions=["tea", "coffee"], completions=messages, columns={"persona": ["tea", "tea"]})
    assert result["seen"] == 0.5


def perplexity_by_hand(model, ids, first):
    """exp of the mean negative log-likelihood of ids[first:], one position after the other, nothing padded."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(logits[i - 1, ids[i]]) for i in range(first, len(ids))]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_perplexity_equals_the_plain_forward_under_padding(kind):
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(kind).eval()
    vocabulary = [word for word in tokenizer.get_vocab() if word.isalpha()]
    prompts = [" ".join(vocabulary[:2]), " ".join(vocabulary[2:7])]
    texts = [" " + " ".join(vocabulary[5:9]), " " + " ".join(vocabulary[1:3])]
    losses = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt + text)["input_ids"]
        losses += perplexity_by_hand(model, ids, len(tokenizer(prompt)["input_ids"]))
    metric = PerplexityMetric(model, tokenizer, name="lm", batch_size=2)
    result = metric.compute(predictions=[*texts, ""], prompts=[*prompts, prompts[0]])
    assert result == {"lm": pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)}


def test_perplexity_takes_an_encoder_decoder_and_keeps_within_the_context():
    tokenizer = tiny_tokenizer()
    result = PerplexityMetric(tiny_seq2seq(), tokenizer).compute(predictions=["good film"], prompts=["the film"])
    assert result["perplexity"] > 1
    long = " ".join(["film"] * 300)
    short = PerplexityMetric(tiny_causal_lm("gpt2"), tokenizer, max_length=16)
    assert math.isfinite(short.compute(predictions=[long], prompts=[long])["perplexity"])


def test_perplexity_of_nothing_is_no_number_and_without_a_model_an_error():
    assert math.isnan(
        PerplexityMetric(tiny_causal_lm("gpt2"), tiny_tokenizer()).compute(predictions=[""])["perplexity"]
    )
    with pytest.raises(ConfigError, match="no language model"):
        load_metric("perplexity").compute(predictions=["a"])


def test_a_wrong_name_or_setting_says_what_was_meant():
    with pytest.raises(ConfigError, match="Did you mean 'diversity'"):
        load_metric("diversty")
    with pytest.raises(ConfigError, match="Did you mean 'samples'"):
        load_metric("diversity", sample=3)
    assert isinstance(load_metric("reward", reward=LengthReward()), RewardMetric)


def test_a_metric_can_be_used_again_and_pickled():
    metric = load_metric("length")
    first = metric.compute(predictions=["a b"])
    assert metric.compute(predictions=["a b"]) == first
    assert pickle.loads(pickle.dumps(load_metric("diversity"))).compute(predictions=["a b"])["distinct_1"] == 1.0
