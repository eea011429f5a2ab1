"""A report of a run whose reward learned along: its figures before and after are two yardsticks, and told so."""

import pytest

from alignkit.report.reading import RunFiles
from alignkit.report.sections import cards, headline

BEFORE = {"reward": 0.40, "rewards/discriminator/mean": 0.40, "rewards/value/mean": 0.1, "kl": 0.0}
AFTER = {"reward": 0.25, "rewards/discriminator/mean": 0.25, "rewards/value/mean": 0.3, "kl": 1.5}
INTERVALS = {"reward": {"change": [-0.2, -0.1]}}


def run_with(row):
    return RunFiles("r", [{"step": 1, **row}], before=BEFORE, after=AFTER, intervals=INTERVALS)


def test_what_a_discriminator_says_before_and_after_is_no_verdict():
    run = run_with({"discriminator/accuracy": 0.7, "value/explained_variance": 0.2, "rewards/value/mean": 0.2})
    assert run.learned == ["discriminator"], "the critic's figures are not those of a reward of that name"
    (said,) = headline(run)
    assert "changed with training (discriminator), went from 0.400 to 0.250" in said and "does not compare" in said
    assert [card.verdict for card in cards(run) if card.label == "Reward"] == [""]


@pytest.mark.parametrize("row", [{}, {"value/explained_variance": 0.2}, {"rewards/discriminator/mean": 0.4}])
def test_a_reward_that_stayed_is_judged(row):
    run = run_with(row)
    assert run.learned == []
    assert headline(run)[0].startswith("The reward fell from 0.400 to 0.250")
    assert [card.verdict for card in cards(run) if card.label == "Reward"] == ["worse"]
