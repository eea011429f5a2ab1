"""Peak memory of PPO in several settings beside what `alignkit.run.memory` foretells; for docs/memory.md.

    python benchmarks/memory.py             every case: one row of a table each, as soon as it is measured
    python benchmarks/memory.py 8-bit LoRA  those whose names hold one of these words

A Llama of random weights takes two optimiser steps on a CPU, each case in a process of its own (Linux: what is read is
the kernel's high-water mark of resident memory, set back when training begins). `held` is the sum that the dry run
prints; `peak` is what the process held at most, less what the same training takes with a model of 0.1 million
weights (the libraries); the difference is activations and what is allocated for a moment.
"""

import copy
import ctypes
import gc
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from alignkit import PPOConfig, PPOTrainer
from alignkit.models.tiny import tiny_tokenizer
from alignkit.run.memory import held, shapes

MIB = 2**20
VOCABULARY = 8192
NEW_TOKENS = 8
WHOLE = 10**6  # tokens at once: more than any batch here has
SHAPE = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=8,
    tie_word_embeddings=True,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=1,
)


@dataclass(frozen=True)
class Case:
    """One way of training.

    Attributes:
        settings: of PPOConfig, on top of the common ones.
        dtype: of the weights.
        lora: whether an adapter learns instead of all weights.
        bits: for `BitsAndBytesConfig`; None does not quantise.
        rows: completions of an optimiser step.
        prompt: tokens of a prompt.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    lora: bool = False
    bits: dict[str, Any] | None = None
    rows: int = 2
    prompt: int = 8


def _long(**settings: Any) -> Case:
    return Case(settings, lora=True, rows=8, prompt=120)


CASES = {
    "all weights, fp32": Case(),
    "all weights, bf16": Case(dtype=torch.bfloat16),
    "all weights, fp32, adamw_8bit": Case({"optim": "adamw_8bit"}),
    "all weights, fp32, separate_critic": Case({"separate_critic": True}),
    "LoRA, fp32": Case(lora=True),
    "LoRA on 8 bits": Case(lora=True, bits={"load_in_8bit": True}),
    "LoRA on 4 bits": Case(lora=True, bits={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "8 × 128 tokens at once": _long(max_tokens_per_forward=WHOLE),
    "8 × 128, max_tokens_per_forward=256": _long(max_tokens_per_forward=256),
    "8 × 128, 2 rows × 4 accumulated": _long(
        max_tokens_per_forward=WHOLE, per_device_train_batch_size=2, gradient_accumulation_steps=4
    ),
    "8 × 128, gradient_checkpointing": _long(max_tokens_per_forward=WHOLE, gradient_checkpointing=True),
}


def _status(key: str) -> float:
    """A figure of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


class PeakOfTraining(TrainerCallback):
    """Sets the high-water mark back once everything is built: what loading held for a moment is not training's."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Give freed memory back, then begin to count."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def length(completions: list[str], **columns: Any) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(text)) for text in completions]


def measure(case: Case, folder: str) -> tuple[float, float]:
    """MiB held throughout, as foretold, and MiB at the peak of two steps, libraries included."""
    lora = LoraConfig(r=8, target_modules="all-linear") if case.lora else None
    bits = None if case.bits is None else BitsAndBytesConfig(**case.bits)
    with tempfile.TemporaryDirectory() as run:
        settings: dict[str, Any] = {
            "per_device_train_batch_size": case.rows,
            "model_init_kwargs": {"dtype": case.dtype},
            "max_completion_length": NEW_TOKENS,
            "generation_kwargs": {"suppress_tokens": [1]},  # every answer has its full length
            "num_iterations": 1,
            "max_steps": 2,
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        args = PPOConfig(run, **{**settings, **case.settings})
        tokenizer = tiny_tokenizer([f"w{i}" for i in range(VOCABULARY - 3)])
        draw = random.Random(0)
        prompts = [" ".join(f"w{draw.randrange(8000)}" for _ in range(case.prompt)) for _ in range(4 * case.rows)]
        data = Dataset.from_dict({"prompt": prompts})
        trainer = PPOTrainer(
            folder,
            length,
            args,
            data,
            processing_class=tokenizer,
            peft_config=lora,
            quantization_config=bits,
            callbacks=[PeakOfTraining()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    peak = _status("VmHWM")
    foretold = held(
        shapes(AutoConfig.from_pretrained(folder), case.dtype),
        optim=str(getattr(args.optim, "value", args.optim)),
        adapter=lora,
        quantization=bits,
        values=True,
        separate_critic=args.separate_critic,
    )
    return foretold.total / MIB, peak


def _in_a_process(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns, done in a process of its own; the imports are made once, in this one."""
    processes: Any = multiprocessing.get_context("fork")
    answers = processes.SimpleQueue()
    child = processes.Process(target=lambda: answers.put(work(*given)))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{given}: the process ended with status {child.exitcode}")
    return answers.get()


def _save(shape: LlamaConfig, folder: str) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(folder)


def main(words: list[str]) -> None:
    """Measures the cases and prints their rows."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    chosen = [name for name in CASES if not words or any(word in name for word in words)]
    tiny = copy.deepcopy(SHAPE)
    tiny.update({"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 2})
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in (("tiny", tiny), ("model", SHAPE)):
            _in_a_process(_save, shape, f"{folder}/{name}")
        print("| setting | held, MiB | peak, MiB | difference, MiB |\n| --- | ---: | ---: | ---: |", flush=True)
        for name in chosen:
            foretold, peak = _in_a_process(measure, CASES[name], f"{folder}/model")
            beyond = peak - _in_a_process(measure, CASES[name], f"{folder}/tiny")[1]
            print(f"| {name} | {foretold:,.0f} | {beyond:,.0f} | {beyond - foretold:,.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
