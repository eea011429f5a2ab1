"""The names of weights' precisions: the full ones, the short ones that people write, and what they stand for."""

import torch

from alignkit.errors import ModelError
from alignkit.settings import did_you_mean

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {
    **{"fp64": "float64", "double": "float64", "fp32": "float32", "float": "float32"},
    **{"bf16": "bfloat16", "fp16": "float16", "half": "float16"},
}


def named_dtype(name: str | torch.dtype) -> torch.dtype:
    """The precision that a name stands for; one of torch's own is given back.

    Raises:
        ModelError: an unknown name.

    >>> named_dtype("bf16"), named_dtype("torch.float32")
    (torch.bfloat16, torch.float32)
    """
    if isinstance(name, torch.dtype):
        return name
    full = _SHORT.get(name.lower(), name.lower()).removeprefix("torch.")
    if full not in _DTYPES:
        known = [*_DTYPES, *_SHORT]
        raise ModelError(f"there is no precision {name!r}{did_you_mean(name, known, listing=len(known))}")
    return _DTYPES[full]
