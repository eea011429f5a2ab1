"""Measures one contestant in this process and prints one JSON line; `run.py` starts it."""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from job import BATCH, KL_COEF, NEW_TOKENS, Clock, even_share, model, prompts, shared_settings, tokenizer


def alignkit_ppo(folder: str, epochs: int, steps: int, clock: Clock, separate_critic: bool = False):
    """Our PPO: value head on the policy's trunk (or a critic of its own), every prompt answered once."""
    from alignkit import PPOConfig, PPOTrainer

    settings = shared_settings(folder, epochs, steps)
    args = PPOConfig(**settings, num_generations=1, kl_coef=KL_COEF, separate_critic=separate_critic)
    return PPOTrainer(model(), even_share, args, prompts(), processing_class=tokenizer(), callbacks=[clock])


def trl_rloo(folder: str, epochs: int, steps: int, clock: Clock):
    """TRL's RLOO: no critic, four answers to each of eight prompts."""
    from trl import RLOOConfig, RLOOTrainer

    args = RLOOConfig(**shared_settings(folder, epochs, steps), num_generations=4, beta=KL_COEF)
    policy = model()
    policy.save_pretrained(f"{folder}/start")  # RLOO builds its reference from the model's folder
    policy = type(policy).from_pretrained(f"{folder}/start")
    return RLOOTrainer(policy, even_share, args, prompts(), processing_class=tokenizer(), callbacks=[clock])


CONTESTANTS: dict[str, Callable[..., Any]] = {
    "alignkit-ppo": alignkit_ppo,
    "alignkit-ppo-separate-critic": partial(alignkit_ppo, separate_critic=True),
    "trl-rloo": trl_rloo,
}


def main() -> None:
    """Trains for the given steps and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    clock = Clock(arguments.epochs)
    with tempfile.TemporaryDirectory() as folder:
        steps = arguments.steps + arguments.warmup
        CONTESTANTS[arguments.name](folder, arguments.epochs, steps, clock).train()
    figures = {"name": arguments.name, "epochs": arguments.epochs, "batch": BATCH, "new_tokens": NEW_TOKENS}
    print(json.dumps(figures | clock.figures(arguments.warmup)), flush=True)


if __name__ == "__main__":
    main()
