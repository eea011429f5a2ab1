"""New tokenizers, trained on the texts at hand, for models from scratch."""

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alignkit.errors import ModelError

PAD, END, START, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|start|>", "<|unknown|>"
_MARKS = re.compile("|".join(map(re.escape, (PAD, END, START, UNKNOWN))))


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, context: int, *, for_classifier: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al., 2016, on bytes) trained on the texts: it can write any text.

    For a language model it pads on the left and has an end token distinct from its pad token. For a classifier it pads
    on the right, puts a start token in front, and reads a text alike with and without a space before it. The text of
    such a token, in a prompt that begins with one, is read as that token; nothing is learned from it.

    Args:
        texts: what to learn the merges from.
        vocab_size: at most so many tokens.
        context: longest sequence of the model, in tokens.
        for_classifier: see above.

    Raises:
        ModelError: there is no text.
    """
    corpus = _corpus(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=for_classifier)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [PAD, START] if for_classifier else [PAD, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=marks,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    own: dict[str, Any] = {"eos_token": END, "bos_token": END, "padding_side": "left"}
    if for_classifier:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A",
            pair=f"{START} $A {START}:1 $B:1",
            special_tokens=[(START, tokenizer.token_to_id(START))],
        )
        own = {"cls_token": START, "padding_side": "right"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, model_max_length=context, **own)


def train_word_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of the texts, as they stand between spaces: the most frequent ones.

    It pads on the left, has an end token, and reads any other word as an unknown one, which it writes as nothing.

    Args:
        texts: whose words the tokenizer knows.
        vocab_size: at most so many tokens, three of which are marks.
        context: longest sequence of the model, in tokens.

    Raises:
        ModelError: there is no text.

    >>> tokenizer = train_word_tokenizer(["w3 w12", "w3 w0"], 100, context=8)
    >>> len(tokenizer), tokenizer.decode(tokenizer("w12 w3").input_ids)
    (6, 'w12 w3')
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=[PAD, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(_corpus(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        bos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=context,
    )


def _corpus(texts: Iterable[str]) -> list[str]:
    """The texts without the marks that stand in them, which are tokens already."""
    corpus = [part for text in texts for part in _MARKS.split(text) if part.strip()]
    if not corpus:
        raise ModelError("a tokenizer is trained on texts, and there is none; give the texts of the training data")
    return corpus
