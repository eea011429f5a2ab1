"""The run report: one self-contained page that shows what a run did and whether to trust it.

    write_report("runs/quickstart")     # reads the run's files, writes runs/quickstart/report.html

The page asks nothing of any server, works in light and dark and on narrow windows, and shows what a model wrote as
text, never as markup.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import alignkit
from alignkit.report.comparing import diversity, pairs, readable, reward_against_length
from alignkit.report.reading import RunFiles, read_run
from alignkit.report.reliability import reliability_plot, reliability_rows, reliability_words
from alignkit.report.sections import cards, curves, facts, figures_table, headline, health, phases
from alignkit.whole_files import write_text

__all__ = ["render_report", "write_report"]


def write_report(folder: str | Path) -> Path:
    """Write report.html from the files of a run's folder; only metrics.jsonl must be there.

    Args:
        folder: of the run. Read are metrics.jsonl, samples.jsonl, results.json, health.json, recipe.yaml and
            environment.json.

    Returns:
        the path of the page.

    Raises:
        DataError: there is no metrics.jsonl, or a file is damaged.
    """
    return write_text(Path(folder) / "report.html", render_report(read_run(folder)))


def render_report(run: RunFiles) -> str:
    """The page as a string."""
    opening, folded = curves(run)
    scatter, scatter_words = reward_against_length(run)
    varied = diversity(run)
    environment = Environment(
        loader=PackageLoader("alignkit.report", "."),
        # every template is escaped, whatever its name ends in: model text must never become markup
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        name=run.name,
        facts=facts(run),
        headline=headline(run),
        cards=cards(run),
        health=health(run),
        opening=opening,
        folded=folded,
        pairs=pairs(run),
        classifier="accuracy" in run.after and "reward" not in run.after,
        reliability=reliability_plot(run),
        reliability_rows=reliability_rows(run),
        reliability_words=reliability_words(run),
        scatter=scatter,
        scatter_words=scatter_words,
        diversity=varied,
        has_real_text=any(value["style"] == "real" for row in varied for value in row["values"]),
        phases=phases(run),
        table=figures_table(run),
        recipe=run.recipe,
        environment=[(key, _plain(value)) for key, value in run.environment.items()],
        version=alignkit.__version__,
    )
    return readable(page)


def _plain(value: Any) -> str:
    if isinstance(value, dict) and not any(isinstance(item, dict | list) for item in value.values()):
        return "\n".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return json.dumps(value, indent=1, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
