"""Talk with a model in the terminal, and see what rewards think of its answers."""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from alignkit.held_out import generate_rows
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.reward import check_columns
from alignkit.run.environment import quiet_hosts
from alignkit.run.generate import sampling_settings
from alignkit.run.ingredients import build_named_rewards
from alignkit.text import completion_text

COMMANDS = {
    "/help": "this list",
    "/new": "forget the conversation and begin a new one",
    "/quit": "end the program, as the end of the input does",
}


def chat(
    model: str,
    *,
    rewards: Sequence[str] = (),
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int | None = None,
    allow_code: bool = True,
) -> None:
    """Reads lines from standard input and answers each.

    A model whose tokenizer has a chat template gets the whole conversation; any other continues the line it is given.
    `/help` lists what else can be typed; the end of the input ends the program, as `/quit` does.

    Args:
        model: folder or name.
        rewards: whose score is shown with each answer; each written as in a recipe's list, see `read_rewards`.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        seed: of the first answer; the next ones count on from it. None: another conversation every time.
        allow_code: whether rewards may be named as `file.py:Object`, or trust code that a checkpoint brings along.
    """
    quiet_hosts()
    scoring = build_named_rewards(rewards, allow_code=allow_code)
    check_columns(scoring, [])
    tokenizer = load_tokenizer(model)
    network = load_causal_or_seq2seq(model).to("cuda" if torch.cuda.is_available() else "cpu")
    settings = sampling_settings(network, tokenizer, max_new_tokens, temperature)
    templated = tokenizer.chat_template is not None
    messages: list[dict[str, str]] = []
    turn = int(torch.seed() % 2**31) if seed is None else seed
    asked = sys.stdin.isatty()
    if asked:
        how = "chat" if templated else "no chat template, so it continues what you write"
        print(f"{model}: {how}. /help lists the commands")
    while True:
        try:
            line = input("> " if asked else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if line == "/quit":
            break
        if line == "/new":
            messages = []
            continue
        if line == "/help":
            print("\n".join(f"{name:<7}{does}" for name, does in COMMANDS.items()))
            continue
        if not line:
            continue
        prompt: Any = [*messages, {"role": "user", "content": line}] if templated else line
        (row,) = generate_rows(
            network,
            tokenizer,
            [{"prompt": prompt}],
            generation_config=settings,
            reward_funcs=scoring,
            with_kl=False,
            seed=turn,
        )
        answer = completion_text(row["completion"])
        if templated:
            messages = [*prompt, {"role": "assistant", "content": answer}]
        turn += 1
        scores = "  ".join(f"{name} {score:.3f}" for name, score in row["rewards"].items() if score is not None)
        print(answer if templated else line + answer)
        if scores:
            print(f"  [{scores}]")
