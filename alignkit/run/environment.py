"""What a run runs in: versions, machine, processes (for `environment.json` and `alignkit env`), and quiet hosts."""

import importlib.metadata
import logging
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from alignkit.errors import ConfigError

PACKAGES = (
    "alignkit",
    "alignkit-rewards",
    "torch",
    "trl",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "evaluate",
    "bitsandbytes",
    "vllm",
    "deepspeed",
    "tokenizers",
    "safetensors",
    "numpy",
)
VARIABLES = (
    "ALIGNKIT_DATA",
    "ALIGNKIT_MODELS",
    "ALIGNKIT_NUM_PROCESSES",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
_SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


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
    # TRL reads it at every rollout; transformers has renamed it and still answers
    warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def check_processes() -> int:
    """How many processes train together, once it is certain that they are as many, and as sharded, as was asked for.

    A launcher that starts fewer than it was asked for would silently train with a smaller batch. `accelerate launch
    --num_processes 2` does so with `--cpu`, and without a GPU unless `--multi_gpu` or a launch file of type MULTI_GPU,
    FSDP or DEEPSPEED makes it start them as torchrun does. It starts one process, tells it where to meet the others
    (MASTER_PORT), which it does only when it was asked for several, and tells it nothing of their number (WORLD_SIZE).
    And without an accelerator it passes over FSDP and DeepSpeed: each process would hold everything.

    Raises:
        ConfigError: ALIGNKIT_NUM_PROCESSES or the launcher's WORLD_SIZE names another number, accelerate was asked
            for several processes and started one, or for FSDP or DeepSpeed and gives none.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    state = PartialState()
    actual = state.num_processes
    for name in ("ALIGNKIT_NUM_PROCESSES", "WORLD_SIZE"):
        asked = os.environ.get(name)
        if not asked:
            continue
        if not asked.isdigit() or int(asked) < 1:
            raise ConfigError(f"{name}={asked!r}: expected a whole number of processes")
        if int(asked) != actual:
            raise ConfigError(
                f"{name} asks for {asked} processes, but {actual} {'is' if actual == 1 else 'are'} running; start them "
                f"with torchrun --nproc_per_node {asked} -m alignkit train ..., or accelerate launch with "
                "recipes/accelerate/ddp.yaml and without --cpu (training.use_cpu=true is for CPUs where there are GPUs)"
            )
    alone = actual == 1 and not any(os.environ.get(name) for name in ("WORLD_SIZE", "ALIGNKIT_NUM_PROCESSES"))
    # ACCELERATE_USE_CPU is set by that launcher of accelerate's alone, the one that starts a single process
    if alone and "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes, but started one, as it does with --cpu, and without a "
            "GPU unless a launch file of distributed_type MULTI_GPU (recipes/accelerate/ddp.yaml) or --multi_gpu says "
            "otherwise. Launch with that file and without --cpu, or with torchrun --nproc_per_node N -m alignkit train "
            "... (training.use_cpu=true is for CPUs where there are GPUs). If one is what you want, set "
            "ALIGNKIT_NUM_PROCESSES=1"
        )
    for name, sharding in _SHARDING.items():
        asked = os.environ.get(name, "")
        if asked.lower() == "true" and state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
            raise ConfigError(
                f"{name}={asked} (from accelerate's launch file) asks for {sharding}, but this process trains on "
                f"{state.device.type}, where accelerate shards nothing: each process would hold all weights and the "
                "whole optimiser. Launch it on GPUs, or without sharding: torchrun --nproc_per_node "
                f"{actual} -m alignkit train ... (on a CPU with training.use_cpu=true)"
            )
    return actual


def describe_environment() -> dict[str, Any]:
    """Versions, machine, accelerators and the variables that alignkit and its hosts read."""
    import torch
    from accelerate import PartialState

    from alignkit.registry import available_rewards

    entries = available_rewards()
    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "device": str(PartialState().device),
        "num_processes": PartialState().num_processes,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "rewards": [f"{entry.name} ({entry.distribution} {entry.version})" for entry in entries if not entry.error],
        "broken_rewards": [f"{entry.name}: {entry.error}" for entry in entries if entry.error],
    }


def environment_lines(environment: dict[str, Any]) -> list[str]:
    """The same for people, a line each."""
    lines = [f"{name:<18}{version}" for name, version in environment["packages"].items()]
    for key in ("python", "platform", "processor", "cpu_count", "threads", "memory_gib", "device", "num_processes"):
        lines.append(f"{key:<18}{environment[key]}")
    lines.append(f"{'accelerators':<18}{', '.join(environment['accelerators']) or 'none'}")
    lines += [f"{name:<18}{value}" for name, value in environment["variables"].items()]
    lines += [f"{'reward':<18}{reward}" for reward in environment["rewards"]]
    lines += [f"{'broken reward':<18}{reward}" for reward in environment["broken_rewards"]]
    return lines


def command_line() -> list[str]:
    """How this process was started, the program by its name only."""
    return [os.path.basename(sys.argv[0]), *sys.argv[1:]] if sys.argv else []


def launched(words: Iterable[str], processes: int, program: str = "alignkit") -> str:
    """The command of these words, behind the launcher that started this process where several train together.

    Args:
        words: behind the program's name.
        processes: that train together.
        program: what starts one process.

    >>> launched(["train", "mine.yaml"], 1)
    'alignkit train mine.yaml'
    """
    if processes > 1:
        # accelerate leaves no word of its launch file or its options
        by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
        launcher = (
            "accelerate launch (with the same settings)" if by_accelerate else f"torchrun --nproc_per_node {processes}"
        )
        program = f"{launcher} -m alignkit"
    return f"{program} {shlex.join(words)}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
