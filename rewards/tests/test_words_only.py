"""The rewards without a network, against counting by other means."""

import collections
import string

import pytest
import sacrebleu
from alignkit_rewards import Length, Lexicon, ReferenceOverlap, Repetition
from alignkit_rewards.words import references, words
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.errors import RewardError

texts = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join)
message = [{"role": "assistant", "content": "Thank you."}]


def score(reward, text, **columns):
    [value] = reward(prompts=[""], completions=[text], **{name: [column] for name, column in columns.items()})
    return value


# Words


def test_words_drop_punctuation_and_case_and_keep_apostrophes():
    assert words("Don’t STOP — it’s 5 o'clock, 'really'!") == ["don't", "stop", "it's", "5", "o'clock", "really"]
    assert words("Größe, café, 中文") == ["größe", "café", "中文"]


def test_a_reference_is_a_text_messages_or_several():
    assert references(message) == ["Thank you."]
    assert references([message, "no", None]) == ["Thank you.", "no"]
    assert references([]) == []


# Lexicon


@settings(deadline=None)
@given(texts)
def test_lexicon_is_the_share_of_its_words(text):
    counts = collections.Counter(text.split())
    total = counts.total()
    assert score(Lexicon(["a", "B"]), text) == pytest.approx((counts["a"] + counts["b"]) / total if total else 0)
    weighted = (2 * counts["a"] - counts["c"]) / total if total else 0
    assert score(Lexicon({"a": 2, "c": -1}), text) == pytest.approx(weighted)


def test_the_longest_phrase_counts_and_covers_its_words_once():
    reward = Lexicon({"thank you": 1.0, "thank you so much": 2.0, "you": 5.0})
    assert score(reward, "thank you so much") == 2.0
    assert score(reward, "thank you, you") == (2 * 1.0 + 5.0) / 3
    assert score(reward, message) == 1.0


def test_a_lexicon_file_has_words_and_weights(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# polite\nplease\nthank you\t2.5\n\n")
    assert score(Lexicon(str(path)), "please thank you") == pytest.approx((1 + 2 * 2.5) / 3)
    assert Lexicon(path).lexicon == str(path)


@pytest.mark.parametrize("content", ["# nothing\n", "please\tvery\n"])
def test_a_lexicon_file_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "words.txt"
    path.write_text(content)
    with pytest.raises(RewardError, match=r"words\.txt"):
        Lexicon(path)


def test_a_lexicon_that_is_not_there_is_refused():
    with pytest.raises(RewardError, match="there is no lexicon file"):
        Lexicon("absent.txt")
    with pytest.raises(RewardError, match="has no words"):
        Lexicon([])


# Length


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 20), st.floats(0.5, 10))
def test_length_falls_by_one_per_tolerance(length, target, tolerance):
    reward = Length(target, tolerance, floor=-1.5)
    expected = max(-1.5, 1 - abs(length - target) / tolerance)
    assert score(reward, " ".join(["word"] * length)) == pytest.approx(expected)


def test_length_between_two_targets_is_right():
    reward = Length([2, 4], tolerance=2)
    assert [score(reward, "w " * n) for n in range(7)] == [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0]


def test_length_counts_words_characters_or_tokens():
    assert score(Length(3), "one two three") == 1.0
    assert score(Length(13, unit="characters"), "one two three") == 1.0
    tokens = Length(2, unit="tokens")
    assert tokens(prompts=["", ""], completions=["a", "b"], completion_ids=[[1, 2], [3]]) == [1.0, 0.5]
    with pytest.raises(RewardError, match="unit='words'"):
        tokens(prompts=[""], completions=["a"])


@pytest.mark.parametrize(
    "settings",
    [
        {"target": -1},
        {"target": [3, 2]},
        {"target": [1, 2, 3]},
        {"target": 0},
        {"target": 5, "tolerance": 0},
        {"target": 5, "unit": "letters"},
        {"target": 5, "floor": 1},
    ],
)
def test_a_length_without_sense_is_refused(settings):
    with pytest.raises(RewardError, match="length"):
        Length(**settings)


# Repetition


@settings(deadline=None)
@given(texts, st.integers(1, 4))
def test_repetition_is_minus_the_share_of_ngrams_seen_before(text, n):
    seen, repeated, total = set(), 0, 0
    tokens = text.split()
    for i in range(len(tokens) - n + 1):
        gram = " ".join(tokens[i : i + n])
        repeated, total = repeated + (gram in seen), total + 1
        seen.add(gram)
    assert score(Repetition(n), text) == pytest.approx(-repeated / total if total else 0)


def test_repetition_agrees_with_trls_on_the_same_units():
    from trl.rewards import get_repetition_penalty_reward

    text = "a b a b a c a b"
    ids = [string.ascii_lowercase.index(word) for word in text.split()]
    theirs = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)(completion_ids=[ids])
    assert score(Repetition(2), text) == pytest.approx(theirs[0])


def test_repetition_needs_at_least_one_word():
    with pytest.raises(RewardError, match="at least 1"):
        Repetition(0)


# Overlap with a reference


@settings(deadline=None)
@given(texts, texts)
def test_f1_is_that_of_precision_and_recall(text, reference):
    ours = score(ReferenceOverlap(), text, reference=reference)
    one, other = text.split(), reference.split()
    if not one or not other:
        assert ours == float(one == other)
        return
    left = list(other)
    common = sum(left.remove(word) is None for word in one if word in left)
    precision, recall = common / len(one), common / len(other)
    assert ours == pytest.approx(2 * precision * recall / (precision + recall) if common else 0)


def test_of_several_references_f1_takes_the_best():
    assert score(ReferenceOverlap(), "a b", reference=["c", "a b", "a"]) == 1.0


@settings(deadline=None)
@given(st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat"]), min_size=1, max_size=9).map(" ".join))
def test_bleu_is_sacrebleus(text):
    references = ["the cat sat on the mat", "a cat is on the mat"]
    metric = sacrebleu.BLEU(effective_order=True)
    expected = metric.corpus_score([text], [[reference] for reference in references]).score / 100
    assert score(ReferenceOverlap("bleu"), text, reference=references) == pytest.approx(expected, abs=1e-9)


def test_without_a_reference_there_is_no_opinion():
    reward = ReferenceOverlap(column="answer")
    assert reward(prompts=["", ""], completions=["a", "b"], answer=[None, "b"]) == [None, 1.0]
    assert reward.required_columns == ["answer"]
    with pytest.raises(RewardError, match="measure"):
        ReferenceOverlap("rouge")
