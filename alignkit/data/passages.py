"""A text cut at the ends of its sentences, to trim what a model reads."""

import re
from itertools import pairwise

# An end mark, closing quotes and brackets, a space, and what a sentence begins with.
_END = re.compile(r"[.!?]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
# After these a full stop ends no sentence; neither does one after a single capital letter, as in initials.
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Lt|Sgt|Rev|Jr|Sr|No|Vol|Fig|Eq|Sec|vs|cf|al|ca|approx|e\.g|i\.e)"
    r"|(?:^|[\s.(])[A-Z])\.\s+$"
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends, in characters; the spaces between sentences belong to the former one.

    >>> sentence_spans("Dr. Ann left. He stayed.")
    [(0, 14), (14, 24)]
    """
    ends = [match.end() for match in _END.finditer(text) if not _ABBREVIATION.search(text[: match.end()])]
    bounds = [0, *ends, len(text)]
    return [(begin, end) for begin, end in pairwise(bounds) if begin < end]


def around(text: str, begin: int, end: int, sentences: int) -> tuple[int, int]:
    """The span of the sentences that hold characters `begin` to `end`, and of `sentences` more on either side.

    >>> text = "One. Two. Three. Four."
    >>> first, last = around(text, 10, 15, 1)
    >>> text[first:last]
    'Two. Three. Four.'
    """
    spans = sentence_spans(text)
    holding = [i for i, (first, last) in enumerate(spans) if first < end and begin < last]
    low, high = max(holding[0] - sentences, 0), min(holding[-1] + sentences, len(spans) - 1)
    return spans[low][0], spans[high][1]


def beginning(text: str, words: int) -> str:
    """As many whole sentences from the beginning as have at most so many words; at least the first so many words.

    >>> beginning("One two. Three four five. Six.", 5), beginning("One two three four.", 2)
    ('One two. Three four five.', 'One two')
    """
    kept = 0
    for _, end in sentence_spans(text):
        if len(text[:end].split()) > words:
            break
        kept = end
    return text[:kept].strip() or " ".join(text.split()[:words])
