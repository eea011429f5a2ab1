"""Resampling: against the distribution that can be enumerated, and against the target that it comes near."""

import json
import math

import pytest
import torch
from scipy.stats import chisquare

from alignkit import Resample
from alignkit.cli import main
from alignkit.decoding.generation import generation_config_for
from alignkit.errors import ConfigError, RewardError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from tests.test_best_of_n import three_words


def probability(ids: list[int]) -> float | None:
    """A reward of texts of two tokens: no opinion on some, 0 on others."""
    return None if ids[0] == 3 else (sum(ids) % 4) / 4


def reward(completions, completion_ids, **columns):
    return [probability(ids) for ids in completion_ids]


def weight_of(text: tuple[int, ...], reward_as: str, alpha: float) -> float:
    score = probability(list(text))
    if score is None:
        return 0.0
    worth = {"probability": score, "odds": score / (1 - score), "exponential": math.exp(score)}[reward_as]
    return worth**alpha


def drawn(decoder: Resample, rows: int, seed: int = 0) -> list[tuple[int, ...]]:
    """What it makes of so many equal prompts."""
    model, _ = three_words()
    config = generation_config_for(model, decoder.processing_class, max_new_tokens=2)
    config.return_dict_in_generate = True
    config.eos_token_id, config.pad_token_id = 1, 0
    torch.manual_seed(seed)
    ids = torch.full((rows, 1), 4)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, custom_generate=decoder
    )
    return [tuple(ids) for ids in out.completion_ids]


@pytest.mark.parametrize(
    ("reward_as", "alpha"), [("probability", 1.0), ("odds", 1.0), ("exponential", 2.0), ("odds", 0.5)]
)
def test_what_is_drawn_has_the_distribution_of_two_candidates(reward_as, alpha):
    """P(y) = p(y) sum_z p(z) 2 w(y) / (w(y) + w(z)); where both weigh nothing, the first candidate is taken."""
    _, table = three_words()
    weights = {text: weight_of(text, reward_as, alpha) for text in table}
    assert 0 < sum(weight == 0 for weight in weights.values()) < len(weights)

    def share(text: tuple[int, ...], other: tuple[int, ...]) -> float:
        both = weights[text] + weights[other]
        return 2 * weights[text] / both if both else 1.0

    expected = {text: p * sum(q * share(text, other) for other, q in table.items()) for text, p in table.items()}
    assert sum(expected.values()) == pytest.approx(1.0)
    rows = 6_000
    found = drawn(Resample(reward, tiny_tokenizer(["x", "y"]), n=2, reward_as=reward_as, alpha=alpha), rows)
    common = [text for text, p in expected.items() if p * rows >= 5]
    counts = [found.count(text) for text in common]
    hoped = [expected[text] * rows for text in common]
    rest = rows - sum(counts), rows - sum(hoped)
    test = (
        chisquare([*counts, rest[0]], [*hoped, rest[1]])
        if rest[1] > 1
        else chisquare(counts, [h * sum(counts) / sum(hoped) for h in hoped])
    )
    assert test.pvalue > 0.001


def test_with_many_candidates_it_is_the_target():
    """q = p D / Z: total variation falls with n, and is small at 256."""
    _, table = three_words()
    target = {text: p * weight_of(text, "odds", 1.0) for text, p in table.items()}
    total = sum(target.values())
    rows, distance = 4_000, {}
    for n in (1, 16, 256):
        found = drawn(Resample(reward, tiny_tokenizer(["x", "y"]), n=n, reward_as="odds"), rows)
        distance[n] = sum(abs(found.count(text) / rows - q / total) for text, q in target.items()) / 2
    assert distance[1] > 3 * distance[16] > 9 * distance[256] and distance[256] < 0.03


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_with_nothing_to_choose_by_the_first_is_taken_and_without_power_any(alpha):
    tokenizer = tiny_tokenizer(["x", "y"])
    nobody = drawn(Resample(lambda completions, **_: [None] * len(completions), tokenizer, n=3, alpha=alpha), 300)
    first = drawn(Resample(lambda completions, **_: [0.0] * len(completions), tokenizer, n=3, alpha=alpha), 300)
    assert nobody == first
    chosen = []

    def watch(completions, completion_ids, **columns):
        chosen.append([tuple(ids) for ids in completion_ids[::3]])
        return [None] * len(completions)

    assert drawn(Resample(watch, tokenizer, n=3, alpha=alpha), 300) == chosen[0]


def test_a_choice_is_the_numbers_that_it_is_given():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    config = generation_config_for(model, tokenizer, max_new_tokens=3)
    config.return_dict_in_generate = True
    ids = torch.full((4, 2), 5)
    decoder = Resample(lambda completions, **_: [0.1, 0.0, 0.3, 0.6] * 4, tokenizer, n=4)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, custom_generate=decoder,
        choice_uniform=torch.tensor([0.0, 0.099, 0.101, 0.401]),
    )  # fmt: skip
    assert out.chosen.tolist() == [0, 0, 2, 3]
    torch.testing.assert_close(out.rewards, torch.tensor([0.1, 0.1, 0.3, 0.6]))


class Sure:
    """Scores that round to 1, and one that knows by how much they do not."""

    def __call__(self, prompts, completions, **columns):
        return [1.0, 1.0] * (len(completions) // 2)

    def log_scores(self, prompts, completions, **columns):
        return [-1e-30, -3e-30] * (len(completions) // 2)  # odds of 3 to 1


def test_odds_of_what_rounds_to_certainty():
    tokenizer = tiny_tokenizer(["x", "y"])
    decoder = Resample(Sure(), tokenizer, n=2, reward_as="odds")
    found = [
        decoder._choose([1.0, 1.0], ["", ""], ["a", "b"], {}, torch.tensor([luck]))[0].item() for luck in (0.74, 0.76)
    ]
    assert found == [0, 1]
    with pytest.raises(RewardError, match=r"gave 1 to .*, which has no odds"):
        drawn(Resample(lambda completions, **_: [1.0] * len(completions), tokenizer, n=2, reward_as="odds"), 2)
    with pytest.raises(RewardError, match=r"gave -2 to .* takes numbers from 0 to 1"):
        drawn(Resample(lambda completions, **_: [-2.0] * len(completions), tokenizer, n=2), 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 0}, "whole number of 1 or more, got 0"),
        ({"reward_as": "logit"}, "reward_as is one of probability, odds, exponential; got 'logit'"),
        ({"alpha": -1}, "alpha"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Resample(reward, tiny_tokenizer(), **settings)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "def early(completions, **columns):\n"
        "    return [sum(letter in 'abcdefg' for letter in text) / max(len(text), 1) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    tiny_causal_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    ask = ["generate", "model", "--prompt", "the movie is", "--count", "40", "--max-new-tokens", "6"]
    ask += ["--decoder", "resample", "--reward", "mine.py:early", "--output", "out.jsonl"]
    means = {}
    for how in ([], ["--alpha", "8"], ["--alpha", "0"]):
        assert main([*ask, *how]) == 0
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        means[" ".join(how)] = sum(row["rewards"]["early"] for row in rows) / 40
    assert means["--alpha 8"] > means[""] > means["--alpha 0"]
    for wrong, said in (
        (["--reward-as", "logit"], "--decoder resample: reward_as is one of"),
        (["--beams", "2"], "--beams is for --decoder das, not for resample"),
        (["--temperature", "0"], "--decoder resample samples, and --temperature 0 does not"),
    ):
        assert main([*ask, *wrong]) == 2
        assert said in capsys.readouterr().err
