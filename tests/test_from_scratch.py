"""New small models: their tokenizers, their shapes, and that they learn the quickstart's text."""

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data import load_data
from alignkit.data.grammar import RULES
from alignkit.errors import ModelError
from alignkit.models.from_scratch import build_causal_lm, build_classifier, spec_problems, train_tokenizer
from alignkit.models.loading import load_causal_or_seq2seq, load_classifier, load_tokenizer

TEXTS = ["The acting was wonderful.", "The plot was dull, and we left.", "We had soup by the lake."] * 5
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "context": 32, "vocab_size": 300}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(deadline=None, max_examples=80)
def test_a_tokenizer_writes_back_any_text(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids, clean_up_tokenization_spaces=False) == text


TOKENIZER = train_tokenizer(TEXTS, 300, context=32)


def test_a_language_models_tokenizer_pads_left_and_ends_with_a_token_of_its_own():
    assert TOKENIZER.padding_side == "left" and TOKENIZER.model_max_length == 32
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    batch = TOKENIZER(["We had", "We had soup by the lake."], padding=True)
    assert batch.input_ids[0][0] == TOKENIZER.pad_token_id and batch.attention_mask[0][0] == 0
    assert TOKENIZER.eos_token_id not in batch.input_ids[1]


def test_a_classifiers_tokenizer_pads_right_and_reads_a_completion_like_a_sentence():
    tokenizer = train_tokenizer(TEXTS, 300, context=32, for_classifier=True)
    batch = tokenizer(["The plot", " The plot", "The acting was wonderful."], padding=True)
    assert batch.input_ids[0] == batch.input_ids[1]
    assert batch.input_ids[0][0] == tokenizer.cls_token_id and batch.input_ids[0][-1] == tokenizer.pad_token_id


def test_merges_come_from_the_texts():
    few, many = (train_tokenizer(TEXTS, size, context=32) for size in (260, 330))
    assert len(few) == 260 and len(few(TEXTS[0]).input_ids) > len(many(TEXTS[0]).input_ids)
    assert train_tokenizer(TEXTS, 330, context=32).get_vocab() == many.get_vocab()


def test_without_texts_there_is_no_tokenizer():
    with pytest.raises(ModelError, match="there is none"):
        build_causal_lm({}, ["", "  "])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_new_language_model_is_as_specified_and_seeded(architecture, tmp_path):
    spec = {**SMALL, "architecture": architecture, "layers": 3, "seed": 5}
    model, tokenizer = build_causal_lm(spec, TEXTS)
    assert model.config.num_hidden_layers == 3 and model.config.vocab_size == len(tokenizer) == 300
    assert model.config.max_position_embeddings == 32 and not model.training
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    torch.manual_seed(123)
    again, _ = build_causal_lm(spec, TEXTS)
    other, _ = build_causal_lm({**spec, "seed": 6}, TEXTS)
    weights, same, different = (next(iter(m.parameters())) for m in (model, again, other))
    assert torch.equal(weights, same) and not torch.equal(weights, different)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_causal_or_seq2seq(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert load_tokenizer(tmp_path)(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids


def test_building_a_model_leaves_the_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_causal_lm(SMALL, TEXTS)
    assert torch.equal(torch.rand(3), expected)


def test_a_new_classifier_names_its_classes_and_survives_saving(tmp_path):
    model, tokenizer = build_classifier(SMALL, TEXTS, id2label={0: "dull", 1: "fair", 2: "fine"})
    assert model.config.id2label == {0: "dull", 1: "fair", 2: "fine"} and model.num_labels == 3
    assert build_classifier(SMALL, TEXTS)[0].config.id2label == {0: "negative", 1: "positive"}
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, read = load_classifier(tmp_path)
    batch = read(TEXTS[:3], return_tensors="pt", padding=True)
    torch.testing.assert_close(
        loaded(**batch).logits, model(**tokenizer(TEXTS[:3], return_tensors="pt", padding=True)).logits
    )


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ({"hiden_size": 8}, "causal", "did you mean 'hidden_size'"),
        ({"architecture": "gpt3"}, "causal", "'gpt2' or 'llama'"),
        ({"hidden_size": 10, "heads": 4}, "causal", "10 is no multiple of heads 4"),
        ({"hidden_size": 12, "heads": 4, "architecture": "llama"}, "causal", "rotary positions need an even"),
        ({"layers": 0}, "classifier", "layers must be at least 1"),
        ({"vocab_size": 100}, "classifier", "vocab_size must be at least 259"),
        ({"context": 1}, "causal", "context must be at least 2"),
        ({"dropout": 1.0}, "causal", r"dropout must lie in \[0, 1\)"),
        ({"architecture": "gpt2"}, "classifier", "a new classifier has no setting 'architecture'"),
    ],
)
def test_a_specification_that_cannot_be_built_is_explained(spec, kind, said):
    (problem,) = spec_problems(spec, kind)
    assert re.search(said, problem)
    with pytest.raises(ModelError, match=said):
        (build_causal_lm if kind == "causal" else build_classifier)(spec, TEXTS)


def test_all_mistakes_of_a_specification_are_found_at_once():
    assert len(spec_problems({"hidden_size": "big", "layrs": 2}, "causal")) == 2
    assert len(spec_problems({"layers": 0, "context": 0, "dropout": -1}, "classifier")) == 3
    assert spec_problems({}, "causal") == spec_problems(SMALL, "classifier") == []


def train(model, batches, learning_rate):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    model.train()
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def test_a_tiny_classifier_learns_the_polarity_of_held_out_reviews():
    data = load_data("quickstart", form="classification", train_size=2560, validation_size=400)
    torch.manual_seed(0)
    texts, labels = list(data["train"]["text"]), list(data["train"]["label"])
    model, tokenizer = build_classifier({"context": 64}, texts)
    batches = [
        tokenizer(texts[i : i + 32], return_tensors="pt", padding=True) | {"labels": torch.tensor(labels[i : i + 32])}
        for i in range(0, len(texts), 32)
    ]
    train(model, batches, 2e-3)
    held = data["validation"]
    with torch.no_grad():
        said = model(**tokenizer(list(held["text"]), return_tensors="pt", padding=True)).logits.argmax(-1)
    assert (said == torch.tensor(held["label"])).float().mean() > 0.95


def pattern(rule):
    slots = r"\\\{(\w+)\\\}"
    return "(?:" + "|".join(re.sub(slots, lambda slot: pattern(slot[1]), re.escape(line)) for line in RULES[rule]) + ")"


@pytest.mark.slow
def test_a_tiny_language_model_writes_the_grammar_with_half_of_it_positive():
    """The exact test of fluency: whole completions, polarity kept from word to word, are in the grammar's language."""
    data = load_data("quickstart", form="text", train_size=12800)
    texts = list(data["train"]["text"])
    model, tokenizer = build_causal_lm({"context": 64}, texts)
    assert model.num_parameters() < 1_000_000
    rng = random.Random(0)
    rng.shuffle(texts)
    batches = []
    for start in range(0, len(texts), 16):
        part = [text + tokenizer.eos_token for text in texts[start : start + 16]]
        batch = tokenizer(part, return_tensors="pt", padding=True)
        batches.append({**batch, "labels": batch.input_ids.masked_fill(batch.attention_mask == 0, -100)})
    train(model, batches, 4e-3)
    prompts = list(load_data("quickstart", validation_size=300)["validation"]["prompt"])
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    written = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=36)[:, batch.input_ids.shape[1] :]
    completions = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert (written == tokenizer.eos_token_id).any(-1).float().mean() > 0.97
    aside = f"(?: (?:{pattern('film_aside')}|{pattern('meal_aside')}))?"
    shares = {}
    for side, end in (("positive", "praise"), ("negative", "blame")):
        whole = re.compile(f"{aside} (?:{pattern(f'film_{side}')}|{pattern(f'meal_{side}')})(?: {pattern(end)})?")
        shares[side] = sum(bool(whole.fullmatch(text)) for text in completions) / len(completions)
    assert shares["positive"] + shares["negative"] > 0.75, shares
    assert 0.35 < shares["positive"] / sum(shares.values()) < 0.65, shares


def test_a_mark_in_a_text_is_one_token_and_teaches_nothing():
    marked = [f"<|endoftext|>{text}" for text in TEXTS]
    tokenizer, plain = train_tokenizer(marked, 330, context=32), train_tokenizer(TEXTS, 330, context=32)
    assert tokenizer.get_vocab() == plain.get_vocab()
    ids = tokenizer(marked[0]).input_ids
    assert ids == [tokenizer.bos_token_id, *plain(TEXTS[0]).input_ids]


def test_a_tokenizer_of_words_keeps_the_most_frequent_and_survives_saving(tmp_path):
    spec = {**SMALL, "tokenizer": "words", "vocab_size": 6}
    model, tokenizer = build_causal_lm(spec, ["b a c a", "a b", "d b a"])
    assert set(tokenizer.get_vocab()) - {"<|pad|>", "<|endoftext|>", "<|unknown|>"} == {"a", "b", "c"}
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    read = load_tokenizer(tmp_path)
    assert read("a d\nb").input_ids == [read.vocab["a"], read.unk_token_id, read.vocab["b"]]
    assert read.decode(read("c  b a").input_ids, skip_special_tokens=True) == "c b a"
    assert "at least 4" in spec_problems({"tokenizer": "words", "vocab_size": 3}, "causal")[0]
    assert "bytes and marks" in spec_problems({"vocab_size": 100}, "causal")[0]
    assert spec_problems({"tokenizer": "words", "vocab_size": 100}, "causal") == []
