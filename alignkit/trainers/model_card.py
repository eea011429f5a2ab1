"""The host's model card, with a true sentence where it knows no published model to name as the base, and a quick start
that fits a model without a chat template.

The host takes the base from the model's configuration and has nothing to say of one that was built from scratch or in
Python, or loaded from a local folder: it calls all of them `None`, and so a model that is not on the hub.
"""

import re
from pathlib import Path
from typing import Any

from alignkit.models.locating import is_run
from alignkit.whole_files import write_text

_BASE = re.compile(r"This model is a fine-tuned version of \[None\]\(https://huggingface\.co/None\)")
_PLACE = 'model="None"'
# TRL asks every model a chat question; one without a template raises on messages.
_QUESTION = re.compile(r'^question = ".*"$', re.MULTILINE)
_MESSAGES = '[{"role": "user", "content": question}]'
_PROMPT, _PLAIN = 'prompt = "The film was"', "prompt"
# in the metadata of every card that TRL and transformers write
HOSTS_MARK = "generated_from_trainer"


class ModelCardMixin:
    """A trainer of TRL or transformers whose model card names the model it started from, or says it has no name."""

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """As the host's, written to `README.md` in `output_dir`."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        if self.is_world_process_zero():
            file = Path(self.args.output_dir, "README.md")
            base = getattr(self.model.config, "_name_or_path", "")
            chats = getattr(self.processing_class, "chat_template", None) is not None
            write_text(file, truthful(file.read_text(encoding="utf-8"), base, chats=chats))


def truthful(card: str, base: str, *, chats: bool = True) -> str:
    """The card, with what it says of a model `None` replaced, and the chat question where there is no chat.

    Args:
        card: the host's.
        base: folder that the model was loaded from; empty for one that was built.
        chats: whether the tokenizer has a chat template.

    >>> truthful("This model is a fine-tuned version of [None](https://huggingface.co/None).", "models/small-lm")
    'This model is a fine-tuned version of `small-lm`, a model in a local folder.'
    """
    if not chats:
        card = _QUESTION.sub(_PROMPT, card).replace(_MESSAGES, _PLAIN)
    name = local_name(base)
    if name:
        true = f"This model is a fine-tuned version of `{name}`, a model in a local folder"
    else:
        true = "This model was trained from a model without a name (built from scratch, or in Python)"
    return _BASE.sub(lambda found: true, card).replace(_PLACE, 'model="path/to/this/model"')


def local_name(folder: str | Path) -> str:
    """What to call a model in a folder, without saying where on this machine it lies.

    >>> local_name("/data/ann/small-lm")
    'small-lm'
    """
    folder = Path(folder)
    # a run's model is always called `model`: the run's name says more
    return "/".join(folder.parts[-2:]) if is_run(folder.parent) else folder.name
