"""Rewards out of rewards: sums and transforms against independent arithmetic, and state that survives a resume."""

import functools
import math
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.compose import Checked, Clip, Squash, WeightedSum, Whiten, as_reward, checked_rewards
from alignkit.errors import MissingColumnError, RewardCallError, RewardError, RewardValueError
from alignkit.reward import call_reward, check_columns, stateful_rewards, unique_names
from alignkit.testing import check_reward

finite = st.floats(-1e6, 1e6)


class Given:
    """Gives the values of a column."""

    __name__ = "given"

    def __init__(self, column="value", unit="completion"):
        self.column, self.granularity = column, unit

    @property
    def required_columns(self):
        return [self.column]

    def __call__(self, prompts, completions, **columns):
        return columns[self.column]


def run(reward, *columns):
    names = ["value", "other"][: len(columns)]
    count = len(columns[0])
    return call_reward(reward, ["p"] * count, ["c"] * count, columns=dict(zip(names, columns, strict=True)))


def failing(prompts, completions, **columns):
    raise ValueError("no")


# Weighted sum


@settings(deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5), finite, finite)
def test_the_sum_is_the_dot_product_with_the_weights(pairs, first, second):
    values, others = map(list, zip(*pairs, strict=True))
    reward = WeightedSum([Given(), Given("other")], weights=[first, second])
    np.testing.assert_allclose(run(reward, values, others), np.array(pairs) @ [first, second], rtol=1e-9, atol=1e-9)


def test_no_opinion_is_left_out_of_the_sum_and_none_only_where_nobody_has_one():
    reward = WeightedSum([Given(), Given("other")], weights=[1, 10])
    assert run(reward, [1.0, None, 3.0, None], [1.0, 2.0, None, None]) == [11.0, 20.0, 3.0, None]


def test_scores_per_token_add_up_token_by_token():
    reward = WeightedSum([Given(unit="token"), Given("other", "token")], weights=[1, 2])
    assert run(reward, [[1.0, 2.0], None], [[1.0, 1.0], [5.0]]) == [[3.0, 4.0], [10.0]]
    with pytest.raises(RewardError, match="disagree"):
        run(reward, [[1.0, 2.0]], [[1.0]])


def test_a_sum_requires_the_columns_of_all_its_parts():
    reward = WeightedSum([Given(), Clip(Given("other"), low=0)])
    with pytest.raises(MissingColumnError, match=r"'weighted_sum' needs column 'other'"):
        check_columns([reward], ["prompt", "value"])


def test_the_parts_of_a_sum_are_logged_under_unique_names():
    logged = {}
    reward = WeightedSum([Given(), Given("other")], name="all")
    reward(["p", "p"], ["c", "c"], value=[1.0, 3.0], other=[None, 5.0], log_metric=logged.__setitem__)
    assert logged == {"all/given": 2.0, "all/given_2": 5.0}


def test_a_failure_inside_names_the_reward_inside():
    with pytest.raises(RewardCallError, match="reward 'failing' raised ValueError"):
        call_reward(WeightedSum([Clip(failing, low=0)]), ["p"], ["c"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rewards": []}, "at least one"),
        ({"rewards": [Given()], "weights": [1, 2]}, "1 rewards, 2 weights"),
        ({"rewards": [Given()], "weights": [math.inf]}, "finite"),
        ({"rewards": [Given(), Given(unit="token")]}, "completion, token"),
        ({"rewards": [3]}, "expected a reward"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(RewardError, match=words):
        WeightedSum(**arguments)


def test_names_and_mappings_stand_for_rewards():
    assert as_reward({"use": "length", "target": 3}).target == 3
    both = WeightedSum(["repetition", {"use": "length", "target": 1}])
    assert unique_names(both.rewards) == ["repetition", "length"]


# Transforms


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=5), st.floats(-10, 0), st.floats(0.1, 10))
def test_clip_is_numpys_clip(values, low, high):
    np.testing.assert_array_equal(run(Clip(Given(), low, high), values), np.clip(values, low, high))


@settings(deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=5), st.floats(-5, 5), st.floats(0.1, 5))
def test_squash_is_the_function_it_names_and_never_overflows(values, center, scale):
    from scipy.special import expit

    z = (np.array(values) - center) / scale
    np.testing.assert_allclose(run(Squash(Given(), "tanh", center, scale), values), np.tanh(z), atol=1e-12)
    np.testing.assert_allclose(run(Squash(Given(), "sigmoid", center, scale), values), expit(z), atol=1e-12)


def test_transforms_keep_none_and_reach_into_lists():
    assert run(Clip(Given(), low=0), [None, -1.0]) == [None, 0.0]
    assert run(Clip(Given(unit="token"), low=0), [[-1.0, 2.0], None]) == [[0.0, 2.0], None]
    assert Clip(Given(unit="turn"), low=0).granularity == "turn"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Clip(Given()),
        lambda: Clip(Given(), 2, 1),
        lambda: Squash(Given(), "relu"),
        lambda: Squash(Given(), scale=0),
        lambda: Whiten(Given(), decay=1),
    ],
)
def test_settings_without_sense_are_refused(make):
    with pytest.raises(RewardError):
        make()


# Checked, for trainers that do not check


def test_a_checked_reward_refuses_what_trl_would_train_on():
    reward = Checked(Given(), name="judge")
    assert reward(["p"], ["c"], value=[None]) == [None]
    with pytest.raises(RewardValueError, match=r"reward 'judge' returned inf(.|\n)*sample 1 of 1"):
        reward(["p"], ["c"], value=[math.inf])


def test_checked_rewards_have_names_of_their_own_and_keep_what_they_hold_in_reach():
    whitened = Whiten(Given())
    rewards = checked_rewards([whitened, Whiten(Given("other")), "repetition"])
    assert [reward.__name__ for reward in rewards] == ["whiten_given", "whiten_given_2", "repetition"]
    assert stateful_rewards(rewards)["whiten_given"] is whitened
    with pytest.raises(MissingColumnError, match="'whiten_given_2' needs column 'other'"):
        check_columns(rewards, ["value"])


def test_trls_trainer_stops_on_an_infinite_reward_that_is_checked(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from alignkit.testing import tiny_causal_lm, tiny_tokenizer

    args = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, num_generations=2, report_to="none",
        max_completion_length=2, use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=tiny_causal_lm(),
        reward_funcs=checked_rewards([Given()]),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["the film"] * 2, "value": [math.inf] * 2}),
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(RewardValueError, match="returned inf"):
        trainer.train()


# Whitening


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), min_size=1, max_size=5))
def test_whitening_uses_mean_and_deviation_of_everything_seen(batches):
    reward = Whiten(Given())
    for batch in batches:
        if batch:
            run(reward, batch)
    everything = [value for batch in batches for value in batch]
    if not everything:
        return
    mean, std = np.mean(everything), np.std(everything)
    assert reward.count == len(everything)
    np.testing.assert_allclose([reward.mean, reward.std], [mean, std], rtol=1e-7, atol=1e-7)
    reward.eval()
    if std > 1e-6:
        np.testing.assert_allclose(run(reward, [5.0]), [(5.0 - mean) / std], rtol=1e-5, atol=1e-5)


def test_whitening_learns_from_a_batch_before_it_whitens_it():
    values = [1.0, 2.0, 6.0]
    np.testing.assert_allclose(run(Whiten(Given()), values), (np.array(values) - 3) / np.std(values))


def test_equal_values_have_no_scale():
    assert run(Whiten(Given()), [0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]
    assert run(Whiten(Given(), center=False), [0.1, 0.1]) == [0.1, 0.1]


def test_without_centering_only_the_scale_changes():
    values = [1.0, 2.0, 6.0]
    np.testing.assert_allclose(run(Whiten(Given(), center=False), values), np.array(values) / np.std(values))


def test_decay_is_a_weight_of_the_past_per_batch():
    reward = Whiten(Given(), decay=0.5)
    run(reward, [0.0, 0.0])
    run(reward, [4.0])
    # Two zeros count half each, so the mean is that of one zero and one four.
    assert reward.mean == 2.0 and reward.std == 2.0
    reward_without_news = (reward.count, reward.mean)
    run(reward, [None])
    assert (reward.count, reward.mean) == reward_without_news


def test_no_opinion_and_evaluation_leave_the_statistics_alone():
    reward = Whiten(Given())
    assert run(reward, [1.0, None, 3.0]) == [-1.0, None, 1.0]
    reward.eval()
    run(reward, [100.0])
    assert (reward.count, reward.mean) == (2, 2.0)


def test_a_resumed_run_whitens_as_if_it_had_never_stopped():
    through, stopped = Whiten(Given()), Whiten(Given())
    for reward in (through, stopped):
        run(reward, [1.0, 5.0, 2.0])
    [state] = [part.state_dict() for part in stateful_rewards([stopped]).values()]
    resumed = Whiten(Given())
    resumed.load_state_dict(state)
    assert run(through, [3.0, 9.0]) == run(resumed, [3.0, 9.0])


def test_stateful_parts_are_found_under_stable_names():
    reward = WeightedSum([Whiten(Given()), Clip(Whiten(Given("other")), low=0)])
    assert list(stateful_rewards([reward, functools.partial(Whiten(Given()))])) == [
        "whiten_given",
        "whiten_given_2",
        "whiten_given_3",
    ]


def test_processes_share_the_statistics(tmp_path):
    """Two gloo processes that see two slices of a batch end with the statistics of the batch, one slice being empty."""
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch.distributed as dist
            from alignkit.compose import Whiten

            rank, path = int(sys.argv[1]), sys.argv[2]
            dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
            reward = Whiten(len)
            print(reward.apply([[1.0, 2.0], [6.0]][rank]), end=" ")
            reward.apply([[], [7.0]][rank])
            print(reward.count, reward.mean)
            dist.destroy_process_group()
            """
        )
    )
    command = [sys.executable, str(script)]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    std = np.std([1.0, 2.0, 6.0])
    expected = [[(v - 3) / std for v in part] for part in ([1.0, 2.0], [6.0])]
    for output, values in zip(outputs, expected, strict=True):
        shown, _, rest = output.partition("]")
        np.testing.assert_allclose([float(x) for x in shown.strip("[").split(",")], values)
        assert rest.split() == ["4.0", "4.0"]


# The contract


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightedSum(["repetition", {"use": "reference_overlap"}], weights=[1, 0.5]),
        lambda: Whiten("repetition"),
        lambda: Clip({"use": "length", "target": 5}, low=0),
        lambda: Squash({"use": "length", "target": 5}, kind="sigmoid"),
    ],
)
def test_compositions_keep_the_contract(make):
    check_reward(make())


def test_statistics_go_through_pickle():
    reward = Whiten("repetition")
    reward.apply([1.0, 3.0])
    assert pickle.loads(pickle.dumps(reward)).mean == 2.0
