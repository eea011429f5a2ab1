"""Publishes a finished run: copies what docs/results.md needs out of its folder.

    python scripts/add_result.py runs/sentiment/ppo --study sentiment --method ppo
    python scripts/add_result.py judged/ppo.json --study sentiment --method ppo
    python scripts/add_result.py judged/gcn.json --study captions --method GCN --trained runs/gcn
    python scripts/add_result.py comparison.json --study sentiment

Of a run it takes results.json, the recipe, of metrics.jsonl the held-out rows and what `WATCHED` names of the others,
and of environment.json the versions and the machine's kind; of a file that `alignkit evaluate --output` wrote all but
the completions, and with `--trained` the metrics.jsonl of the run that it judged. Models, samples and paths stay where
they are.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from alignkit.json_lines import read_json_lines, replace_json_lines
from alignkit.path_names import without_folders
from alignkit.recipe.reading import dump_yaml, parse_yaml

ROOT = Path(__file__).resolve().parents[1]


# What the rows of training steps keep, for pictures over steps.
WATCHED = (
    "kl",
    "learning_rate",
    "ess/share",
    "weights/log_z",
    "discriminator/accuracy",
    "discriminator/gain",
    "distinct/distinct",
)


def kept_rows(metrics: Path) -> list[dict]:
    """The held-out figures that were logged, and of training steps those that `WATCHED` names, with their step."""
    kept = [
        {key: row[key] for key in row if key == "step" or key in WATCHED or key.startswith("eval_")}
        for row in read_json_lines(metrics)
    ]
    return [row for row in kept if len(row) > 1]


def without_paths(value):
    """The value with every absolute path reduced to its last part, a recipe's to its place below `recipes/`."""
    return without_folders(_recipes_in_place(value), instead="")


def _recipes_in_place(value):
    if isinstance(value, dict):
        return {key: _recipes_in_place(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_recipes_in_place(item) for item in value]
    return re.sub(r"^/.*/(recipes/.+\.yaml)$", r"\1", value) if isinstance(value, str) else value


def publish(run: Path, study: str, method: str | None, results: Path, trained: Path | None = None) -> Path:
    """Copies the run, or what judged it and how the run `trained` came there, under `results/study/method/seed-<n>/`,
    and what `alignkit compare` found to `results/study/comparison.json`; returns the folder."""
    judged = without_paths(json.loads(run.read_text(encoding="utf-8"))) if run.is_file() else {}
    if trained is not None and ("figures" not in judged or "systems" in judged):
        raise SystemExit(f"--trained {trained} goes with a file of `alignkit evaluate --output`, which {run} is not")
    if "systems" in judged:
        kept = {key: value for key, value in judged.items() if key not in ("folders", "remarks")}
        (results / study / "comparison.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        return results / study
    if method is None:
        raise SystemExit(f"{run}: of which --method? only a file of `alignkit compare --output` has none")
    needed = [run / name for name in ("results.json", "environment.json", "recipe.yaml", "metrics.jsonl")]
    needed = ([] if trained is None else [trained / "metrics.jsonl"]) if run.is_file() else needed
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        raise SystemExit(f"no {', no '.join(missing)}: a finished run has them; nothing was published")
    # everything is read before anything that was published is replaced
    rows = kept_rows(needed[-1]) if needed else None
    if run.is_file():
        seed = judged["environment"]["seed"]
        kept = {key: judged[key] for key in ("figures", "temperatures", "recipe", "environment") if key in judged}
        files = {"judged.json": json.dumps(kept, indent=2) + "\n"}
    else:
        files = {}
        for name in ("results.json", "environment.json"):
            content = without_paths(json.loads((run / name).read_text(encoding="utf-8")))
            files[name] = json.dumps(content, indent=2) + "\n"
        files["recipe.yaml"] = dump_yaml(without_paths(parse_yaml((run / "recipe.yaml").read_text(encoding="utf-8"))))
        seed = json.loads(files["environment.json"])["seed"]
    target = results / study / method / f"seed-{seed}"
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for name, text in files.items():
        (target / name).write_text(text, encoding="utf-8")
    if rows is not None:
        replace_json_lines(target / "metrics.jsonl", rows)
    return target


def main() -> None:
    """Reads the command line and publishes one run."""
    parser = argparse.ArgumentParser(description="Copy what docs/results.md needs out of a finished run's folder.")
    parser.add_argument(
        "run", type=Path, help="the run's folder, or a file of `alignkit evaluate` or `compare --output`"
    )
    parser.add_argument("--study", required=True, help="the study it belongs to: a folder of docs/results/")
    parser.add_argument("--method", help="the row of the table, such as ppo")
    parser.add_argument("--trained", type=Path, help="the run that the file judged: for pictures over its steps")
    given = parser.parse_args()
    print(publish(given.run, given.study, given.method, ROOT / "docs" / "results", given.trained))


if __name__ == "__main__":
    main()
