"""A completion goes on from its prompt: joined, they are what the tokens say, also where SentencePiece wrote."""

import os

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignkit import DAS, MCTS, BestOfN
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import decode_completions, encode_prompts, pad_left
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.held_out import generate_rows
from alignkit.models.loading import load_tokenizer
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq

WORDS = ["<pad>", "<eos>", "<unk>", "▁once", "▁upon", "▁a", "▁time", "s", "\n"]


def like_llama() -> PreTrainedTokenizerFast:
    """Words that carry the blank before them, which decoding drops at the beginning of a text."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def ids_of(*words: str) -> list[int]:
    return [WORDS.index(word) for word in words]


@pytest.mark.parametrize(
    ("prompt", "words", "text"),
    [
        ("once", ("▁upon", "▁a", "<eos>"), " upon a"),
        ("once", ("<eos>", "▁upon"), " upon"),
        ("once", ("s", "▁upon"), "s upon"),
        ("once\n", ("▁upon",), "upon"),
        ("once ", ("▁upon",), "upon"),
        ("<eos>", ("▁once", "▁upon"), "once upon"),
        ("", ("▁once",), "once"),
        ("once", ("<eos>",), ""),
        ("once", (), ""),
        ("once", ("\n", "▁a"), "\n a"),
    ],
)
def test_the_blank_before_the_first_word_is_kept_where_a_word_stands_before_it(prompt, words, text):
    tokenizer = like_llama()
    assert decode_completions(tokenizer, [ids_of(*words)], False, [prompt]) == [text]
    plain = decode_completions(tokenizer, [ids_of(*words)], False)
    assert plain == [text.removeprefix(" ")]  # an encoder-decoder begins a text of its own
    message = decode_completions(tokenizer, [ids_of(*words)], True, [[{"role": "user", "content": prompt}]])
    assert message == [[{"role": "assistant", "content": plain[0]}]]


def test_joined_they_are_what_the_tokens_say():
    tokenizer = like_llama()
    whole = ids_of("▁once", "▁upon", "▁a", "s", "▁time")
    for border in range(1, 5):
        given = tokenizer.decode(whole[:border])
        [text] = decode_completions(tokenizer, [whole[border:]], False, [given])
        assert given + text == tokenizer.decode(whole)


def like(vocabulary: list[str], decoder=None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    ("vocabulary", "decoder", "prompt", "ids", "text"),
    [
        (["<unk>", "the", "match", "##es"], None, "the", [2, 1], " match the"),
        (["<unk>", "the", "match", "##es"], None, "unheard", [2, 1], " match the"),
        (["<unk>", "the", "match", "##es"], None, "unheard", [0, 0], ""),
        (["<unk>", "the", "match", "##es"], decoders.WordPiece(), "match", [1, 2, 3], " the matches"),
        (["<unk>", "the", "match", "##es"], decoders.WordPiece(), "match", [3, 1], "es the"),
        (["<unk>", "▁once", "▁▁", "s"], decoders.Metaspace(), "once", [2, 3], "  s"),
    ],
)
def test_a_word_that_follows_is_written_as_the_tokenizer_says(vocabulary, decoder, prompt, ids, text):
    assert decode_completions(like(vocabulary, decoder), [ids], False, [prompt]) == [text]


def test_pieces_that_end_words_are_parted_from_the_word_before():
    """OpenAI's first GPT marks ends: the blank stands behind a word, however many pieces the next one has."""
    tokenizer = Tokenizer(
        models.BPE({"t": 0, "o</w>": 1, "to</w>": 2, "g": 3}, [("t", "o</w>")], end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    gpt = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert decode_completions(gpt, [[3, 1, 2], [2]], False, ["to", "to"]) == [" go to", " to"]


def test_a_tokenizer_that_writes_its_blanks_is_left_alone():
    tokenizer = Tokenizer(models.WordLevel({"Ġgood": 0, "good": 1, ".": 2}, unk_token="."))
    tokenizer.decoder = decoders.ByteLevel()
    like_gpt2 = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made = decode_completions(like_gpt2, [[0, 2], [1], [2, 0]], False, ["a", "a", "a"])
    assert made == [" good.", "good", ". good"]


def seen_by(use, model) -> list[str]:
    """What a reward reads of the completions."""
    tokenizer, read = like_llama(), []

    def watch(prompts, completions, **columns):
        read.extend(text for text in completions if text.strip() and text[:1] not in "s\n")
        return [0.5] * len(completions)

    config = generation_config_for(model, tokenizer, max_new_tokens=4)
    torch.manual_seed(0)
    if use == "rows":
        generate_rows(
            model, tokenizer, [{"prompt": "once"}] * 24, reward_funcs=[watch], with_kl=False, generation_config=config,
            decoder=SamplingDecoder(),
        )  # fmt: skip
        return read
    decoder = {
        "best_of_n": lambda: BestOfN(watch, tokenizer, 2),
        "mcts": lambda: MCTS(watch, tokenizer, simulations=4, value="rollout", rollout_temperature=1.0),
        "das": lambda: DAS(watch, tokenizer, sample=True),
    }[use]()
    ids, mask = pad_left(encode_prompts(tokenizer, ["once"] * 24), tokenizer.pad_token_id)
    config.return_dict_in_generate = True
    out = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=decoder, prompts=["once"] * 24
    )
    groups = out.candidate_completions if use == "best_of_n" else [out.completions]
    texts = [text for group in groups for text in group]
    return [*read, *(text for text in texts if text.strip() and text[:1] not in "s\n")]


@pytest.mark.parametrize("use", ["rows", "best_of_n", "mcts", "das"])
def test_rewards_read_it_so_everywhere(use):
    texts = seen_by(use, tiny_causal_lm(vocab_size=len(WORDS)))
    assert len(texts) > 2 and all(text.startswith(" ") for text in texts)
    texts = seen_by(use, tiny_seq2seq(vocab_size=len(WORDS)))
    assert len(texts) > 2 and not any(text.startswith(" ") for text in texts)


@pytest.mark.skipif(not os.environ.get("ALIGNKIT_MODELS"), reason="needs stories260K in ALIGNKIT_MODELS")
def test_with_a_tokenizer_of_llama():
    tokenizer = load_tokenizer("stories260K")
    ids = tokenizer("Once upon a time", add_special_tokens=False).input_ids
    assert decode_completions(tokenizer, [ids[1:]], False, ["Once"]) == [" upon a time"]
