"""Writes the figures of docs/results/speed/ into docs/performance.md, between its markers, and draws the growth plot.

    python benchmarks/page.py            write the page and the plot
    python benchmarks/page.py --check    exit 1 where the page is not what the figures say

The prose of the page is written by hand; what stands between `<!-- figures: NAME -->` and `<!-- end -->` is written
here.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import growth
import record
import tables

PAGE = record.ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end -->)", re.S)


def blocks(rows: record.Rows, about: dict[str, Any]) -> dict[str, str]:
    """The generated parts of the page, by name."""
    return {
        "machine": machine(rows, about),
        "ratios": tables.markdown(tables.ratios(rows), 6),
        "contestants": tables.markdown(tables.contestants(rows), 4),
        "floor": tables.markdown(tables.floor(rows), 3),
        "phases": tables.markdown(tables.phases(rows), 3),
        "growth": tables.markdown(growth.table(rows["growth"]), 2),
        **{
            f"lost-{epochs}-{precision}": tables.markdown(tables.lost(rows, epochs, precision), 1)
            for epochs, precision in tables.LIMITS_COMPARED
        },
    }


def machine(rows: record.Rows, about: dict[str, Any]) -> str:
    """What the figures were measured on, and how often."""
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    rounds = {size: max((r["round"] for r in rows["rounds"] if r["size"] == size), default=0) for size in ("S", "M")}
    threads = f"{about['threads']} thread" + ("s" if about["threads"] > 1 else "")
    steps = sorted({row["steps"] for row in rows["rounds"]})
    first_look = "**A first look, not a record: too few steps to rely on any single ratio.** " if about["quick"] else ""
    return (
        f"{first_look}Measured on {about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, "
        f"{threads} a process; Python {about['python']}, {versions}; alignkit at {about['commit']}. "
        f"Rounds: {rounds['S']} of model S, {rounds['M']} of model M, "
        f"{' or '.join(map(str, steps))} measured steps in each process; phases and growth once. Seed 0.\n"
    )


def render(text: str, parts: dict[str, str]) -> str:
    """The page with every generated part in its place.

    Raises:
        SystemExit: the page names a part that there is not, or leaves one out.
    """
    named = [match[1] for match in BLOCK.findall(text)]
    if sorted(named) != sorted(parts):
        raise SystemExit(f"docs/performance.md has places for {sorted(named)}, the figures fill {sorted(parts)}")
    return BLOCK.sub(lambda match: f"{match[1]}\n{parts[match[2]]}\n{match[4]}", text)


def current(page: Path = PAGE, home: Path = record.PUBLISHED) -> tuple[str, str]:
    """The page as it is, and as the figures say."""
    text = page.read_text(encoding="utf-8")
    return text, render(text, blocks(record.read(home), record.read_about(home)))


def write() -> None:
    """Writes page and plot."""
    _, text = current()
    PAGE.write_text(text, encoding="utf-8")
    growth.draw(record.read(record.PUBLISHED)["growth"], record.PUBLISHED / "growth.svg")


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/performance.md from docs/results/speed/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is out of date")
    if not parser.parse_args(arguments).check:
        write()
        return 0
    is_now, should_be = current()
    if is_now != should_be:
        print("docs/performance.md is not what the figures say; run: python benchmarks/page.py", file=sys.stderr)
    return int(is_now != should_be)


if __name__ == "__main__":
    sys.exit(main())
