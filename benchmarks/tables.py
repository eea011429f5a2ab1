"""From raw figures to tables. A table is a list of rows of text; the first is the header.

Medians are over rounds, with the range in brackets. Ratios are of medians of CPU seconds, their range that of the
ratios of each round.
"""

import statistics
from dataclasses import dataclass
from typing import Any

from phases import PHASES
from plan import CONTESTANTS, LABELS, PROFILED_SIZE, floors
from rich.table import Table as RichTable

Rows = dict[str, list[dict[str, Any]]]
Table = list[list[str]]
Key = tuple[str, str, int, str]  # size, contestant, K, precision
PAGE_ONLY = ("rounds", "tokens/s", "before training", "after imports")  # a terminal is narrow
LIMITS_COMPARED = [(4, "fp32"), (4, "bf16"), (1, "fp32")]  # (K, precision) that the limit is measured with


@dataclass(frozen=True)
class Target:
    """What we set out to reach against a rival.

    Attributes:
        ours: the contestant of ours.
        rival: the other one.
        wanted: the ratio to reach; None where none was set.
        memory: compares peak memory, ours over theirs, instead of CPU seconds, theirs over ours.
    """

    ours: Key
    rival: Key
    wanted: float | None
    memory: bool = False


def _target(ours: str, rival: str, epochs: int, precision: str, wanted: float | None, **more: Any) -> Target:
    size = more.pop("size", "S")
    return Target((size, ours, epochs, precision), (size, rival, epochs, precision), wanted, **more)


TARGETS = [
    _target("alignkit-ppo", "trl112-ppo", 4, "fp32", 2.0),
    _target("alignkit-ppo", "trl112-ppo", 4, "bf16", 3.0),
    _target("alignkit-ppo", "trl112-ppo", 4, "fp32", 0.45, memory=True),
    _target("alignkit-ppo-separate-critic", "trl112-ppo", 4, "fp32", 1.5),
    _target("alignkit-ppo", "trl116-rloo", 1, "fp32", 2.5),
    _target("alignkit-ppo", "trl116-rloo", 1, "bf16", 2.5),
    _target("alignkit-ppo-groups", "trl116-rloo", 1, "fp32", 2.5),
    _target("alignkit-ppo-groups", "trl116-rloo", 1, "bf16", 2.5),
    _target("alignkit-reinforce", "trl116-rloo", 1, "fp32", 2.5),
    _target("alignkit-reinforce", "trl116-rloo", 1, "bf16", 2.5),
    _target("alignkit-ppo", "trl116-rloo", 4, "fp32", None),
    _target("alignkit-ppo", "trl112-ppo", 4, "fp32", 1.8, size="M"),
    _target("alignkit-ppo", "limit", 4, "fp32", None),
    _target("alignkit-ppo", "limit", 4, "bf16", None),
    _target("alignkit-ppo", "limit", 1, "fp32", None),
]


def chosen(rows: list[dict[str, Any]], key: Key) -> list[dict[str, Any]]:
    """The rows of one contestant, by round."""
    found = [row for row in rows if (row["size"], row["name"], row["epochs"], row["precision"]) == key]
    return sorted(found, key=lambda row: row["round"])


def number(value: float) -> str:
    """Three significant digits or so.

    >>> number(0.1234), number(2.345), number(45.67), number(1234.5)
    ('0.123', '2.35', '45.7', '1234')
    """
    size = abs(value)
    return f"{value:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def median(rows: list[dict[str, Any]], column: str, spread: bool = False) -> str:
    """Median over rounds; with its range where it is asked for and there are several."""
    values = [row[column] for row in rows]
    text = number(statistics.median(values))
    return f"{text} ({number(min(values))}–{number(max(values))})" if spread and len(values) > 1 else text


def contestants(rows: Rows) -> Table:
    """Every contestant that was measured."""
    table = [
        ["model", "contestant", "K", "precision", "rounds", "samples/s", "tokens/s", "wall s/step", "CPU s/step",
         "peak MiB", "before training", "after imports"]
    ]  # fmt: skip
    for size, list_of in CONTESTANTS.items():
        for name, epochs, precision in list_of:
            mine = chosen(rows["rounds"], (size, name, epochs, precision))
            if not mine:
                continue
            cells = [median(mine, column) for column in ("samples_per_s", "tokens_per_s", "step_wall_s")]
            cells += [median(mine, "step_cpu_s", spread=True)]
            memory = ("peak_rss_mib", "before_training_rss_mib", "imports_rss_mib")
            cells += [median(mine, column) for column in memory]
            table.append([size, LABELS[name], str(epochs), precision, str(len(mine)), *cells])
    return table


def ratio(rows: Rows, target: Target) -> tuple[float, float, float] | None:
    """Ratio of medians, and the smallest and largest ratio of a round; None where one of the two was not measured."""
    column = "peak_rss_mib" if target.memory else "step_cpu_s"
    over, under = (target.ours, target.rival) if target.memory else (target.rival, target.ours)
    above = {row["round"]: row[column] for row in chosen(rows["rounds"], over)}
    below = {row["round"]: row[column] for row in chosen(rows["rounds"], under)}
    together = sorted(above.keys() & below.keys())
    if not together:
        return None
    each = [above[turn] / below[turn] for turn in together]
    medians = [statistics.median(side[turn] for turn in together) for side in (above, below)]
    return medians[0] / medians[1], min(each), max(each)


def ratios(rows: Rows) -> Table:
    """Ours against each rival, beside what we set out to reach."""
    table = [["model", "ours", "against", "K", "precision", "what", "ratio", "over rounds", "target", ""]]
    for target in TARGETS:
        found = ratio(rows, target)
        if found is None:
            continue
        value, low, high = found
        size, name, epochs, precision = target.ours
        met, wanted = "", "–"
        if target.wanted is not None:
            wanted = f"{'≤' if target.memory else '≥'} {target.wanted:.2f}"
            reached = value <= target.wanted if target.memory else value >= target.wanted
            met = "met" if reached else "**missed**"
        what = "peak memory" if target.memory else "speed"
        several = len(chosen(rows["rounds"], target.ours)) > 1
        cells = [what, f"{value:.2f}", f"{low:.2f}–{high:.2f}" if several else "–", wanted, met]
        table.append([size, LABELS[name], LABELS[target.rival[1]], str(epochs), precision, *cells])
    return table


def phases(rows: Rows) -> Table:
    """CPU seconds of a step by phase, one row a contestant."""
    table = [["contestant", "K", "precision", *PHASES.values(), "step"]]
    for name, epochs, precision in CONTESTANTS[PROFILED_SIZE]:
        for row in chosen(rows["phases"], (PROFILED_SIZE, name, epochs, precision)):
            seconds = row["phases"]
            cells = [f"{seconds[phase]:.3f}" for phase in PHASES]
            table.append([LABELS[name], str(epochs), precision, *cells, f"{sum(seconds.values()):.2f}"])
    return table


def lost(rows: Rows, epochs: int, precision: str) -> Table:
    """Where our PPO loses against the limit, phase by phase; the share is of all that is lost."""
    table = [["phase", "ours", "limit", "lost", "share of the loss"]]
    pair = [chosen(rows["phases"], (PROFILED_SIZE, n, epochs, precision)) for n in ("alignkit-ppo", "limit")]
    if not all(pair):
        return table
    ours, limit = (side[0]["phases"] for side in pair)
    total = sum(ours.values()) - sum(limit.values())
    for phase, title in PHASES.items():
        gap = ours[phase] - limit[phase]
        table.append([title, f"{ours[phase]:.3f}", f"{limit[phase]:.3f}", f"{gap:+.3f}", f"{gap / total:.0%}"])
    sums = [f"{sum(side.values()):.3f}" for side in (ours, limit)]
    return [*table, ["step", *sums, f"{total:+.3f}", "100%"]]


def floor(rows: Rows) -> Table:
    """The machine's rates at the job's shapes, the job's products over them, and how near the limit and we come."""
    table = [
        ["model", "K", "precision", "trunk", "head", "sampling, trunk", "sampling, head", "copy GB/s", "GFLOP a step",
         "floor s", "limit s", "ours s"]
    ]  # fmt: skip
    for size in CONTESTANTS:
        for epochs, precision in floors(size):
            mine = chosen(rows["floor"], (size, "floor", epochs, precision))
            if not mine:
                continue
            rates = [
                number(statistics.median(row["gflops"][shape] for row in mine))
                for shape in ("trunk", "head", "sampling_trunk", "sampling_head")
            ]
            cells = [median(mine, column) for column in ("copy_gb_per_s", "work_gflop", "floor_s")]
            for name in ("limit", "alignkit-ppo"):
                measured = chosen(rows["rounds"], (size, name, epochs, precision))
                cells.append(median(measured, "step_cpu_s") if measured else "–")
            table.append([size, str(epochs), precision, *rates, *cells])
    return table


def markdown(table: Table, text_columns: int) -> str:
    """The table for a page, its first columns to the left and the rest to the right."""
    header, *body = table
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *body))


def for_terminal(title: str, table: Table) -> RichTable:
    """The table for the terminal."""
    shown = RichTable(title=title)
    kept = [column for column, cell in enumerate(table[0]) if cell not in PAGE_ONLY]
    for column in kept:
        text = table[0][column] in ("contestant", "ours", "against")
        shown.add_column(table[0][column], justify="left" if text else "right", no_wrap=text)
    for row in table[1:]:
        shown.add_row(*(row[column].replace("**", "") for column in kept))
    return shown
