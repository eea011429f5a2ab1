"""The job that every benchmark runs: one model, one set of prompts, one reward, one clock.

A GPT-2 of 5.4 million random weights gives 32 answers of exactly 32 tokens to prompts of 24 to 32 tokens; the reward is
the share of even token ids. Nothing is downloaded and no answer is shorter than another, so a step is pure work.
"""

import random
import resource
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback

from alignkit.models.tiny import tiny_tokenizer

VOCABULARY = 8192
BATCH = 32
NEW_TOKENS = 32
KL_COEF = 0.05
PAD, END_OF_SEQUENCE = 0, 1


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, so that a prompt's length in tokens is its length in words."""
    return tiny_tokenizer([f"w{i}" for i in range(VOCABULARY - 3)])


def model() -> GPT2LMHeadModel:
    """GPT-2 type, 4 layers x 256, 5.4 million random weights; no dropout, which the trainers treat differently."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=512,
        n_layer=4,
        n_embd=256,
        n_head=4,
        bos_token_id=END_OF_SEQUENCE,
        eos_token_id=END_OF_SEQUENCE,
        pad_token_id=PAD,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def prompts(count: int = 512, seed: int = 0) -> Dataset:
    """Random prompts of 24 to 32 tokens."""
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(VOCABULARY - 3)]
    return Dataset.from_list([{"prompt": " ".join(draw.choices(words, k=draw.randint(24, 32)))} for _ in range(count)])


def even_share(completions: list, completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Share of even token ids in each completion."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def shared_settings(output_dir: str, epochs: int, steps: int) -> dict[str, Any]:
    """The trainer settings of every contestant: fp32 on the CPU, one minibatch, `epochs` passes over each batch."""
    return dict(
        output_dir=output_dir,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        num_iterations=epochs,
        max_steps=steps * epochs,
        max_completion_length=NEW_TOKENS,
        temperature=1.0,
        generation_kwargs={"suppress_tokens": [END_OF_SEQUENCE]},  # every answer has its full length
        learning_rate=1e-5,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )


@dataclass
class Clock(TrainerCallback):
    """Wall and CPU time at the end of every rollout's last update; a step is one rollout with all its epochs."""

    epochs: int
    marks: list[tuple[float, float]] = field(default_factory=list)
    updates: int = 0

    def mark(self) -> None:
        """Notes the time."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self.mark()

    def on_step_end(self, args, state, control, **kwargs):
        """Counts updates; every `epochs` of them end a step."""
        self.updates += 1
        if self.updates % self.epochs == 0:
            self.mark()

    def figures(self, warmup: int) -> dict[str, float]:
        """Medians over the steps after the warm-up: seconds, samples per second, and the process's peak memory."""
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks, self.marks[1:], strict=False)][warmup:]
        if not spans:
            raise SystemExit(f"only {len(self.marks) - 1} steps were seen, {warmup} of them warm-up: raise --steps")
        wall, cpu = (statistics.median(values) for values in zip(*spans, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"samples_per_s": BATCH / wall, "step_wall_s": wall, "step_cpu_s": cpu, "peak_rss_mib": peak}
