"""What counts as a word, and as a reference, for the rewards that need no network."""

import re
from typing import Any

from alignkit.text import completion_text, is_conversational

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words("It's fine, REALLY fine.")
    ["it's", 'fine', 'really', 'fine']
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def references(value: Any) -> list[str]:
    """The reference texts of one row: a text, a message list, or several of them; none for None.

    >>> references("yes"), references(["yes", "sure"]), references(None)
    (['yes'], ['yes', 'sure'], [])
    """
    if value is None:
        return []
    if isinstance(value, str) or (is_conversational(value) and value):
        return [completion_text(value)]
    return [completion_text(item) for item in value if item is not None]
