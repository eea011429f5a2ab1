"""What each process does in the tests of several processes: train on completions that are given, write what came out.

The completions are replayed, so that one process with batches of 2N rows and two processes with N rows learn from the
same texts. Run by itself this file is one of the processes: `processes_job.py FOLDER CASE...`. With the environment
that `accelerate launch` makes of recipes/accelerate/fsdp2.yaml the weights are sharded.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from alignkit.decoding.prompts import pad_right
from alignkit.decoding.sampling import Completions
from alignkit.models.tiny import WORDS, tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig
from alignkit.trainers.ppo import PPOConfig, PPOTrainer
from alignkit.trainers.reinforce import ReinforceConfig, ReinforceTrainer

NOUNS = ["film", "movie", "plot", "story"]
# in the order in which they come (nothing is shuffled): a rollout takes eight prompts, the second process the last four
PROMPTS = [f"{start} {noun} was" for start in ("the", "this", "a great", "not a bad") for noun in NOUNS]
PROMPTS += ["it is", "i loved"]  # two too many: the last rollout of an epoch would not be full
UNKNOWN = PROMPTS[12:16]  # all that the second process has in every second rollout
TEXTS = [
    "the film was good .",
    "i hated it !",
    "a very dull story , and not a fine plot",
    "superb",
    "it is",
    "bad film",
]


def replayed(prompt: list[int], copy: int) -> list[int]:
    """Ids of the completion that stands beside a prompt: of 1 to 9 tokens, as the prompt has it."""
    generator = torch.Generator().manual_seed(sum((i + 1) * token for i, token in enumerate(prompt)) + 1000 * copy)
    length = int(torch.randint(1, 9, (1,), generator=generator))
    return [*(torch.randint(3, len(WORDS) + 3, (length,), generator=generator).tolist()), 1]


class Replay:
    """A decoder that samples nothing: each prompt has its completions, and nobody says how likely they were."""

    def __call__(self, model, prompt_ids, prompt_mask, generation_config, *, prompts=None, columns=None):
        seen: dict[tuple, int] = {}
        rows = []
        for ids, mask in zip(prompt_ids, prompt_mask, strict=True):
            prompt = tuple(ids[mask.bool()].tolist())
            rows.append(replayed(list(prompt), seen.get(prompt, 0)))
            seen[prompt] = seen.get(prompt, 0) + 1
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=prompt_ids.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=prompt_ids.device)
        return Completions(prompt_ids, prompt_mask, ids, mask)


class Placed(Replay):
    """A proposal: completions with densities, which know their place among all of a prompt's, other processes' too."""

    def __init__(self, copies: int):
        self.copies = copies

    def __call__(self, model, prompt_ids, prompt_mask, generation_config, *, prompts=None, columns=None):
        first = int(os.environ.get("RANK", "0")) * len(prompt_ids)
        places = [(first + row) % self.copies for row in range(len(prompt_ids))]
        rows = [replayed(ids[m.bool()].tolist(), c) for ids, m, c in zip(prompt_ids, prompt_mask, places, strict=True)]
        ids, mask = pad_right(rows, 0, prompt_ids.device)
        density = torch.tensor([-3.0 * len(row) - place for row, place in zip(rows, places, strict=True)])
        return Completions(prompt_ids, prompt_mask, ids, mask, log_density=density.to(ids.device))


class Opinion:
    """Share of early letters; nothing to say of what follows the prompts in `UNKNOWN`."""

    __name__ = "opinion"

    def __call__(self, prompts, completions, **columns):
        scores = [sum(letter < "k" for letter in text) / (1 + len(text)) for text in completions]
        return [None if prompt in UNKNOWN else score for prompt, score in zip(prompts, scores, strict=True)]


class Taste(LearnedReward):
    """Weighs letters, and learns from the texts it is given, in their order, with some chance."""

    __name__ = "taste"

    def __init__(self):
        self.weights = torch.zeros(26)
        self.seen: list[list[str]] = []
        self.told: list[list[str | None]] = []

    def __call__(self, prompts, completions, **columns):
        known = [None if prompt in UNKNOWN else text for prompt, text in zip(prompts, completions, strict=True)]
        return [None if text is None else float(self.weights @ letters(text)) for text in known]

    def update(self, prompts, completions, references):
        self.seen.append(list(completions))
        self.told.append(list(references))
        for place, text in enumerate(completions):
            self.weights += 0.01 * (place + 1) * letters(text) + 0.01 * torch.randn(26)
        return {"norm": float(self.weights.norm())}

    def state_dict(self):
        return {"weights": self.weights.clone()}

    def load_state_dict(self, state):
        self.weights = state["weights"].clone()


def letters(text: str) -> torch.Tensor:
    return torch.tensor([float(text.count(chr(97 + i))) for i in range(26)])


def trainer_of(case: str, folder: Path, decoder: Any = None, **changes: Any) -> Any:
    """The trainer of a case: `lora` and `full` are PPO, `hybrid` REINFORCE with the likelihood of a reference,
    `cooperative` has a prompt whose weighted completions lie in both processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings = dict(
        output_dir=str(folder / case), per_device_train_batch_size=4 // processes, gradient_accumulation_steps=2,
        max_steps=8, learning_rate=1e-3, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", shuffle_dataset=False, max_completion_length=10, lr_scheduler_type="constant",
        max_grad_norm=0.5, kl_coef=0.2, kl_target=0.01, kl_horizon=100,
        adam_epsilon=1e-5,  # where a gradient is all but zero, Adam would make a step of its rounding
    )  # fmt: skip
    columns = {"prompt": PROMPTS}
    if case == "hybrid":
        columns["reference"] = [TEXTS[i % len(TEXTS)] for i in range(len(PROMPTS))]
        args = ReinforceConfig(**settings | {"num_generations": 2, "rl_weight": 0.6, "entropy_coef": 0.01} | changes)
        return ReinforceTrainer(
            tiny_causal_lm(), [Opinion()], args, Dataset.from_dict(columns), None, tiny_tokenizer(), decoder=decoder
        )
    if case == "cooperative":
        own = {"kl_coef": 0.0, "kl_target": None, "num_generations": 8, "num_iterations": 2, "discriminator_samples": 0}
        own |= {"reward_as": "exponential", "reward_temperature": 0.5, "weight_clip": 1.0, "control_variate": True}
        own |= {"control_variate_tokens": 8}
        decoder = Placed(8) if decoder is not None else None
        # the rows that are completed come first; three others have the prompt of each, and references of their own
        columns = {"prompt": PROMPTS * 4, "reference": [f"text {i}" for i in range(4 * len(PROMPTS))]}
        return CooperativeTrainer(
            tiny_causal_lm(), [Opinion(), Taste()], CooperativeConfig(**settings | own | changes),
            Dataset.from_dict(columns), None, tiny_tokenizer(), decoder=decoder,
        )  # fmt: skip
    extra: dict[str, Any] = {}
    if case == "lora":
        settings |= {"ptx_coef": 0.7, "whiten_rewards": True}
        extra = {
            "peft_config": LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False),
            "ptx_dataset": Dataset.from_dict({"text": TEXTS}),
        }
    args = PPOConfig(**settings | {"num_iterations": 2, "vf_coef": 0.5, "entropy_coef": 0.01} | changes)
    rewards = [Opinion(), Taste()] if case == "lora" else [Opinion()]
    return PPOTrainer(
        tiny_causal_lm("llama" if case == "full" else "gpt2"), rewards, args, Dataset.from_dict(columns), None,
        tiny_tokenizer(), decoder=decoder, **extra,
    )  # fmt: skip


def trained_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Every trainable tensor, whole."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for n, p in trainable.items()}


def train(case: str, folder: Path) -> dict[str, Any]:
    """Train a case here, as one of the processes that there are; what can be compared with another run."""
    trainer = trainer_of(case, folder, Replay())
    trainer.train()
    taste = [reward for reward in trainer.rewards if isinstance(reward, Taste)]
    return {
        "weights": trained_weights(trainer),
        "coef": trainer.kl_controller.coef,
        "history": trainer.state.log_history,
        "learned": taste[0].weights if taste else None,
        "seen": taste[0].seen if taste else None,
        "told": taste[0].told if taste else None,
        "sharded": isinstance(trainer.model_wrapped, FSDPModule),
    }


def sample_and_resume(case: str, folder: Path) -> dict[str, Any]:
    """Train on what the policy samples, the second process two tokens at most; save, evaluate, resume."""
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    if os.environ["RANK"] == "1":
        settings["generation_kwargs"] = {"max_new_tokens": 2}
    trainer = trainer_of(case, folder / "sampled", **settings)
    trainer.train()
    found = {"weights": trained_weights(trainer), "history": trainer.state.log_history}
    found["evaluated"] = len(trainer.generate_eval(Dataset.from_dict({"prompt": PROMPTS[:3]})))
    trainer.save_model(str(folder / "sampled" / "model"))
    again = trainer_of(case, folder / "sampled", **settings)
    again.train(resume_from_checkpoint=str(folder / "sampled" / case / "checkpoint-3"))
    return {**found, "resumed": trained_weights(again)}


def shard_on_cpus() -> None:
    """Let accelerate use FSDP on CPUs too, where it leaves what it was asked for undone and takes DDP."""
    plain = AcceleratorState.__init__

    def prepare(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **settings: Any) -> None:
        plain(self, *arguments, fsdp_plugin=fsdp_plugin, **settings)
        self.fsdp_plugin = fsdp_plugin or getattr(self, "fsdp_plugin", None)
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = prepare


def launch(program: str, *arguments: str, processes: int = 2, **environment: str) -> subprocess.CompletedProcess:
    """Run a file in several processes (gloo), as torchrun does."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--rdzv-backend", "c10d"]
    return subprocess.run(
        [sys.executable, *command, "--rdzv-endpoint", "127.0.0.1:0", program, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpus()
    where = Path(sys.argv[1])
    for name in sys.argv[2:]:
        found = sample_and_resume("full", where) if name == "sampled" else train(name, where)
        torch.save(found, where / f"{name}-{os.environ['RANK']}.pt")
