"""The command line: train, evaluate, compare, generate, chat, rate, merge, rewards, env.

Mistakes of the user end with a message and exit code 2; set ALIGNKIT_TRACEBACK=1 to see where they were raised.
Modules load inside the handlers, so that `alignkit rewards list` does not wait for torch.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from alignkit import __version__, cli_rewards
from alignkit.arguments import Parser
from alignkit.errors import AlignkitError
from alignkit.launcher import end_with_launcher
from alignkit.search_options import check_decoder

_MISTAKE = 2
_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 a check failed, 2 a mistake of the user, 130 interrupted."""
    end_with_launcher()
    parser = build_parser()
    args = parser.parse_args(arguments)
    # TRL reports that a trainer starts, and transformers asks the hub about files, unless told otherwise.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # bitsandbytes tells everybody, on import, that an optional package for faster 4-bit layers is not there
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_says_something)
    try:
        return args.handler(args) or 0
    except AlignkitError as error:
        if os.environ.get("ALIGNKIT_TRACEBACK"):
            raise
        print(f"alignkit: {type(error).__name__}: {error}", file=sys.stderr)
        return _MISTAKE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _says_something(record: logging.LogRecord) -> bool:
    return "from kernels-community" not in record.getMessage()


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments."""
    parser = Parser(
        prog="alignkit",
        description="Train language models with rewards that you wrote or trained yourself.",
        epilog="Set ALIGNKIT_DATA and ALIGNKIT_MODELS to folders with local data sets and models.",
    )
    parser.add_argument("--version", action="version", version=f"alignkit {__version__}")
    commands: argparse._SubParsersAction[argparse.ArgumentParser] = parser.add_subparsers(  # type: ignore[assignment]
        title="commands", metavar="COMMAND", required=True
    )
    _add_train(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_generate(commands)
    _add_chat(commands)
    _add_rate(commands)
    _add_merge(commands)
    cli_rewards.add_parser(commands)
    env = commands.add_parser("env", help="versions, machine and plugins, for bug reports")
    env.add_argument("--json", action="store_true", help="as JSON")
    env.set_defaults(handler=_env)
    return parser


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="dotted keys of the recipe, such as training.max_steps=10",
    )
    parser.add_argument(
        "--no-code", action="store_true", help="refuse what runs code: unregistered rewards, trust_remote_code"
    )


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = commands.add_parser("train", help="train what a recipe describes, with evaluation before and after")
    train.add_argument("recipe", type=Path, help="the recipe's YAML file")
    _add_recipe_arguments(train)
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, load what scores, but not the model to train"
    )
    train.add_argument("--resume", action="store_true", help="continue from the newest checkpoint of the run's folder")
    train.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run in the folder, its checkpoints included"
    )
    train.set_defaults(handler=_train)


def _add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    evaluate = commands.add_parser("evaluate", help="judge a model with a recipe's held-out data and metrics")
    evaluate.add_argument("run", type=Path, help="a run's folder, or a recipe's YAML file")
    _add_recipe_arguments(evaluate)
    evaluate.add_argument("--model", help="judge this model, or that of this run, instead of the run's own")
    evaluate.add_argument(
        "--evaluation", type=Path, metavar="RUN", help="judge by the `evaluation` of this run or recipe"
    )
    evaluate.add_argument(
        "--temperatures", type=float, nargs="+", default=[], metavar="T", help="also sample at each, side by side"
    )
    evaluate.add_argument("--output", type=Path, help="write figures and completions to this JSON file")
    evaluate.set_defaults(handler=_evaluate)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = commands.add_parser("compare", help="runs side by side on the same prompts, against the first of them")
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a finished run, or what evaluate --output wrote; NAME=RUN,RUN,RUN is one system of several seeds",
    )
    compare.add_argument("--metric", action="append", default=[], metavar="NAME", help="only this figure; repeatable")
    compare.add_argument("--output", type=Path, help="write means, differences and intervals to this JSON file")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw differences and intervals: a .svg or .png")
    compare.set_defaults(handler=_compare)


_SEARCH_OPTIONS = (
    ("--simulations", int, "mcts: visits of the root before a token is chosen (default: 50)"),
    ("--children", int, "mcts: most children of a node (default: 50)"),
    ("--exploration", float, "mcts: weight of the policy against the values (default: 8)"),
    ("--value", str, "mcts: prefix (default), or rollout: the reward of a leaf, or of its completion by the model"),
    ("--backup", str, "mcts: max (default) or mean of the values below"),
    ("--leaves-per-wave", int, "mcts: leaves read together; above 1 changes the search (default: 1)"),
    ("--visit-temperature", float, "mcts: above 0 draws a token by its visits (default: 0)"),
    ("--rollout-temperature", float, "mcts: of rollouts (default: 0, the likeliest token)"),
    ("--beams", int, "das: texts followed (default: 3)"),
    ("--candidates", int, "das: tokens of each that the reward is asked about (default: 10)"),
    ("--alpha", float, "das, resample: power of the reward (default: 1)"),
    ("--reward-as", str, "das, resample: probability (default), exponential for any range; resample: odds, too"),
    ("--policy-share", float, "mcts, das: share of the model as such in what is drawn (default: 0)"),
)


_LONGEST = "most tokens of a completion (default: as in the run that trained the model, else 64, or what fits)"


def _add_generate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    generate = commands.add_parser("generate", help="complete prompts, and score the completions")
    generate.add_argument("model", help="a model's folder or name, or a run's folder")
    source = generate.add_mutually_exclusive_group()
    source.add_argument("--prompts", type=Path, help="a text file with a prompt a line, or .jsonl with a column prompt")
    source.add_argument("--prompt", action="append", help="a prompt; may be given several times")
    generate.add_argument(
        "--decoder",
        default="sample",
        help="sample (default); best_of_n: the sample that rewards like most; resample: one drawn by its reward; mcts: "
        "tree search; das: beam search",
    )
    own = generate.add_argument_group("settings of the decoders")
    own.add_argument("--n", type=int, metavar="N", help="best_of_n, resample: samples to choose from (default: 8)")
    for flag, kind, purpose in _SEARCH_OPTIONS:
        own.add_argument(flag, type=kind, metavar={str: "NAME", int: "N", float: "X"}[kind], help=purpose)
    own.add_argument("--sample", action="store_true", help="das: draw tokens instead of following beams")
    _add_reward(generate, "score with it")
    generate.add_argument("--count", type=int, default=1, metavar="N", help="completions a prompt (default: 1)")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help=_LONGEST)
    generate.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    generate.add_argument("--top-p", type=float, default=1.0, help="1 takes all tokens (default)")
    generate.add_argument("--top-k", type=int, default=0, help="0 takes all tokens (default)")
    generate.add_argument("--batch-size", type=int, default=16, help="prompts completed at a time (default: 16)")
    generate.add_argument("--seed", type=int, default=42, help="of what is drawn (default: 42)")
    generate.add_argument("--output", type=Path, help="write one JSON object a line instead of printing")
    generate.set_defaults(handler=_generate)


def _add_reward(parser: argparse.ArgumentParser, purpose: str) -> None:
    written = "written as in a recipe: NAME, or 'NAME: {setting: value}'"
    parser.add_argument(
        "--reward", action="append", default=[], metavar="REWARD", help=f"{purpose}; {written}; repeatable"
    )
    parser.add_argument("--no-code", action="store_true", help="only registered rewards, no trust_remote_code")


def _add_chat(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    chat = commands.add_parser("chat", help="talk with a model in the terminal")
    chat.add_argument("model", help="a model's folder or name, or a run's folder")
    _add_reward(chat, "show its score of each answer")
    chat.add_argument(
        "--user-reward", action="append", default=[], metavar="REWARD", help="the same for each line that you write"
    )
    chat.add_argument("--turns", type=int, metavar="N", help="it reads the last N turns (default: as its run did)")
    chat.add_argument("--max-new-tokens", type=int, metavar="N", help=_LONGEST)
    chat.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default: 1)")
    chat.add_argument("--seed", type=int, default=None)
    chat.set_defaults(handler=_chat)


def _add_rate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    rate = commands.add_parser("rate", help="let people rate what several systems wrote, blind, and sum it up")
    rate.add_argument(
        "systems", nargs="*", default=[], metavar="NAME=PATH",
        help="a run's folder, .jsonl with prompt and completion, or what evaluate --output wrote; none goes on with "
        "what is in --output",
    )  # fmt: skip
    rate.add_argument("--output", type=Path, metavar="FOLDER", help="where the study and its ratings are kept")
    rate.add_argument("--summary", type=Path, metavar="FOLDER", help="only sum up the ratings in this folder")
    rate.add_argument("--gold", action="store_true", help="the reference is one of the systems, called gold")
    rate.add_argument("--count", type=int, default=50, metavar="N", help="prompts that are drawn (default: 50)")
    rate.add_argument("--seed", type=int, default=42, help="of the draw and of each rater's order (default: 42)")
    rate.add_argument("--questions", type=Path, metavar="FILE", help="YAML in the place of the three default questions")
    rate.add_argument("--together", action="store_true", help="show all responses to a prompt at once")
    rate.add_argument("--host", default="127.0.0.1", help="to listen on (default: 127.0.0.1, this machine only)")
    rate.add_argument("--port", type=int, default=8642, help="0 takes any that is free (default: 8642)")
    rate.set_defaults(handler=_rate)


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    merge = commands.add_parser("merge", help="fold an adapter into its base: a plain model folder")
    merge.add_argument("model", type=Path, help="the folder of an adapter, or of a run that trained one")
    merge.add_argument("output", type=Path, help="folder to write; it must not exist, or be empty")
    merge.add_argument("--dtype", help="of the weights: fp32, bf16, fp16, or their full names (default: the base's)")
    merge.add_argument("--value-head", action="store_true", help="write the critic too, for PPO to go on with")
    merge.set_defaults(handler=_merge)


def _train(args: argparse.Namespace) -> int:
    from alignkit.recipe import load_recipe
    from alignkit.run import run_recipe

    recipe = load_recipe(args.recipe, args.overrides, allow_code=not args.no_code)
    run_recipe(recipe, dry_run=args.dry_run, allow_code=not args.no_code, resume=args.resume, overwrite=args.overwrite)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from alignkit.run.evaluate import evaluate_run

    evaluate_run(
        args.run,
        args.overrides,
        model=args.model,
        evaluation=args.evaluation,
        output=args.output,
        temperatures=args.temperatures,
        allow_code=not args.no_code,
    )
    return 0


def _compare(args: argparse.Namespace) -> int:
    from alignkit.run.compare import compare_runs

    compare_runs(args.runs, args.metric, args.output, args.plot)
    return 0


def _generate(args: argparse.Namespace) -> int:
    if args.prompts is None and args.prompt is None:
        raise AlignkitError(
            "there is nothing to complete: add --prompt TEXT (repeatable) or --prompts FILE. --reward scores the "
            "completions; for texts that you have already, there is alignkit rewards score REWARD FILE"
        )
    check_decoder(args)
    from alignkit.run.generate import generate_to

    generate_to(args)
    return 0


def _chat(args: argparse.Namespace) -> int:
    from alignkit.chat import chat

    chat(
        args.model,
        rewards=args.reward,
        user_rewards=args.user_reward,
        turns=args.turns,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        allow_code=not args.no_code,
    )
    return 0


def _rate(args: argparse.Namespace) -> int:
    if args.summary is not None:
        if args.systems or args.output is not None:
            raise AlignkitError("--summary FOLDER goes alone: it takes systems and questions from the folder's study")
        from alignkit.rating.summary import summarise

        summarise(args.summary)
        return 0
    if args.output is None:
        raise AlignkitError("rate needs --output FOLDER, where the ratings are kept (or --summary FOLDER)")
    from alignkit.rating.serving import rate

    rate(
        args.systems,
        args.output,
        gold=args.gold,
        count=args.count,
        seed=args.seed,
        questions=args.questions,
        together=args.together,
        host=args.host,
        port=args.port,
    )
    return 0


def _merge(args: argparse.Namespace) -> int:
    from alignkit.models.merging import merge_adapter
    from alignkit.run.environment import quiet_hosts

    quiet_hosts()
    made = merge_adapter(args.model, args.output, dtype=args.dtype, value_head=args.value_head)
    print(f"{made.folder}: {made.base} with the adapter folded in, {made.dtype}")
    print(f"logits differ from the adapter's by at most {made.difference:.2g} (largest logit {made.scale:.3g})")
    if made.quantised:
        print("the adapter learned on quantised weights and is now on full ones: hence the difference")
    return 0


def _env(args: argparse.Namespace) -> int:
    from alignkit.run.environment import describe_environment, environment_lines

    environment = describe_environment()
    if args.json:
        import json

        print(json.dumps(environment, indent=2))
    else:
        print("\n".join(environment_lines(environment)))
    return 0
