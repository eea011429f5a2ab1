"""`alignkit generate`: completions of prompts by a decoder, with their scores."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from alignkit.compose import WeightedSum
from alignkit.console import goes_to_a_terminal, standard_output
from alignkit.data.dialogue import TURN_END
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import encode_prompts
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError, DataError
from alignkit.held_out import generate_rows
from alignkit.json_lines import read_json_lines
from alignkit.models.loading import load_causal_or_seq2seq, load_tokenizer
from alignkit.recipe import read_rewards
from alignkit.reward import call_reward, check_columns, unique_names
from alignkit.run.best_of_n import best_of_n_rows
from alignkit.run.environment import quiet_hosts
from alignkit.run.ingredients import build_named_rewards
from alignkit.run.search import build_chooser, search_rows
from alignkit.run.trained_model import completion_length, context_of_run
from alignkit.search_options import OF_SAMPLES, SEARCHES, search_settings
from alignkit.text import completion_text, prompt_text
from alignkit.whole_files import prepare_output, write_text

_RANGES = {
    "top_p": (0, 1, "a number above 0, up to 1 (all tokens)"),
    "top_k": (0, math.inf, "a whole number from 0 (all tokens) on"),
}
# what stands beside a completion -> the words for that, and for the completion itself
BESIDE = {"first": ("first  ", "chosen "), "sample": ("sample ", "found  ")}


def generate_to(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Completes the prompts that the command line names; prints or writes the rows, and returns them.

    Raises:
        AlignkitError: settings that the decoder does not have, prompts that cannot be read, a reward that does not
            exist, does not take its settings, or needs columns that the prompts lack. The command line has held the
            decoder itself against `check_decoder` before.
    """
    quiet_hosts()
    prepare_output(args.output, "--output")
    problems = [
        f"--{name.replace('_', '-')}: expected {allowed}, got {getattr(args, name):g}"
        for name, (low, high, allowed) in _RANGES.items()
        if not low <= getattr(args, name) <= high or (name == "top_p" and not args.top_p)
    ]
    if problems:
        raise ConfigError("; ".join(problems))
    settings = search_settings(args)
    if args.decoder in OF_SAMPLES and args.n is not None:
        settings["n"] = args.n
    if args.decoder != "sample":
        build_chooser(args.decoder, call_reward, None, settings)  # bad settings are told before a model is loaded
    examples = read_prompts(args.prompts) if args.prompts else [{"prompt": prompt} for prompt in args.prompt]
    rewards = build_named_rewards(args.reward, allow_code=not args.no_code)
    check_columns(rewards, examples[0])
    tokenizer = load_tokenizer(args.model)
    _say_how_turns_end(args.model, examples)
    model = load_causal_or_seq2seq(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    longest = max(map(len, encode_prompts(tokenizer, [example["prompt"] for example in examples])))
    tokens = completion_length(args.model, model, longest, args.max_new_tokens)
    config = sampling_settings(model, tokenizer, tokens, args.temperature, top_p=args.top_p, top_k=args.top_k)
    wanted = [example for example in examples for _ in range(args.count)]
    how = {"generation_config": config, "reward_funcs": rewards, "batch_size": args.batch_size, "seed": args.seed}
    if args.decoder != "sample":
        weights = [spec.get("weight", 1.0) for spec in read_rewards(args.reward, allow_code=not args.no_code).values()]
        together = " + ".join(unique_names(rewards))
        chooser = rewards[0] if weights == [1.0] else WeightedSum(rewards, weights, name=together)
        decoder = build_chooser(args.decoder, chooser, tokenizer, settings)
    if args.decoder in SEARCHES:
        rows = search_rows(model, tokenizer, wanted, search=decoder, **how)
    elif args.decoder in OF_SAMPLES:
        rows = best_of_n_rows(model, tokenizer, wanted, decoder=decoder, **how)
    else:
        rows = generate_rows(model, tokenizer, wanted, with_kl=False, decoder=SamplingDecoder(), **how)
    if args.output:
        lines = [json.dumps(_written(row), ensure_ascii=False) for row in rows]
        write_text(args.output, "".join(line + "\n" for line in lines))
        print(f"{len(rows)} completions written to {args.output}")
    else:
        _show(rows, standard_output(), apart=model.config.is_encoder_decoder, unsaid=tokenizer.all_special_tokens)
    return rows


def sampling_settings(model: Any, tokenizer: Any, max_new_tokens: int, temperature: float, **settings: Any) -> Any:
    """A generation config; temperature 0 takes the likeliest token at every step."""
    how = {"temperature": temperature, **(settings if temperature > 0 else {})}
    return generation_config_for(model, tokenizer, max_new_tokens=max_new_tokens, **how)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Rows with a `prompt`: the lines of a text file, or the objects of a .jsonl file.

    Raises:
        DataError: no such file, nothing in it, not JSON, or a row without a prompt.
    """
    try:
        if path.suffix == ".jsonl":
            rows = read_json_lines(path, drop_torn=False)
        else:
            rows = [{"prompt": line} for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the prompts cannot be read from {str(path)!r}: {error}") from error
    if not rows:
        raise DataError(
            f"{str(path)!r} has no prompts; write one a line, or JSON objects with a key prompt in a .jsonl"
        )
    for number, row in enumerate(rows, 1):
        if not row.get("prompt"):
            raise DataError(f"row {number} of {str(path)!r} has no prompt; it has: {', '.join(row) or 'nothing'}")
    if len({tuple(sorted(row)) for row in rows}) > 1:
        raise DataError(f"the rows of {str(path)!r} have different keys; rewards read them as columns")
    return rows


def _written(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in ("prompt", "completion", "rewards", "length")}
    return {**row["columns"], **kept, **{key: row[key] for key in ("log_density", *BESIDE) if key in row}}


def _say_how_turns_end(model: str, examples: list[dict[str, Any]]) -> None:
    """A model of dialogues takes a line without its end for one that is still being said, and may write nothing."""
    context = context_of_run(model)
    if context is None or context.style != "text":
        return
    open_ended = sum(isinstance(row["prompt"], str) and not row["prompt"].endswith(TURN_END) for row in examples)
    if open_ended:
        print(
            f"{open_ended} of {len(examples)} prompts do not end in a line break, and in the dialogues that {model} "
            "learned from every turn does: --prompt $'How are you?\\n', or \\n at a prompt's end in a .jsonl file",
            file=sys.stderr,
        )


def _show(rows: list[dict[str, Any]], console: Console, apart: bool, unsaid: list[str]) -> None:
    for number, row in enumerate(rows):
        if number and any(key in row for key in BESIDE):
            console.print()  # pairs stand apart
        # the token that begins a text is nothing to read
        given = prompt_text(row["prompt"])
        prompt = "" if row["prompt"] in unsaid else f"[dim]{escape(given)}[/dim]"
        on_its_own = apart or not isinstance(row["prompt"], str)
        prompt += "\n" if on_its_own and prompt and not given.endswith("\n") else ""
        beside = next((key for key in BESIDE if key in row), None)
        labels = BESIDE[beside] if beside else ("", "")
        for label, said in zip(labels, (row[beside] if beside else None, row), strict=True):
            if said is None:
                continue
            scores = "  ".join(
                f"{name} {'no opinion' if score is None else format(score, '.3f')}"
                for name, score in said["rewards"].items()
            )
            text = prompt + escape(completion_text(said["completion"]))
            console.print(text, highlight=False, soft_wrap=not goes_to_a_terminal())
            if scores:
                console.print(f"  [cyan]{label}{escape(scores)}[/cyan]", highlight=False)
