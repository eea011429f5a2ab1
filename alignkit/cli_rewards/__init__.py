"""`alignkit rewards list | show | check | score | new`: a reward author's tools on the command line."""

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from alignkit.errors import RewardError
from alignkit.registry import available_rewards, find_reward, load_reward
from alignkit.reward import call_reward, granularity, learned_rewards, required_columns, reward_name
from alignkit.scaffold import new_plugin
from alignkit.whole_files import prepare_output

_SIGNS = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `rewards` with its own commands; each sets `handler`, which returns the exit code."""
    rewards = commands.add_parser("rewards", help="list, show, check, score and write rewards")
    actions = rewards.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = actions.add_parser("list", help="the installed rewards")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.add_argument("--load", action="store_true", help="import every reward, to find all that are broken")
    listing.set_defaults(handler=_list)

    show = actions.add_parser("show", help="what a reward means, its settings and the columns it needs")
    _add_name(show, settings=False)
    show.set_defaults(handler=_show)

    check = actions.add_parser("check", help="hold a reward against the contract, check by check")
    _add_name(check)
    check.add_argument(
        "--samples", type=Path, metavar="FILE", help="try it on these: .jsonl, .csv or .parquet with prompt, completion"
    )
    check.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave out a check")
    check.set_defaults(handler=_check)

    score = actions.add_parser("score", help="score the completions in a file")
    _add_name(score, settings=False)
    score.add_argument("file", type=Path, help=".jsonl, .json, .csv or .parquet with completion, prompt, other columns")
    score.add_argument("settings", nargs="*", metavar="key=value", help="settings of the reward")
    score.add_argument("--prompt", default="prompt", metavar="COLUMN", help="the column with the prompts")
    score.add_argument("--completion", default="completion", metavar="COLUMN", help="the column with the completions")
    score.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    score.add_argument("--rows", type=int, default=20, metavar="N", help="rows in the table (default 20)")
    score.add_argument("--output", type=Path, metavar="FILE", help="write the rows with their scores to this .jsonl")
    score.set_defaults(handler=_score)

    new = actions.add_parser("new", help="write a plugin package for a reward of your own")
    new.add_argument("name", help="the reward's name, such as politeness")
    new.add_argument("--folder", type=Path, help="where to (default: alignkit-NAME)")
    new.set_defaults(handler=_new)


def _add_name(parser: argparse.ArgumentParser, settings: bool = True) -> None:
    parser.add_argument("name", help="a listed name, package.module:Object, or file.py:Object (which runs that file)")
    if settings:
        parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the reward")
    parser.add_argument("--no-code", action="store_true", help="only listed rewards, no trust_remote_code")


def read_settings(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs as settings, the values read as YAML, as in a recipe.

    Raises:
        RewardError: a pair without `=`, or a value that is no YAML.
    """
    import yaml

    from alignkit.recipe.reading import parse_yaml

    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise RewardError(f"a setting is key=value, such as target=20; got {pair!r}")
        try:
            settings[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise RewardError(f"the value of {key} cannot be read: {value!r} ({error})") from error
    return settings


def _loaded(args: argparse.Namespace) -> Any:
    settings = read_settings(args.settings)
    if args.no_code:
        from alignkit.recipe.checks import trusting

        if problems := trusting(settings):
            raise RewardError("; ".join(problems))
    return load_reward(args.name, allow_code=not args.no_code, **settings)


def _list(args: argparse.Namespace) -> int:
    entries = available_rewards(load=args.load)
    if args.json:
        keys = ("name", "target", "distribution", "version", "error")
        print(json.dumps([{key: getattr(entry, key) for key in keys} for entry in entries], indent=2))
        return 0
    if not entries:
        print("No rewards are installed. Try: pip install alignkit-rewards, or alignkit rewards new NAME")
        return 0
    rows = [(entry.name, f"{entry.distribution} {entry.version}", entry) for entry in entries]
    names, sources = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    for name, source, entry in rows:
        about = f"BROKEN {entry.error}" if entry.error else entry.summary or entry.target
        print(f"{name:{names}}  {source:{sources}}  {about}")
    broken = sum(entry.error is not None for entry in entries)
    if broken:
        print(f"\n{broken} of {len(entries)} cannot be used; the others can.", file=sys.stderr)
    return 0


def _show(args: argparse.Namespace) -> int:
    found = find_reward(args.name, allow_code=not args.no_code)
    entry = next((entry for entry in available_rewards() if entry.name == args.name), None)
    call = found.__call__ if isinstance(found, type) else found
    print(f"{args.name}: {inspect.cleandoc(found.__doc__ or 'no description')}\n")
    where = inspect.getsourcefile(found if isinstance(found, type) or inspect.isroutine(found) else type(found))
    if entry is not None:
        print(f"from       {entry.distribution} {entry.version}, {entry.target}")
    print(f"file       {where}")
    print(f"scores     each {granularity(found)}")
    columns = getattr(found, "required_columns", None)
    if isinstance(columns, property):
        print("columns    depend on the settings")
    else:
        needed = [column for column in required_columns(call) if column != "self"]
        print(f"columns    {', '.join(needed) or 'none besides prompt'}")
    if isinstance(found, type):
        print(f"settings   {args.name}{inspect.signature(found)}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from alignkit.testing import check_reward

    reward = _loaded(args)
    samples: dict[str, Any] = {}
    if args.samples is not None:
        from alignkit.cli_rewards.scoring import read_samples

        prompts, completions, columns = read_samples(args.samples)
        samples = {"prompts": prompts, "completions": completions, "columns": columns}
    results = check_reward(reward, skip=args.skip, raises=False, **samples)
    for result in results:
        print(f"{_SIGNS[result.status]}  {result.name.removeprefix('check_'):38} {result.claim}")
        if result.message:
            print("\n".join(f"        {line}" for line in result.message.splitlines()))
    failed = sum(result.status == "failed" for result in results)
    passed = sum(result.status == "passed" for result in results)
    seconds = sum(result.seconds for result in results)
    print(
        f"\n{reward_name(reward)}: {passed} passed, {failed} failed, {len(results) - passed - failed} skipped", end=""
    )
    print(f" in {seconds:.1f} s")
    return 1 if failed else 0


def _score(args: argparse.Namespace) -> int:
    from alignkit.cli_rewards.scoring import read_samples, show_scores, write_scores

    prepare_output(args.output, "--output")
    reward = _loaded(args)
    for learned in learned_rewards([reward]):
        learned.scores_only = True
    prompts, completions, columns = read_samples(args.file, args.prompt, args.completion, args.limit)
    scores = call_reward(reward, prompts, completions, columns=columns)
    show_scores(reward_name(reward), prompts, completions, scores, args.rows)
    if args.output is not None:
        write_scores(args.output, reward_name(reward), prompts, completions, columns, scores)
        print(f"written to {args.output}")
    return 0


def _new(args: argparse.Namespace) -> int:
    written = new_plugin(args.name, args.folder)
    for path in written:
        print(path)
    folder = written[0].parent
    print(f"\nNow:  cd {folder} && pip install -e . && pytest && alignkit rewards check {args.name.replace('-', '_')}")
    return 0
