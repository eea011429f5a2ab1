"""Talk with a model in the terminal, and see what rewards think of its answers and of what you say."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from alignkit.data.dialogue import Context
from alignkit.decoding.prompts import encode_prompts, room_behind
from alignkit.errors import AlignkitError
from alignkit.held_out import generate_rows
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.reward import call_reward, check_columns, in_evaluation, scalar_score, unique_names
from alignkit.run.environment import quiet_hosts
from alignkit.run.generate import sampling_settings
from alignkit.run.ingredients import build_named_rewards
from alignkit.run.trained_model import context_of_run, longest_completion, recipe_of_run
from alignkit.text import completion_text

_BAR = 10  # characters
COMMANDS = {
    "/help": "this list",
    "/new": "forget the conversation and begin a new one",
    "/quit": "end the program, as the end of the input does",
}


def chat(
    model: str,
    *,
    rewards: Sequence[str] = (),
    user_rewards: Sequence[str] = (),
    turns: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    allow_code: bool = True,
) -> None:
    """Reads lines from standard input and answers each.

    A model that a run trained on dialogues gets the conversation in the form of that run: so many turns, as lines or as
    messages. Any other whose tokenizer has a chat template gets the whole conversation, and the rest continue the line
    that they are given. `/help` lists what else can be typed; the end of the input ends the program, as `/quit` does.

    Args:
        model: folder or name.
        rewards: whose score is shown with each answer; each written as in a recipe's list, see `read_rewards`. They
            read the prompt that the model had, and the answer.
        user_rewards: whose score is shown with each line that you write, which they read alone.
        turns: give the model the last so many turns, also where its run had another number, or it has no run.
        max_new_tokens: longest answer, cut to what the model has room for behind the conversation; None takes what the
            run that trained the model had, or 64.
        temperature: 0 takes the likeliest token.
        seed: of the first answer; the next ones count on from it. None: another conversation every time.
        allow_code: whether rewards may be named as `file.py:Object`, or trust code that a checkpoint brings along.

    Raises:
        AlignkitError: a reward that does not exist or needs a column of the data, a model that cannot be loaded.
    """
    quiet_hosts()
    if turns is not None and turns < 1:
        raise AlignkitError(f"--turns is at least 1, got {turns}")
    scoring = build_named_rewards(rewards, allow_code=allow_code)
    listening = build_named_rewards(user_rewards, allow_code=allow_code)
    check_columns([*scoring, *listening], [])
    tokenizer = load_tokenizer(model)
    context = _context(model, tokenizer.chat_template is not None, turns)
    network = load_causal_or_seq2seq(model).to("cuda" if torch.cuda.is_available() else "cpu")
    longest = longest_completion(recipe_of_run(model)) if max_new_tokens is None else max_new_tokens
    said: list[str] = []
    turn = int(torch.seed() % 2**31) if seed is None else seed
    asked = sys.stdin.isatty()
    if asked:
        print(f"{model}: {_manner(context)}. /help lists the commands")
    while True:
        try:
            line = input("> " if asked else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if line == "/quit":
            break
        if line == "/new":
            said = []
            continue
        if line == "/help":
            print("\n".join(f"{name:<7}{does}" for name, does in COMMANDS.items()))
            continue
        if not line:
            continue
        _show("you: ", listening, _scores_of_line(listening, line))
        prompt: Any = line if context is None else context.prompt([*said, line])
        tokens = int(min(longest, _room(network, tokenizer, prompt)))
        if tokens < 1:
            print(f"{model} has no room for an answer behind all this. /new begins another conversation, --turns N")
            print("lets it read the last N turns only")
            continue
        (row,) = generate_rows(
            network,
            tokenizer,
            [{"prompt": prompt}],
            generation_config=sampling_settings(network, tokenizer, tokens, temperature),
            reward_funcs=scoring,
            with_kl=False,
            seed=turn,
        )
        answer = completion_text(row["completion"])
        said += [line, *_kept(answer, context)]
        turn += 1
        print(line + answer if context is None else answer)
        _show("", scoring, row["rewards"])


def _context(model: str, templated: bool, turns: int | None) -> Context | None:
    """What the model was trained on, where a run tells; else the whole conversation by its chat template, if any."""
    trained = context_of_run(model)
    style = trained.style if trained is not None else "messages" if templated else "text"
    if turns is not None:
        return Context(turns, style)
    return trained or (Context(None, style) if templated else None)


def _room(network: Any, tokenizer: Any, prompt: Any) -> float:
    """How many tokens the model can write behind a prompt."""
    (ids,) = encode_prompts(tokenizer, [prompt])
    room = room_behind(network, 1 if network.config.is_encoder_decoder else len(ids))
    return math.inf if room is None else room


def _kept(answer: str, context: Context | None) -> list[str]:
    """The answer as a turn of the context: on one line where lines are the turns, left out there if it is empty."""
    if context is None or context.style == "messages":
        return [answer]
    words = answer.split()
    return [" ".join(words)] if words else []


def _manner(context: Context | None) -> str:
    if context is None:
        return "no chat template, so it continues what you write"
    if context.turns is None:
        return "chat"
    return f"chat, it reads the last {context.turns} turns" if context.turns > 1 else "chat, it reads the last turn"


def _scores_of_line(rewards: Sequence[Any], line: str) -> dict[str, Any]:
    with in_evaluation(rewards):
        names = unique_names(rewards)
        return {
            name: call_reward(reward, [""], [line], name=name)[0] for name, reward in zip(names, rewards, strict=True)
        }


def _show(whose: str, rewards: Sequence[Any], scores: dict[str, Any]) -> None:
    """A line with the scores that there are."""
    shown = [
        f"{name} {_written(value, getattr(reward, 'positive_above', None))}"
        for reward, (name, score) in zip(rewards, scores.items(), strict=True)
        if (value := scalar_score(score)) is not None
    ]
    if shown:
        print(f"  [{whose}{'  '.join(shown)}]")


def _written(value: float, positive_above: float | None) -> str:
    """A number; in a terminal that of a probability has a bar."""
    # a threshold inside (0, 1) is how a reward says that it gives probabilities
    probability = positive_above is not None and 0 < positive_above < 1 and 0 <= value <= 1
    if probability and sys.stdout.isatty() and (sys.stdout.encoding or "").lower().startswith("utf"):
        full = round(value * _BAR)
        return f"{value:.3f} {'█' * full}{'░' * (_BAR - full)}"
    return f"{value:.3f}"
