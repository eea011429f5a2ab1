"""The synthetic oracle: a distribution, the one that it says, and the same for everybody."""

import itertools

import numpy as np
import pytest
import torch

from alignkit.data import load_data
from alignkit.errors import ConfigError, DataError
from alignkit.models.from_scratch import build_causal_lm
from alignkit.models.oracle import HIDDEN_SIZE, OracleLSTM


def test_the_probabilities_of_all_texts_sum_to_one():
    oracle = OracleLSTM(vocabulary=4, length=3, seed=5)
    every = np.array(list(itertools.product(range(4), repeat=3)))
    probabilities = np.exp(oracle.log_probs(every).sum(1))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    drawn = oracle.sample(20000, seed=1)
    counts = np.bincount(drawn @ [16, 4, 1], minlength=64)
    # each count is binomial: five standard deviations hold for 64 of them
    spread = np.sqrt(probabilities * (1 - probabilities) / 20000)
    assert np.all(np.abs(counts / 20000 - probabilities) < 5 * spread + 1e-4)


def test_it_computes_what_torchs_lstm_does():
    oracle = OracleLSTM(vocabulary=11, length=5, seed=2)
    network = torch.nn.LSTM(HIDDEN_SIZE, HIDDEN_SIZE, batch_first=True).double()
    order = [0, 1, 3, 2]  # torch has the candidate before the output gate

    def reordered(weight):
        parts = np.split(weight, 4, axis=-1)
        return torch.from_numpy(np.concatenate([parts[i] for i in order], axis=-1).T.copy())

    with torch.no_grad():
        network.weight_ih_l0.copy_(reordered(oracle.input_weight))
        network.weight_hh_l0.copy_(reordered(oracle.state_weight))
        network.bias_ih_l0.copy_(reordered(oracle.bias))
        network.bias_hh_l0.zero_()
    words = oracle.sample(7, seed=0)
    read = np.concatenate([np.zeros((7, 1), dtype=np.int64), words[:, :-1]], axis=1)
    states, _ = network(torch.from_numpy(oracle.embedding[read]))
    logits = states @ torch.from_numpy(oracle.output_weight) + torch.from_numpy(oracle.output_bias)
    expected = logits.log_softmax(-1).gather(2, torch.from_numpy(words)[:, :, None])[:, :, 0]
    assert oracle.log_probs(words) == pytest.approx(expected.detach().numpy(), abs=1e-10)


def test_a_seed_gives_these_weights_and_texts_on_every_machine():
    oracle = OracleLSTM()
    assert oracle.embedding[0, :3] == pytest.approx([1.764052345967664, 0.4001572083672233, 0.9787379841057392])
    weights = [oracle.embedding, oracle.input_weight, oracle.output_weight]
    assert abs(np.mean(np.concatenate([w.ravel() for w in weights]))) < 0.02
    assert np.std(oracle.input_weight) == pytest.approx(1.0, abs=0.02)
    assert oracle.text(oracle.sample(1, seed=[0, 1, 0])[0]) == FIRST_HELD_OUT
    assert np.array_equal(oracle.sample(3, seed=4), oracle.sample(8, seed=4)[:3])


FIRST_HELD_OUT = "w6 w52 w91 w29 w28 w75 w197 w126 w103 w73 w163 w63 w133 w119 w8 w112 w70 w124 w176 w130"


def test_the_data_are_samples_with_something_to_begin_from():
    data = load_data("oracle", train_size=30, validation_size=4, seed=1)
    assert data["train"].column_names == ["prompt", "reference"]
    assert data["validation"][0] == {"prompt": "<|endoftext|>", "reference": FIRST_HELD_OUT}
    other = load_data("oracle", train_size=30, validation_size=4, seed=2)
    assert other["train"]["reference"] != data["train"]["reference"]
    assert list(other["validation"]) == list(data["validation"]), "what is held out depends on no seed of the samples"
    assert not set(data["train"]["reference"]) & set(data["validation"]["reference"])
    few = load_data("oracle", train_size=5, validation_size=1, seed=1, prompt="<s>", vocabulary=9, length=3)
    assert {len(text.split()) for text in few["train"]["reference"]} == {3} and set(few["train"]["prompt"]) == {"<s>"}


@pytest.mark.parametrize("wrong", [{"vocabulary": 1}, {"length": 0}, {"oracle_seed": -1}, {"prompt": " "}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(DataError, match=rf"{next(iter(wrong))} must be"):
        load_data("oracle", **wrong)
    with pytest.raises(ConfigError, match="vocabulary of at least 2"):
        OracleLSTM(vocabulary=1)


def test_a_model_of_words_reads_and_writes_exactly_these_words():
    data = load_data("oracle", vocabulary=30, length=6, train_size=400, validation_size=20)
    texts = [row["prompt"] + row["reference"] for row in data["train"]]
    spec = {"architecture": "lstm", "hidden_size": 16, "layers": 1, "tokenizer": "words", "context": 12}
    model, tokenizer = build_causal_lm(spec, texts)
    words = {word for text in data["train"]["reference"] for word in text.split()}
    assert set(tokenizer.get_vocab()) == words | {"<|pad|>", "<|endoftext|>", "<|unknown|>"}
    assert model.config.vocab_size == len(words) + 3
    ids = tokenizer(texts[0]).input_ids
    assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id and len(ids) == 7
    assert tokenizer.decode(ids, skip_special_tokens=True) == data["train"][0]["reference"]
    assert tokenizer.decode(tokenizer("w0 w999 w1").input_ids, skip_special_tokens=True) == "w0 w1"
