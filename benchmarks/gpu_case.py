"""Measures one case at GPU scale in this process and prints one JSON line; `gpu.py` starts it.

The policy is a Llama of about a billion random weights: no step learns anything, and every step does all the work of
learning. Nothing is downloaded.

MFU is the share of the card's dense bfloat16 peak that the model's own arithmetic used, over whole steps (`mfu`) and
over updates alone (`mfu_update`). Counted are 2 operations a weight and token that pass a linear layer, and attention
over the causal half: one forward each for sampling and for the reference; for an update a forward, the gradient of the
activations, and, where all weights train, that of the weights. The adapter, the critic, the discriminator, the
embedding and dequantisation are not counted. Where the card's peak is not in `PEAKS`, there is no MFU.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification, BitsAndBytesConfig, LlamaConfig, TrainerCallback

from alignkit import LearnedReward, PPOConfig, PPOTrainer, ReinforceConfig, ReinforceTrainer
from alignkit.models.tiny import tiny_tokenizer

PHASES = ("sample", "reward", "reference", "update")
# Dense bfloat16 operations a second, from NVIDIA's data sheets; the first name that the card's contains is taken.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
}


@dataclass(frozen=True)
class Scale:
    """Sizes of a case: the policy, its discriminator, and a step of `rows` completions in `accumulation` parts."""

    vocabulary: int
    hidden: int
    layers: int
    feed_forward: int
    heads: int
    key_value_heads: int
    prompt: int
    new_tokens: int
    rows: int
    accumulation: int
    judge_hidden: int
    judge_layers: int


SCALES = {
    "1b": Scale(32768, 2048, 16, 8192, 32, 8, 128, 128, 64, 4, 768, 12),
    "tiny": Scale(256, 64, 2, 128, 4, 2, 8, 8, 8, 2, 32, 1),
}

_LORA = {"adapter": True}
CASES: dict[str, dict[str, Any]] = {
    "ppo-lora": _LORA,
    "ppo-lora-8bit": _LORA | {"quantization": {"load_in_8bit": True}},
    "ppo-qlora": _LORA
    | {
        "quantization": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        }
    },
    "ppo-full": {},
    "gcn-sized": {"discriminator": True},
}
NOTES = {
    "gcn-sized": "a stand-in for a step of cooperative training: REINFORCE with a discriminator that scores and learns"
}


class Discriminator(LearnedReward):
    """Probability that a completion is a reference, by a BERT of random weights that learns to tell them apart.

    Args:
        scale: its size.
        device: where it lives.
        tokenizer: the policy's.
    """

    __name__ = "discriminator"

    def __init__(self, scale: Scale, device: str, tokenizer: Any):
        config = BertConfig(
            vocab_size=scale.vocabulary,
            hidden_size=scale.judge_hidden,
            num_hidden_layers=scale.judge_layers,
            num_attention_heads=max(scale.judge_hidden // 64, 1),
            intermediate_size=4 * scale.judge_hidden,
            num_labels=1,
            pad_token_id=0,
        )
        self.network = BertForSequenceClassification(config).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5)
        self.tokenizer = tokenizer
        self.length = scale.new_tokens
        self.updates = 0

    def _logits(self, texts: list[str]) -> torch.Tensor:
        kept = {"truncation": True, "max_length": self.length, "return_token_type_ids": False}
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, **kept).to(self.network.device)
        kind = batch["input_ids"].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            return self.network(**batch).logits[:, 0].float()

    @torch.no_grad()
    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """Scores in (0, 1)."""
        self.network.eval()
        return self._logits(completions).sigmoid().tolist()

    def update(self, prompts: list, completions: list, references: list) -> dict[str, float]:
        """One step of logistic regression: references are 1, completions 0."""
        self.network.train()
        logits = self._logits([*references, *completions])
        truth = torch.zeros_like(logits)
        truth[: len(references)] = 1.0
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        return {"loss": loss.item()}

    def state_dict(self) -> dict[str, Any]:
        """Network and optimiser."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class Clock(TrainerCallback):
    """The time at the end of every step, when the device has finished it."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._mark()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Ends a step."""
        self._mark()


def policy_folder(scale: Scale, parent: Path, device: str) -> Path:
    """The policy's folder, written once for all cases: quantised weights are made while loading."""
    folder = parent / f"policy-{scale.hidden}x{scale.layers}"
    if (folder / "tokenizer.json").is_file():
        return folder
    config = LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.hidden,
        intermediate_size=scale.feed_forward,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        num_key_value_heads=scale.key_value_heads,
        max_position_embeddings=2 * (scale.prompt + scale.new_tokens),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer(words(scale)).save_pretrained(folder)  # last: its file says that the folder is complete
    return folder


def words(scale: Scale) -> list[str]:
    """A word for every token but pad, end and unknown."""
    return [f"w{i}" for i in range(scale.vocabulary - 3)]


def data(scale: Scale, count: int) -> Dataset:
    """Random prompts and references, one token a word."""
    draw, known = random.Random(0), words(scale)
    sizes = {"prompt": scale.prompt, "reference": scale.new_tokens}
    return Dataset.from_list(
        [{key: " ".join(draw.choices(known, k=size)) for key, size in sizes.items()} for _ in range(count)]
    )


def even_share(completions: list, completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Share of even token ids: a reward that costs nothing."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def linear_weights(scale: Scale) -> int:
    """Weights of the policy's linear layers, that to the vocabulary among them."""
    keys = scale.hidden // scale.heads * scale.key_value_heads
    layer = 2 * scale.hidden * scale.hidden + 2 * scale.hidden * keys + 3 * scale.hidden * scale.feed_forward
    return scale.layers * layer + scale.hidden * scale.vocabulary


def weights_of(scale: Scale) -> int:
    """All weights of the policy: with embedding and norms."""
    return linear_weights(scale) + scale.hidden * scale.vocabulary + (2 * scale.layers + 1) * scale.hidden


def flops(scale: Scale, full: bool) -> tuple[float, float]:
    """Operations of one step and of its update, as the module's docstring counts them."""
    weights = linear_weights(scale)
    tokens = scale.prompt + scale.new_tokens
    # scores and their use are each 2 operations a channel, for every token and those before it
    forward = scale.rows * (2 * weights * tokens + scale.layers * 2 * scale.hidden * tokens**2)
    attention = scale.rows * scale.layers * 2 * scale.hidden * tokens**2
    # attention has no weights: its gradient costs two forwards whatever trains
    update = (3.0 if full else 2.0) * (forward - attention) + 3.0 * attention
    return 2.0 * forward + update, update


def trainer_of(case: dict[str, Any], scale: Scale, policy: Path, folder: str, device: str, steps: int) -> Any:
    """The trainer of a case."""
    cuda = device == "cuda"
    settings: dict[str, Any] = dict(
        output_dir=folder,
        per_device_train_batch_size=scale.rows // scale.accumulation,
        gradient_accumulation_steps=scale.accumulation,
        num_iterations=1,
        max_steps=steps,
        max_completion_length=scale.new_tokens,
        generation_kwargs={"suppress_tokens": [1]},  # every completion has its full length
        learning_rate=1e-5,
        model_init_kwargs={"dtype": "bfloat16" if cuda else "float32"},
        bf16=cuda,
        use_cpu=not cuda,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
    options: dict[str, Any] = {}
    if "quantization" in case:
        options["quantization_config"] = BitsAndBytesConfig(**case["quantization"])
    if case.get("adapter"):
        options["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = data(scale, scale.rows * (steps + 1))
    if case.get("discriminator"):
        judge = Discriminator(scale, device, tiny_tokenizer(words(scale)))
        return ReinforceTrainer(str(policy), judge, ReinforceConfig(**settings), rows, **options)
    return PPOTrainer(str(policy), even_share, PPOConfig(**settings), rows, **options)


def measure(name: str, scale: Scale, models: Path, device: str, steps: int, warmup: int) -> dict[str, Any]:
    """Trains, and says what it took: medians over the steps after the warm-up."""
    case, clock = CASES[name], Clock()
    policy = policy_folder(scale, models, device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(case, scale, policy, folder, device, steps + warmup)
        trainer.add_callback(clock)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = statistics.median(b - a for a, b in list(zip(clock.marks, clock.marks[1:], strict=False))[warmup:])
    logged = [entry for entry in trainer.state.log_history if "phase/update" in entry][warmup:]
    phases = {phase: statistics.median(entry[f"phase/{phase}"] for entry in logged) for phase in PHASES}
    card = torch.cuda.get_device_name() if device == "cuda" else None
    peak = next((value for key, value in PEAKS.items() if key.lower() in (card or "").lower()), None)
    whole, update = flops(scale, full=not case.get("adapter"))
    figures = {
        "case": name,
        "device": card or "cpu",
        "parameters": weights_of(scale),
        "step_s": seconds,
        "samples_per_s": scale.rows / seconds,
        "tokens_per_s": scale.rows * scale.new_tokens / seconds,
        "peak_cuda_mib": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None,
        "mfu": whole / seconds / peak if peak else None,
        "mfu_update": update / phases["update"] / peak if peak else None,
        "phase_s": phases,
        "rows": scale.rows,
        "prompt_tokens": scale.prompt,
        "new_tokens": scale.new_tokens,
        "steps": steps,
        "losses": [entry["loss"] for entry in logged],
        "versions": {m.__name__: m.__version__ for m in (torch, transformers)},
    }
    return figures | ({"note": NOTES[name]} if name in NOTES else {})


def main() -> None:
    """Measures and prints; a case for which the card's memory is too small says so in its line."""
    parser = argparse.ArgumentParser(description="Measures one case and prints one JSON line.")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--scale", choices=SCALES, default="1b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    scale = {"scale": given.scale}
    try:
        figures = measure(given.case, SCALES[given.scale], given.models, given.device, given.steps, given.warmup)
    except torch.OutOfMemoryError as error:
        figures = {"case": given.case, "device": torch.cuda.get_device_name(), "failed": str(error).splitlines()[0]}
    print(json.dumps(scale | figures), flush=True)


if __name__ == "__main__":
    main()
