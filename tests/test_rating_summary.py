"""From answers in a file to tables: figures worked out by hand."""

import json

import pytest
from rating_study import QUESTIONS, SYSTEMS, small_study

from alignkit.cli import main
from alignkit.errors import DataError
from alignkit.rating.store import RATINGS, Ratings
from alignkit.rating.study import open_study
from alignkit.rating.summary import ratings_of, summarise

pytest.importorskip("krippendorff", reason="part of the rate extra")

# Of Empathy, for items 0 to 3: gold is rated higher than plain on each, by 1, 2, 3 and 4; tuned is as plain.
ANN = {"gold": [2, 3, 4, 5], "plain": [1, 1, 1, 1], "tuned": [1, 1, 1, 1]}


def answer(ratings: Ratings, rater: str, values: dict[str, list[int]], questions=QUESTIONS) -> None:
    for system, row in values.items():
        ratings.add(rater, [((item, system, name), value) for item, value in enumerate(row) for name in questions])


@pytest.fixture
def folder(tmp_path):
    """Two raters; Bo says of everything what Ann says, one more where that can be, and rates Empathy only."""
    with Ratings(tmp_path, open_study(tmp_path, small_study())) as ratings:
        answer(ratings, "Ann", ANN)
        answer(ratings, "Bo", {name: [min(5, v + 1) for v in row] for name, row in ANN.items()}, ["Empathy"])
    return tmp_path


def test_means_counts_and_tests_are_those_worked_out_by_hand(folder, capsys):
    found = summarise(folder)
    gold, plain = found["systems"]["gold"]["Empathy"], found["systems"]["plain"]["Empathy"]
    assert (gold["mean"], gold["items"], gold["ratings"]) == ((2.5 + 3.5 + 4.5 + 5) / 4, 4, 8)
    assert gold["low"] < gold["mean"] < gold["high"]
    assert (plain["mean"], plain["low"]) == (1.5, None) and "the same mean" in plain["reason"]
    assert found["systems"]["gold"]["Fluency"]["mean"] == 3.5
    pairs = {(pair["question"], pair["first"], pair["second"]): pair for pair in found["pairs"]}
    assert len(pairs) == 9
    against = pairs["Empathy", "gold", "plain"]
    # four differences of one sign: two of the sixteen ways to choose signs are as far out
    assert (against["difference"], against["higher"], against["p"]) == (2.375, 4, 0.125)
    # plain and tuned are alike: that test is none, so two are corrected for
    assert against["p_holm"] == 0.25 and pairs["Empathy", "plain", "tuned"]["p"] is None
    assert found["raters"] == [{"answers": 36, "of": 36}, {"answers": 12, "of": 36}]
    assert found["agreement"]["Fluency"]["alpha"] is None
    assert found["agreement"]["Empathy"]["pairable"] == 12
    assert any(remark.startswith("1 of 2 raters did not answer everything") for remark in found["remarks"])
    assert any("no agreement without two raters" in remark and "Fluency" in remark for remark in found["remarks"])
    printed = capsys.readouterr().out
    assert "Krippendorff" in printed and f"{gold['mean']:.2f} [{gold['low']:.2f}, {gold['high']:.2f}]" in printed


def test_agreement_of_intervals_is_that_of_the_pairs_by_hand(folder):
    """Per response the raters differ by 1 but once (5 and 5): observed 11/12; expected over all 24 values by hand."""
    values = [v for row in ANN.values() for v in row]
    values += [min(5, v + 1) for v in values]
    expected = sum((a - b) ** 2 for a in values for b in values) / (24 * 23)
    assert summarise(folder)["agreement"]["Empathy"]["alpha_interval"] == pytest.approx(1 - (11 / 12) / expected)


def test_both_files_say_the_same_and_name_no_rater(folder):
    found = summarise(folder)
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == found
    page = (folder / "summary.md").read_text(encoding="utf-8")
    assert "2 raters, 4 contexts." in page and "| gold - plain | Empathy | +2.38 | 4 / 0 / 0 | 0.125 | 0.25 |" in page
    assert all(f"- {remark}" in page for remark in found["remarks"])
    assert "Ann" not in page + json.dumps(found)
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1, "every row has the header's cells"


def test_the_last_answer_counts_and_a_torn_line_does_not(folder):
    with Ratings(folder, open_study(folder)) as ratings:
        ratings.add("Ann", [((0, "plain", "Fluency"), 5)])
    with (folder / RATINGS).open("a") as file:
        file.write('{"rater": "Ann", "item": 0, "sys')
    values = ratings_of(open_study(folder), folder / RATINGS)
    assert values[0, QUESTIONS.index("Fluency"), SYSTEMS.index("plain")].tolist() == [5, 1, 1, 1]
    assert summarise(folder)["systems"]["plain"]["Fluency"]["mean"] == 2.0


def test_it_can_be_asked_for_while_people_rate(folder):
    with Ratings(folder, open_study(folder)):
        assert main(["rate", "--summary", str(folder)]) == 0


def test_without_ratings_there_is_nothing_to_sum_up(tmp_path):
    open_study(tmp_path, small_study())
    with pytest.raises(DataError, match="nobody has rated anything yet"):
        summarise(tmp_path)
