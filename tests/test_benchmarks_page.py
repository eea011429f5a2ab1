"""The performance page says what the raw figures say, and the sums behind it are right."""

import itertools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import growth  # noqa: E402
import page  # noqa: E402
import plan  # noqa: E402
import record  # noqa: E402
import tables  # noqa: E402
from phases import PHASES  # noqa: E402


def row(name, turn, seconds, mib=100.0, size="S", epochs=4, precision="fp32"):
    return {
        "round": turn, "name": name, "size": size, "epochs": epochs, "precision": precision, "steps": 6,
        "step_cpu_s": seconds, "step_wall_s": seconds, "samples_per_s": 32 / seconds, "tokens_per_s": 1024 / seconds,
        "peak_rss_mib": mib, "before_training_rss_mib": 60.0, "imports_rss_mib": 50.0,
    }  # fmt: skip


def rows(**parts):
    return {part: parts.get(part, []) for part in plan.PARTS}


def test_the_page_is_what_the_figures_say():
    is_now, should_be = page.current()
    assert is_now == should_be, "run: python benchmarks/page.py"


def test_a_record_on_the_page_leaves_nobody_out():
    figures = record.read(record.PUBLISHED)
    measured = {(r["size"], r["name"], r["epochs"], r["precision"]) for r in figures["rounds"]}
    planned = {(size, *known) for size, list_of in plan.CONTESTANTS.items() for known in list_of}
    assert measured <= planned
    if not record.read_about(record.PUBLISHED)["quick"]:  # a first look may be of a part
        assert measured == planned
        assert len(figures["phases"]) == len(plan.CONTESTANTS[plan.PROFILED_SIZE])
        assert len(growth.curves(figures["growth"])) == len(plan.GROWTH)


def test_a_ratio_is_of_medians_and_its_range_over_rounds():
    measured = [row("alignkit-ppo", turn, seconds) for turn, seconds in enumerate((2.0, 4.0, 3.0), 1)]
    measured += [row("trl112-ppo", turn, seconds) for turn, seconds in enumerate((8.0, 8.0, 9.0), 1)]
    assert tables.ratio(rows(rounds=measured), tables.TARGETS[0]) == (8 / 3, 2.0, 4.0)


def test_only_rounds_in_which_both_ran_are_compared():
    measured = [row("alignkit-ppo", 1, 2.0), row("alignkit-ppo", 2, 1.0), row("trl112-ppo", 1, 8.0)]
    assert tables.ratio(rows(rounds=measured), tables.TARGETS[0]) == (4.0, 4.0, 4.0)


@pytest.mark.parametrize(("seconds", "mib", "verdicts"), [(3.9, 44.0, ["met", "met"]), (4.1, 46.0, ["**missed**"] * 2)])
def test_a_target_is_met_or_missed(seconds, mib, verdicts):
    measured = [row("alignkit-ppo", 1, seconds, mib), row("trl112-ppo", 1, 8.0, 100.0)]
    table = tables.ratios(rows(rounds=measured))
    assert [line[-1] for line in table[1:]] == verdicts
    assert [line[5] for line in table[1:]] == ["speed", "peak memory"]


def test_what_is_lost_adds_up():
    ours = {name: 0.2 for name in PHASES}
    limit = {**ours, "sampling": 0.1, "rest": 0.0}
    measured = [row("alignkit-ppo", 1, 1.8) | {"phases": ours}, row("limit", 1, 1.5) | {"phases": limit}]
    table = {line[0]: line for line in tables.lost(rows(phases=measured), 4, "fp32")[1:]}
    assert table["sampling"][1:] == ["0.200", "0.100", "+0.100", "33%"]
    assert table["logging and the rest"][3:] == ["+0.200", "67%"]
    assert table["step"][1:] == ["1.800", "1.500", "+0.300", "100%"]


def test_exponents_of_known_growth():
    assert growth.exponent([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx(1)
    assert growth.exponent([16, 32, 64], [5.0, 20.0, 80.0]) == pytest.approx(2)
    assert growth.exponent([2, 4, 8], [7.0, 7.0, 7.0]) == pytest.approx(0)


def test_growth_doubles_one_dimension_at_a_time_from_one_start():
    points = [dict(m.changes) for m in plan.growth()]
    assert len(points) == sum(len(values) for values in plan.GROWTH.values()) - len(plan.GROWTH) + 1
    for point in points:
        changed = [key for key, start in plan.GROWTH_START.items() if point[key] != start]
        assert len(changed) <= 1
    for values in plan.GROWTH.values():
        assert len(values) == 4 and all(b == 2 * a for a, b in itertools.pairwise(values))


def test_a_growth_plot_is_drawn(tmp_path):
    measured = []
    for measurement in plan.growth():
        size = dict(measurement.changes)
        measured.append(row("alignkit-ppo", 1, float(size["batch"]), 50.0 + size["width"]) | size)
    table = {line[0]: line for line in growth.table(measured)[1:]}
    assert table["batch"][3] == "1.00" and table["layers"][3] == "0.00" and table["model width"][5] == "1.00"
    growth.draw(measured, tmp_path / "growth.svg")
    assert "</svg>" in (tmp_path / "growth.svg").read_text()


def test_a_part_that_the_page_leaves_out_is_noticed():
    with pytest.raises(SystemExit, match="has places for"):
        page.render("<!-- figures: ratios -->\n<!-- end -->\n", {"ratios": "a\n", "phases": "b\n"})


def test_a_part_is_put_between_its_markers():
    text = "before\n<!-- figures: ratios -->\nold\n<!-- end -->\nafter\n"
    once = page.render(text, {"ratios": "new\n"})
    assert once == "before\n<!-- figures: ratios -->\n\nnew\n\n<!-- end -->\nafter\n"
    assert page.render(once, {"ratios": "new\n"}) == once
