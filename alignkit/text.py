"""Dialogue to string and completion to string.

TRL passes prompts and completions either as plain strings or as lists of messages
(`[{"role": "user", "content": "Hello"}]`). Everything that reads text goes through these few functions, so that a
reward, a metric and a report see the same words.
"""

from typing import Any

Message = dict[str, Any]
Text = str | list[Message]


def is_conversational(value: Any) -> bool:
    """Whether `value` is a list of messages, each a mapping with a `role`.

    >>> is_conversational([{"role": "user", "content": "Hello"}]), is_conversational("Hello")
    (True, False)
    """
    return isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value)


def _content(message: Message) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def completion_text(completion: Text) -> str:
    """The words of a completion, whatever its form.

    >>> completion_text([{"role": "assistant", "content": "Fine."}])
    'Fine.'
    """
    if isinstance(completion, str):
        return completion
    if is_conversational(completion):
        return "\n".join(_content(message) for message in completion)
    raise TypeError(f"a completion is a string or a list of messages, got {type(completion).__name__}")


def prompt_text(prompt: Text) -> str:
    """The words of a prompt; messages become `role: content` lines.

    >>> prompt_text([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}])
    'user: Hello\\nassistant: Hi'
    """
    if isinstance(prompt, str):
        return prompt
    if is_conversational(prompt):
        return "\n".join(f"{message['role']}: {_content(message)}" for message in prompt)
    raise TypeError(f"a prompt is a string or a list of messages, got {type(prompt).__name__}")


def last_turn(prompt: Text) -> str:
    """What was said last before the completion: the last message, or the last line of a plain prompt.

    >>> last_turn("Hello.\\nHow are you?\\n")
    'How are you?'
    >>> last_turn([{"role": "user", "content": "Hello"}])
    'Hello'
    """
    if isinstance(prompt, str):
        return next((line.strip() for line in reversed(prompt.splitlines()) if line.strip()), "")
    if is_conversational(prompt):
        return _content(prompt[-1]) if prompt else ""
    raise TypeError(f"a prompt is a string or a list of messages, got {type(prompt).__name__}")


def joined_text(prompt: Text, completion: Text) -> str:
    """Prompt and completion as one text: concatenated when plain, as lines of dialogue when conversational.

    >>> joined_text("The film was", " good.")
    'The film was good.'
    """
    if isinstance(prompt, str):
        return prompt + completion_text(completion)
    return prompt_text(prompt) + "\nassistant: " + completion_text(completion)


def excerpt(text: Text, length: int = 80) -> str:
    """The beginning of a text on one line, for error messages and tables.

    >>> excerpt("one\\ntwo three", 8)
    'one two…'
    """
    flat = " ".join((text if isinstance(text, str) else prompt_text(text)).split())
    return flat if len(flat) <= length else flat[: length - 1].rstrip() + "…"
