"""What the discriminator scores: against its network read one text at a time, without padding."""

import math
import pickle

import pytest
import torch
from alignkit_rewards import Discriminator
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from alignkit.errors import ModelError, RewardError
from alignkit.models.from_scratch import train_tokenizer
from alignkit.reward import PrefixReward
from alignkit.testing import tiny_causal_lm, tiny_tokenizer

PROMPTS = ["the movie was", "it", "this film is very", "i", "the plot"]
COMPLETIONS = [" good .", " a dull and boring story , of course .", " great", "", " was not bad"]
SCRATCH = {
    "causal": {"hidden_size": 16, "heads": 2, "layers": 1},
    "bidirectional": {"hidden_size": 16, "heads": 2, "layers": 1},
    "cnn": {"filters": 4, "widths": [1, 2, 3]},
}
KINDS = list(SCRATCH)


def made(kind: str = "causal", **settings) -> Discriminator:
    settings = {"dtype": "float64", "tokenizer": tiny_tokenizer(), **settings}
    return Discriminator(kind=kind, scratch=SCRATCH[kind], **settings)


def one_by_one(reward: Discriminator, prompts=PROMPTS, completions=COMPLETIONS) -> torch.Tensor:
    """Log-odds, each text alone and put together by hand."""
    model, _ = reward.network()
    tokenizer = tiny_tokenizer()
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        given, written = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
        if reward.of == "completion":
            given = [] if reward.kind == "bidirectional" else [tokenizer.eos_token_id]
        end = [] if reward.kind == "bidirectional" else [tokenizer.eos_token_id]
        inputs = {"input_ids": torch.tensor([given + written + end])}
        if reward.kind != "causal":
            inputs["token_type_ids"] = torch.tensor([[0] * len(given) + [1] * len(written + end)])
            if reward.of == "completion" and reward.kind == "bidirectional":
                inputs["token_type_ids"] *= 0  # a tokenizer's single text is of type 0
        if not inputs["input_ids"].shape[1]:
            found.append(torch.tensor(math.nan, dtype=torch.float64))
            continue
        with torch.no_grad():
            logits = model(**inputs).logits
        found.append(logits[0, -1, 0] if reward.kind == "causal" else logits[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize("of", ["both", "completion"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_text_alone(kind, of):
    for batch_size in (1, 3):
        reward = made(kind, of=of, batch_size=batch_size)
        odds = one_by_one(reward)
        scores = [math.nan if score is None else score for score in reward(PROMPTS, COMPLETIONS)]
        torch.testing.assert_close(
            torch.tensor(scores, dtype=torch.float64), odds.sigmoid(), rtol=1e-12, atol=1e-12, equal_nan=True
        )
        logs = [math.nan if score is None else score for score in reward.log_scores(PROMPTS, COMPLETIONS)]
        torch.testing.assert_close(
            torch.tensor(logs, dtype=torch.float64), torch.nn.functional.logsigmoid(odds), rtol=1e-12, atol=1e-12,
            equal_nan=True,
        )  # fmt: skip
    assert reward([], []) == [] == reward.log_scores([], [])


def test_where_the_score_rounds_its_logarithm_does_not():
    reward = made()
    model, _ = reward.network()
    with torch.no_grad():
        model.score.weight.zero_()
        for bias in (-900.0, 900.0):
            model.score.bias.fill_(bias)
            [score], [log_score] = reward(["it"], [" good"]), reward.log_scores(["it"], [" good"])
            assert 0 < score < 1
            assert log_score == (-900.0 if bias < 0 else -0.0)


def test_conversations_are_read_as_lines():
    reward = made()
    [score] = reward([[{"role": "user", "content": "good film"}]], [[{"role": "assistant", "content": "it is"}]])
    assert score == reward(["user: good film\nassistant: "], ["it is"])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_lose_the_beginning_of_the_prompt_and_the_end_of_the_completion(kind):
    reward = made(kind, max_length=10, max_completion_tokens=4)
    long = reward(["bad " * 30 + "the plot of this film is"], ["very good and fine , but dull"])
    end = [] if kind == "bidirectional" else [" <eos>"]  # a completion that is cut has no end token
    model, tokenizer = reward.network()
    ids = tokenizer("the plot of this film is very good and fine")["input_ids"]
    assert len(ids) == 10
    inputs = {"input_ids": torch.tensor([ids])}
    if kind != "causal":
        inputs["token_type_ids"] = torch.tensor([[0] * 6 + [1] * 4])
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = logits[0, -1, 0] if kind == "causal" else logits[0, 0]
    assert long[0] == pytest.approx(float(expected.sigmoid()), abs=1e-12)
    # one that just fits keeps its end token; so one more word in the prompt's place changes nothing
    whole = "very good and" if end else "very good and fine"
    assert reward(["x " * 9 + "it " * 6], [whole]) == pytest.approx(reward(["it " * 6], [whole]), abs=1e-12)


def test_a_short_prompt_leaves_its_room_to_the_completion():
    reward = made(max_length=10)
    reader = reward.learner().reader
    [row] = reader.encode(["it"], ["good " * 30])
    assert (len(row.ids), row.begins) == (10, 1)
    [row] = reader.encode(["it " * 30], ["good"])
    assert (len(row.ids), row.begins) == (5 + 2, 5)


def test_a_pair_is_joined_with_the_tokenizers_own_marks():
    tokenizer = train_tokenizer(["the plot was dull"] * 4, 300, context=64, for_classifier=True)
    reward = Discriminator(
        kind="bidirectional", scratch=SCRATCH["bidirectional"], tokenizer=tokenizer, dtype="float64", max_length=12,
        max_completion_tokens=4,
    )  # fmt: skip
    pair = tokenizer("the plot", " was", return_token_type_ids=True, return_tensors="pt")
    model, _ = reward.network()
    with torch.no_grad():
        expected = model(**pair).logits[0, 0].sigmoid()
    assert reward(["the plot"], [" was"])[0] == pytest.approx(float(expected), abs=1e-12)
    [row] = reward.learner().reader.encode(["the plot was dull " * 9], ["dull " * 9])
    start = tokenizer.cls_token_id
    assert len(row.ids) == 12 and row.ids[0] == start and row.ids[7] == start and row.types == [0] * 7 + [1] * 5
    assert row.ids[1:7] == tokenizer("the plot was dull " * 9, add_special_tokens=False)["input_ids"][-6:]


def test_a_tokenizer_that_is_lent_is_not_changed_nor_the_global_random_numbers():
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    reward = made(tokenizer=tokenizer)
    reward(PROMPTS, COMPLETIONS)
    reward.update(PROMPTS, COMPLETIONS, ["fine"] * 5)
    assert tokenizer.padding_side == "left"
    assert torch.equal(torch.rand(2), expected)


def test_bfloat16_is_of_the_computations_while_it_learns():
    reward = made(dtype="bfloat16")
    full = made(dtype="float32")
    assert next(reward.network()[0].parameters()).dtype == torch.float32
    assert reward(PROMPTS, COMPLETIONS) != full(PROMPTS, COMPLETIONS)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(full(PROMPTS, COMPLETIONS), abs=0.02)
    figures = reward.update(PROMPTS, COMPLETIONS, ["fine"] * 5)
    assert math.isfinite(figures["loss"])


# Loaded, saved, carried


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_one_scores_alike_frozen_or_learning_on(kind, tmp_path):
    reward = made(kind, max_completion_tokens=3, dtype="float32")
    reward.update(PROMPTS, COMPLETIONS, ["fine film ."] * 5)
    scores = reward(PROMPTS, COMPLETIONS)
    reward.save_pretrained(tmp_path)
    for updates in (0, 2):
        loaded = Discriminator(str(tmp_path), updates=updates)
        assert loaded(PROMPTS, COMPLETIONS) == scores
        assert (loaded.kind, loaded.max_completion_tokens) == (kind, 3)
        before = loaded.log_scores(PROMPTS, COMPLETIONS)
        figures = loaded.update(PROMPTS, COMPLETIONS, ["fine film ."] * 5)
        assert ("grad_norm" in figures) == bool(updates)
        assert (loaded.log_scores(PROMPTS, COMPLETIONS) == before) == (not updates)
    half = Discriminator(str(tmp_path), updates=0, dtype="bfloat16")
    assert next(half.network()[0].parameters()).dtype == torch.bfloat16
    assert half(PROMPTS, COMPLETIONS) == pytest.approx(scores, abs=0.02)
    with pytest.raises(RewardError, match=f"is of kind '{kind}'"):
        Discriminator(str(tmp_path), kind="cnn" if kind == "causal" else "causal")(["it"], ["good"])


def test_a_pickle_carries_what_was_learned_and_only_that(tmp_path):
    tiny_causal_lm("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reward = Discriminator(str(tmp_path), learning_rate=1e-2)
    scores = reward(PROMPTS, COMPLETIONS)
    data = pickle.dumps(reward)
    assert len(data) < 2000 and pickle.loads(data)(PROMPTS, COMPLETIONS) == scores
    reward.update(PROMPTS, COMPLETIONS, ["fine"] * 5)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS) != scores
    more = (PROMPTS, COMPLETIONS, ["very fine"] * 5)
    assert copy.update(*more) == reward.update(*more)
    assert copy(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS)


def test_a_loaded_network_is_taken_as_it_is():
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=1,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    reward = Discriminator(model, kind="bidirectional", tokenizer=tiny_tokenizer(), updates=0)
    scores = reward(PROMPTS, COMPLETIONS)
    assert reward.network()[0] is model and not model.training
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, COMPLETIONS) == pytest.approx(scores)
    narrow = Discriminator(model.bfloat16(), kind="bidirectional", tokenizer=tiny_tokenizer())
    with pytest.raises(RewardError, match="too coarse"):
        narrow(PROMPTS, COMPLETIONS)


def test_a_new_output_that_will_not_learn_is_refused(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no trained classifier"):
        Discriminator(str(tmp_path), updates=0)(["it"], ["good"])


def test_where_nothing_is_trained_a_new_network_is_refused(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    on_backbone, new = Discriminator(str(tmp_path)), made()
    on_backbone.scores_only = new.scores_only = True
    with pytest.raises(ModelError, match="no trained classifier"):
        on_backbone(["it"], ["good"])
    with pytest.raises(RewardError, match="scratch is new, and its scores are random numbers; give a trained model"):
        new(["it"], ["good"])


def test_a_frozen_one_asks_for_no_references(tmp_path):
    made().save_pretrained(tmp_path)
    reward = Discriminator(str(tmp_path), updates=0)
    before = reward(PROMPTS, COMPLETIONS)
    assert reward.update(PROMPTS, COMPLETIONS, [None] * len(PROMPTS)) == {}
    assert reward(PROMPTS, COMPLETIONS) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give model"),
        ({"model": "a", "scratch": {}}, "not both"),
        ({"scratch": {}}, "need tokenizer"),
        ({"model": "a", "kind": "rnn"}, "kind is"),
        ({"model": "a", "of": "prompt"}, "of is"),
        ({"model": "a", "updates": -1}, "updates must be at least 0"),
        ({"model": "a", "replay_share": 1.0}, "replay_share"),
        ({"model": "a", "label_smoothing": 0.5}, "label_smoothing"),
        ({"model": "a", "dropout": 1.0}, "dropout must lie"),
        ({"model": "a", "learning_rate": 0.0}, "learning_rate"),
        ({"model": "a", "dtype": "float16"}, "cannot learn"),
        ({"model": "a", "max_completion_tokens": 0}, "at least 1"),
        ({"model": "a", "batch_size": 0}, "batch_size"),
        ({"scratch": {}, "tokenizer": "a", "updates": 0}, "random numbers"),
    ],
)
def test_settings_without_sense_are_refused_before_anything_loads(settings, words):
    with pytest.raises(RewardError, match=words):
        Discriminator(**settings)


def test_a_completion_that_leaves_no_room_for_a_prompt_is_refused():
    with pytest.raises(RewardError, match="leaves no room"):
        made(max_length=8, max_completion_tokens=8)(["it"], ["good"])
    alone = {"kind": "cnn", "of": "completion", "max_length": 8}
    made(**alone, max_completion_tokens=8)(["it"], ["good"])
    with pytest.raises(RewardError, match=r"max_completion_tokens=9 is more than is read: .* allow 8 tokens"):
        made(**alone, max_completion_tokens=9)(["it"], ["good"])


def test_it_scores_beginnings():
    assert isinstance(made(), PrefixReward) and isinstance(tiny_tokenizer(), PreTrainedTokenizerFast)
