"""The job that every contestant runs: one model, one set of prompts, one reward. It needs nothing of alignkit's.

A random GPT-2 gives answers of exactly so many tokens to prompts of 24 to 32 tokens; the reward is the share of even
token ids. Nothing is downloaded and no answer is shorter than another, so a step is pure work.
"""

import os
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PAD, END_OF_SEQUENCE = 0, 1
SHORTEST_PROMPT, LONGEST_PROMPT = 24, 32
GENERATIONS = 4  # answers to a prompt, for the methods that compare them
KL_COEF = 0.05
LEARNING_RATE = 1e-5
SEED = 0
MODELS = Path(__file__).resolve().parents[1] / ".bench" / "models"


@dataclass(frozen=True)
class Job:
    """What is measured: the model's shape, a step's size, and how many steps of it.

    A step is one rollout of `batch` answers with `epochs` updates on all of them (the K of the tables).
    """

    layers: int = 4
    width: int = 256
    vocabulary: int = 8192
    batch: int = 32
    new_tokens: int = 32
    epochs: int = 4
    precision: str = "fp32"
    steps: int = 6
    warmup: int = 2

    @property
    def folder(self) -> Path:
        """Where the model of this shape is kept, so that every contestant reads the same weights."""
        return MODELS / f"gpt2-{self.layers}x{self.width}-{self.vocabulary}"

    @property
    def heads(self) -> int:
        """Attention heads: 64 wide, as in GPT-2."""
        return max(self.width // 64, 1)


SIZES = {
    "S": Job(),
    "M": Job(layers=12, width=768, vocabulary=50257, batch=8, steps=2, warmup=1),
    "tiny": Job(layers=1, width=32, vocabulary=128, batch=8, new_tokens=4, epochs=1, steps=1, warmup=0),
}


def changed(size: str, **changes: Any) -> Job:
    """The job of a size, with those of `changes` that are not None."""
    return replace(SIZES[size], **{key: value for key, value in changes.items() if value is not None})


def words(job: Job) -> list[str]:
    """The vocabulary after the three special tokens."""
    return [f"w{i}" for i in range(job.vocabulary - 3)]


def tokenizer(job: Job) -> PreTrainedTokenizerFast:
    """One token a word, so that a prompt's length in tokens is its length in words."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *words(job)])}
    fast = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def saved_model(job: Job) -> str:
    """The folder with the job's model, made on first use: GPT-2, random weights, no dropout (trainers differ in it)."""
    if job.folder.exists():
        return str(job.folder)
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=job.vocabulary,
        n_positions=512 if job.layers < 12 else 1024,
        n_layer=job.layers,
        n_embd=job.width,
        n_head=job.heads,
        bos_token_id=END_OF_SEQUENCE,
        eos_token_id=END_OF_SEQUENCE,
        pad_token_id=PAD,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    MODELS.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(dir=MODELS)
    GPT2LMHeadModel(config).save_pretrained(unfinished)
    tokenizer(job).save_pretrained(unfinished)
    try:
        os.rename(unfinished, job.folder)
    except OSError:  # another process was first
        shutil.rmtree(unfinished)
    return str(job.folder)


def model(job: Job) -> GPT2LMHeadModel:
    """The job's model in fp32, from its folder."""
    return GPT2LMHeadModel.from_pretrained(saved_model(job), dtype=torch.float32)


def prompts(job: Job, count: int = 512) -> Dataset:
    """Random prompts of 24 to 32 tokens, in a column `prompt`."""
    draw, known = random.Random(SEED), words(job)
    lengths = [draw.randint(SHORTEST_PROMPT, LONGEST_PROMPT) for _ in range(count)]
    return Dataset.from_list([{"prompt": " ".join(draw.choices(known, k=length))} for length in lengths])


def even_share(completions: list, completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The reward: share of even token ids in each completion."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def trainer_settings(job: Job, output_dir: str) -> dict[str, Any]:
    """Settings of every trainer on today's TRL: one minibatch, `epochs` passes over each batch, nothing saved."""
    return dict(
        output_dir=output_dir,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=1,
        num_iterations=job.epochs,
        max_steps=(job.steps + job.warmup) * job.epochs,
        max_completion_length=job.new_tokens,
        temperature=1.0,
        generation_kwargs={"suppress_tokens": [END_OF_SEQUENCE]},  # every answer has its full length
        learning_rate=LEARNING_RATE,
        use_cpu=True,
        bf16=job.precision == "bf16",  # TRL's default is True
        gradient_checkpointing=False,  # TRL's default is True
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=SEED,
    )
