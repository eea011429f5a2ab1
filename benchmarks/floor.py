"""The machine's floor: how fast it multiplies and copies, and how long the job's multiplications alone would take.

    python benchmarks/floor.py --size S --precision fp32 --epochs 4

Nothing that computes the same can be faster, whatever language it is written in.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from job import LONGEST_PROMPT, SHORTEST_PROMPT, SIZES, Job, changed
from torch.nn import functional as F

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHUNK = 256


def shapes(job: Job) -> dict[str, tuple[int, int, int]]:
    """The job's matrix products (rows, inner, columns), by where they occur."""
    tokens = job.batch * (mean_prompt() + job.new_tokens - 1)
    return {
        "trunk": (tokens, job.width, 4 * job.width),
        "head": (min(CHUNK, job.batch * job.new_tokens), job.width, job.vocabulary),
        "sampling_trunk": (job.batch, job.width, 4 * job.width),
        "sampling_head": (job.batch, job.width, job.vocabulary),
    }


def mean_prompt() -> int:
    """Tokens of a prompt, on average: padding is no work that has to be done."""
    return (SHORTEST_PROMPT + LONGEST_PROMPT) // 2


def work(job: Job) -> dict[str, float]:
    """Floating-point operations of a step, by the shape of product that does them.

    One shared trunk; old log-probabilities come from sampling; logits at answer positions only; of the last block, the
    prompt's positions need keys and values alone.
    """
    prompt, new = mean_prompt(), job.new_tokens
    length = prompt + new - 1
    whole_block, keys_and_values = 24 * job.width**2, 4 * job.width**2

    def blocks(first: int, last: int, read: int) -> float:
        """Forward of the columns [first, last) of one answer, of which the last `read` are read."""
        attention = sum(4 * (column + 1) * job.width for column in range(first, last))
        full = (job.layers - 1) * ((last - first) * whole_block + attention)
        tail = sum(4 * (column + 1) * job.width for column in range(last - read, last))
        return full + read * whole_block + (last - first - read) * keys_and_values + tail

    head = 2 * job.width * job.vocabulary * new
    forward = blocks(0, length, new)
    return {
        "trunk": job.batch * (blocks(0, prompt, 1) + forward * (1 + 3 * job.epochs)),  # prompts, reference, updates
        "head": job.batch * head * (1 + 3 * job.epochs),
        "sampling_trunk": job.batch * blocks(prompt, length, new - 1),
        "sampling_head": job.batch * head,
    }


def best_seconds(function: Callable[[], Any], repeats: int = 30) -> float:
    """CPU seconds of the cheapest of some calls: what others do on the machine counts as little as it can."""
    function()
    spans = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        spans.append(time.process_time() - started)
    return min(spans)


def measure(job: Job) -> dict[str, Any]:
    """Peak rates, and the job's work divided by them."""
    dtype, rates = DTYPES[job.precision], {}
    with torch.no_grad():
        for name, (rows, inner, columns) in shapes(job).items():
            x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
            rates[name] = 2 * rows * inner * columns / best_seconds(lambda x=x, w=weight: F.linear(x, w)) / 1e9  # type: ignore[misc]
        source = torch.ones(64 * 2**20)
        target = torch.empty_like(source)
        copied = 2 * source.numel() * 4 / best_seconds(lambda: target.copy_(source), 7) / 1e9
    needed = {name: value / 1e9 for name, value in work(job).items()}
    return {
        "gflops": rates,
        "copy_gb_per_s": copied,
        "work_gflop": sum(needed.values()),
        "floor_s": sum(needed[name] / rates[name] for name in needed),
    }


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    job = changed(arguments.size, precision=arguments.precision, epochs=arguments.epochs)
    print(json.dumps(measure(job)), flush=True)


if __name__ == "__main__":
    main()
