"""A training run to be killed, for test_kill.py: imports once, then forks a process for every attempt.

Reads one JSON object a line: `folder`, `limit` (save_total_limit), `cooperative` (in place of PPO) and how the attempt
dies, if it does:

    {"seconds": s}              SIGKILL after so many seconds, wherever it is then
    {"save": n, "call": k}      SIGKILL at the k-th file that the n-th save opens for writing, moves or removes
    {"save": n, "bytes": k}     the kernel ends it when a file of the n-th save grows over k bytes (SIGXFSZ)

Answers with one: `signal` that ended it (0: it came to its end), `exit`, whether it died while `saving`.
"""

import json
import os
import resource
import signal
import sys
import time
from collections import deque
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from alignkit.compose import Whiten
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.reward import LearnedReward
from alignkit.trainers.checkpoint_files import choose_checkpoint
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig
from alignkit.trainers.ppo import PPOConfig, PPOTrainer

STEPS = 8
PROMPTS = ["i loved the film", "the plot was", "a good", "the cast", "it was", "the end", "bad", "i saw", "so", "he"]
TEXTS = ["the film was good .", "the plot was bad .", "i saw it ."]


class Letters(LearnedReward):
    """A discriminator of letters with an optimiser and a memory of old completions that it draws from."""

    __name__ = "letters"

    def __init__(self):
        self.net = torch.nn.Linear(26, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)
        self.replay = deque(maxlen=16)

    def __call__(self, prompts, completions, **columns):
        with torch.no_grad():
            return self.net(counts(completions))[:, 0].tolist()

    def update(self, prompts, completions, references):
        self.replay.extend(completions)
        drawn = [self.replay[i] for i in torch.randint(len(self.replay), (4,)).tolist()]
        loss = self.net(counts(drawn)).mean() - self.net(counts(TEXTS)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss)}

    def state_dict(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "replay": list(self.replay)}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay = deque(state["replay"], maxlen=16)


def counts(texts) -> torch.Tensor:
    return torch.tensor([[float(text.count(chr(97 + i))) for i in range(26)] for text in texts])


class Killed:
    """A trainer that notes when it saves, and arms what kills it in its n-th save."""

    how: dict
    mark: Path
    saves = 0

    def _save_checkpoint(self, model, trial):
        self.saves += 1
        self.mark.touch()
        if self.saves == self.how.get("save"):
            arm(self.how)
        super()._save_checkpoint(model, trial)
        self.mark.unlink()


class KilledPPO(Killed, PPOTrainer):
    """PPO."""


class KilledCooperative(Killed, CooperativeTrainer):
    """Weighted likelihood."""


def arm(how: dict) -> None:
    if "bytes" in how:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (how["bytes"], how["bytes"]))
        return
    left = how["call"]

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def cooperative(folder: Path, limit: int | None) -> KilledCooperative:
    """GCN with an adapter on a base in 8 bits, a proposal of its own and a discriminator that learns."""
    start = folder.parent / "llama"
    if not start.is_dir():
        tiny_causal_lm("llama", hidden_size=64, layers=1).save_pretrained(start)
    return KilledCooperative(
        str(start), [Letters()],
        CooperativeConfig(
            output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_iterations=2,
            num_generations=4, max_steps=STEPS, max_completion_length=4, learning_rate=1e-3, report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="steps", save_steps=1, save_total_limit=limit,
            logging_steps=2, reward_as="exponential", proposal="mixture", control_variate=True,
            control_variate_tokens=4,
            proposal_settings={"policy_share": 0.5, "top_p": 0.8},
        ),
        Dataset.from_dict({"prompt": PROMPTS}), None, tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )  # fmt: skip


def attempt(folder: Path, limit: int | None, how: dict) -> None:
    """Train from the newest whole checkpoint, or from the beginning, to the end."""
    torch.manual_seed(0)  # the reward's first weights
    trainer = cooperative(folder, limit) if how.pop("cooperative", False) else ppo(folder, limit)
    trainer.how, trainer.mark = how, folder / "saving"
    torch.seed()  # what came before must not matter to a resumed run
    found = choose_checkpoint(folder).checkpoint is not None
    if not found:
        torch.manual_seed(1)
    trainer.train(resume_from_checkpoint=True if found else None)


def ppo(folder: Path, limit: int | None) -> KilledPPO:
    """PPO with all that a checkpoint can hold."""
    return KilledPPO(
        tiny_causal_lm(), [Whiten(Letters())],
        PPOConfig(
            output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_iterations=2,
            max_steps=STEPS, max_completion_length=4, learning_rate=1e-3, kl_target=1.0, kl_coef=0.1, kl_horizon=50,
            ptx_coef=0.5, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="steps", save_steps=1,
            save_total_limit=limit, logging_steps=2, whiten_rewards=True,
        ),
        Dataset.from_dict({"prompt": PROMPTS}), None, tiny_tokenizer(),
        ptx_dataset=Dataset.from_dict({"text": TEXTS}),
    )  # fmt: skip


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trainers print is no answer
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(job.pop("folder"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "saving").unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                attempt(folder, job.pop("limit"), job)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        status = waited(child, job.get("seconds"))
        saving = (folder / "saving").exists()
        answer = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "saving": saving}
        answer["exit"] = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        print(json.dumps(answer), file=answers, flush=True)


def waited(child: int, seconds: float | None) -> int:
    if seconds is not None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    serve()
