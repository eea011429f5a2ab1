"""Every check of the kit lets good rewards through and catches the fault that it is for."""

import random
import textwrap

import pytest
import torch

from alignkit.errors import RewardError
from alignkit.reward import LearnedReward
from alignkit.testing import ContractError, Subject, check_reward, reward_checks
from alignkit.text import completion_text

pytest_plugins = ["pytester"]

NAMES = [check.__name__ for check in reward_checks()]


class Good:
    """The share of letters e."""

    __name__ = "good"

    def __call__(self, prompts, completions, **columns):
        texts = [completion_text(completion) for completion in completions]
        return [text.count("e") / max(1, len(text)) for text in texts]


class NoColumns(Good):
    def __call__(self, prompts, completions):
        return super().__call__(prompts, completions)


class BadName(Good):
    __name__ = "my reward/2"


class Module(torch.nn.Module):
    def forward(self, prompts, completions, **columns):
        return Good()(prompts, completions)


class Infinite(Good):
    def __call__(self, prompts, completions, **columns):
        return [float("inf")] * len(completions)


class Silent(Good):
    def __call__(self, prompts, completions, **columns):
        return [None] * len(completions)


class NeedsLabels(Good):
    def __call__(self, prompts, completions, **columns):
        return [float(len(label)) for label in columns["label"]]


class Vandal(Good):
    def __call__(self, prompts, completions, **columns):
        scores = super().__call__(prompts, completions)
        completions.sort(key=str)
        return scores


class Gambler(Good):
    def __call__(self, prompts, completions, **columns):
        return [random.random() for _ in completions]


class Ranker(Good):
    def __call__(self, prompts, completions, **columns):
        order = sorted(super().__call__(prompts, completions))
        return [float(order.index(score)) for score in super().__call__(prompts, completions)]


class Sorted(Good):
    def __call__(self, prompts, completions, **columns):
        return sorted(super().__call__(prompts, completions))


class Unpicklable(Good):
    def __init__(self):
        self.score = lambda text: 1.0


class PlainOnly(Good):
    def __call__(self, prompts, completions, **columns):
        return [text.count("e") / max(1, len(text)) for text in completions]


class ChatOnly(Good):
    def __call__(self, prompts, completions, **columns):
        return [float(len(completion[0]["content"])) for completion in completions]


class DividesByLength(Good):
    def __call__(self, prompts, completions, **columns):
        return [1 / len(completion_text(completion)) for completion in completions]


class ShortOnly(Good):
    def __call__(self, prompts, completions, **columns):
        texts = [completion_text(completion) for completion in completions]
        assert all(len(text) < 2000 for text in texts), "too long"
        return super().__call__(prompts, completions)


class AsciiOnly(Good):
    def __call__(self, prompts, completions, **columns):
        return [float(len(completion_text(completion).encode("ascii"))) for completion in completions]


@pytest.mark.parametrize(
    ("reward", "check"),
    [
        (NoColumns(), "check_is_called_by_keyword"),
        (BadName(), "check_has_a_name"),
        (Module(), "check_is_not_a_module"),
        (Infinite(), "check_one_finite_score_each"),
        (Silent(), "check_one_finite_score_each"),
        (NoColumns(), "check_works_as_trl_calls_it"),
        (NeedsLabels(), "check_needs_no_undeclared_column"),
        (Vandal(), "check_leaves_its_input_alone"),
        (Gambler(), "check_is_deterministic"),
        (Sorted(), "check_does_not_depend_on_order"),
        (Ranker(), "check_does_not_depend_on_the_batch"),
        (Unpicklable(), "check_can_be_pickled"),
        (PlainOnly(), "check_takes_conversations"),
        (ChatOnly(), "check_takes_plain_text"),
        (DividesByLength(), "check_takes_empty_completions"),
        (ShortOnly(), "check_takes_very_long_completions"),
        (AsciiOnly(), "check_takes_odd_texts"),
    ],
)
def test_each_fault_is_caught_by_its_check(reward, check):
    results = {result.name: result for result in check_reward(reward, raises=False, columns={"label": ["x"]})}
    assert results[check].status == "failed", results[check]
    assert results[check].message


class Learner(LearnedReward):
    """A bias that moves towards the mean length of the references."""

    __name__ = "learner"

    def __init__(self):
        self.bias = torch.zeros(())

    def __call__(self, prompts, completions, **columns):
        return [float(self.bias) + len(completion_text(text)) / 100 for text in completions]

    def update(self, prompts, completions, references):
        if references:
            self.bias = self.bias + sum(map(len, references)) / len(references) / 100
        return {"bias": float(self.bias)}

    def state_dict(self):
        return {"bias": self.bias}

    def load_state_dict(self, state):
        self.bias = state["bias"]


class LearnsWhileScoring(Learner):
    def __call__(self, prompts, completions, **columns):
        self.bias = self.bias + 1
        return [0.5] * len(completions)


class ForgetsState(Learner):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class SavesCode(Learner):
    def state_dict(self):
        return {"bias": self.bias, "self": Good()}


class LogsText(Learner):
    def update(self, prompts, completions, references):
        return {**super().update(prompts, completions, references), "note": "fine"}


@pytest.mark.parametrize(
    ("reward", "check"),
    [
        (LearnsWhileScoring(), "check_stands_still_in_evaluation"),
        (ForgetsState(), "check_learns_by_update_only"),
        (SavesCode(), "check_state_can_be_saved"),
        (LogsText(), "check_learns_by_update_only"),
    ],
)
def test_faults_of_learned_rewards_are_caught(reward, check):
    results = {result.name: result for result in check_reward(reward, raises=False)}
    assert results[check].status == "failed" and results[check].message


def test_good_rewards_pass_everything_and_checks_that_do_not_apply_are_skipped():
    results = check_reward(Good())
    assert [result.name for result in results] == NAMES
    assert {result.status for result in results[:16]} == {"passed"}
    assert {result.status for result in results[16:]} == {"skipped"}
    assert {result.status for result in check_reward(Learner())} == {"passed"}


def test_checking_leaves_a_learned_reward_as_it_was():
    reward = Learner()
    check_reward(reward)
    assert float(reward.bias) == 0 and reward.training and not reward.has_pending


def test_all_failures_come_in_one_error():
    with pytest.raises(ContractError) as caught:
        check_reward(Gambler())
    assert "check_is_deterministic" in str(caught.value) and "check_can_be_pickled" in str(caught.value)
    assert "fails 4 of 19 checks" in str(caught.value)
    assert isinstance(caught.value, RewardError) and isinstance(caught.value, AssertionError)


def test_a_check_may_be_skipped_with_its_reason():
    class Judge(Gambler):
        skip_checks = {name: "asks a live judge" for name in NAMES}  # noqa: RUF012

    assert {result.message for result in check_reward(Judge())} == {"asks a live judge"}
    assert check_reward(Good(), skip=["check_has_a_name"])[1].status == "skipped"
    with pytest.raises(RewardError, match="no check is called check_nam"):
        check_reward(Good(), skip=["check_nam"])


def test_made_up_columns_are_admitted_when_they_may_be_the_fault():
    class Age(Good):
        def __call__(self, prompts, completions, *, age, **columns):
            return [float(years + 1) for years in age]

    with pytest.raises(ContractError, match="no values were given for column 'age'"):
        check_reward(Age(), skip=["check_can_be_pickled"])
    check_reward(Age(), columns={"age": [3, 40]}, skip=["check_can_be_pickled"])


def test_samples_of_ones_own_take_the_place_of_the_kits():
    subject = Subject.of(Good(), {"age": [1, 2]}, ["p"] * 3, ["c"] * 3)
    assert subject.columns == {"age": [1, 2, 1]} and subject.prompts == ["p"] * 3
    with pytest.raises(RewardError, match="2 prompts, 1 completions"):
        Subject.of(Good(), None, ["p", "p"], ["c"])
    with pytest.raises(RewardError, match="'age' has no values"):
        Subject.of(Good(), {"age": []})


def test_a_name_stands_for_a_reward():
    assert all(result.status != "failed" for result in check_reward("repetition"))


def test_the_kit_brings_tiny_models():
    from alignkit import testing

    assert testing.tiny_classifier().config.num_labels == 2
    with pytest.raises(AttributeError, match="tiny_tokenizer"):
        _ = testing.tiny_nothing


# The pytest plugin


@pytest.fixture
def suite(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def run(source, *arguments):
        pytester.makepyfile(textwrap.dedent(source))
        return pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", *arguments)

    return run


def test_three_lines_make_a_test_of_each_check(suite):
    result = suite(
        """
        import pytest
        from alignkit_rewards import Length

        @pytest.fixture
        def alignkit_reward():
            return Length(target=5)

        def test_contract(alignkit_check):
            alignkit_check()
        """
    )
    result.assert_outcomes(passed=16, skipped=3)


def test_a_broken_reward_fails_under_the_name_of_the_check(suite):
    result = suite(
        """
        import random, pytest

        class Gambler:
            def __call__(self, completions, **columns):
                return [random.random() for _ in completions]

        @pytest.fixture
        def alignkit_reward():
            return Gambler()

        def test_contract(alignkit_check):
            alignkit_check()
        """
    )
    assert result.parseoutcomes()["failed"] >= 3
    result.stdout.fnmatch_lines(["*FAILED*test_contract*is_deterministic*"])


def test_marker_option_and_columns(suite):
    source = """
        import pytest

        @pytest.fixture
        def alignkit_columns():
            return {"answer": ["yes"]}

        @pytest.mark.alignkit_reward("reference_overlap", column="answer")
        def test_marked(alignkit_check):
            alignkit_check()
        """
    suite(source).assert_outcomes(passed=16, skipped=3)
    option = "def test_contract(alignkit_check):\n    alignkit_check()\n"
    two = ("--alignkit-reward", "repetition", "--alignkit-reward", "reference_overlap")
    suite(option, *two).assert_outcomes(passed=32, skipped=6)


def test_a_suite_without_a_reward_is_told_how_to_give_one(suite):
    result = suite("def test_contract(alignkit_check):\n    alignkit_check()\n")
    result.assert_outcomes(errors=19)
    result.stdout.fnmatch_lines(["*write a fixture alignkit_reward*"])
