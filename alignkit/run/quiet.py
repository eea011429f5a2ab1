"""Keeps the host libraries from talking over a run's own output, and from calling home."""

import logging
import os
import warnings


def quiet_hosts() -> None:
    """No telemetry, no loading bars, no notices that ask nothing of the user. Warnings about the run itself stay."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
