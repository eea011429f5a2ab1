"""The host's model card, with a true sentence where it knows no published model to name as the base.

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


class ModelCardMixin:
    """A trainer of TRL or transformers whose model card names the model it started from, or says it has no name."""

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """As the host's, written to `README.md` in `output_dir`."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        if self.is_world_process_zero():
            file = Path(self.args.output_dir, "README.md")
            base = getattr(self.model.config, "_name_or_path", "")
            write_text(file, truthful(file.read_text(encoding="utf-8"), base))


def truthful(card: str, base: str) -> str:
    """The card, with what it says of a model `None` replaced.

    Args:
        card: the host's.
        base: folder that the model was loaded from; empty for one that was built.

    >>> truthful("This model is a fine-tuned version of [None](https://huggingface.co/None).", "models/small-lm")
    'This model is a fine-tuned version of `small-lm`, a model in a local folder.'
    """
    folder = Path(base)
    # a run's model is always called `model`: the run's name says more
    name = "/".join(folder.parts[-2:]) if is_run(folder.parent) else folder.name
    if name:
        true = f"This model is a fine-tuned version of `{name}`, a model in a local folder"
    else:
        true = "This model was trained from a model without a name (built from scratch, or in Python)"
    return _BASE.sub(lambda found: true, card).replace(_PLACE, 'model="path/to/this/model"')
