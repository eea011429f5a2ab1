"""What a rollout tells the log, figure by figure."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from trl.generation.vllm_generation import VLLMGeneration

from alignkit.decoding.sampling import Completions
from alignkit.errors import AlignkitError, HealthError
from alignkit.models.tiny import tiny_causal_lm
from alignkit.models.value_head import attach_value_head
from alignkit.trainers.critic import CriticMixin, keep_critic_at_home
from alignkit.trainers.on_policy import OnPolicyTrainer
from alignkit.trainers.rollout import Rollout
from alignkit.trainers.rollout_log import check_log_probs, log_engine_gap, share_of_flat_groups

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "group_size", "expected"),
    [
        ([1, 1, 0, 1, 2, 2], 2, 2 / 3),
        ([1, NAN, 0, 1, 2, 2], 2, 2 / 3),  # one score alone has no spread
        ([NAN, NAN, 0, 1, 2, 2], 2, 1 / 2),  # a prompt that nobody scored does not count
        ([NAN, 1, 1, 5, 5, NAN], 3, 1.0),  # groups of the prompts, not of the scores that are left
        ([NAN, 1, 2, 2, 1, NAN], 3, 0.0),
        ([3, 3, 3], 1, 1.0),
        ([3, NAN, 4], 1, 0.0),
        ([3], 1, 0.0),
    ],
)
def test_flat_groups_are_counted_by_prompt_with_the_scores_that_are_known(scores, group_size, expected):
    assert share_of_flat_groups(torch.tensor(scores, dtype=torch.float32), group_size) == pytest.approx(expected)


def rollout() -> Rollout:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    made = Completions(mask, mask, mask, mask, log_probs=torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]]))
    return Rollout(["a", "b"], ["x y z", "x"], {}, made, ref_log_probs=torch.zeros(2, 3))


def test_another_engines_log_probs_are_compared_where_it_has_some():
    trainer = SimpleNamespace(
        _vllm_log_probs=[[-1.0, None, -3.5], [-4.25]], _metrics={"train": {}}, accelerator=Accelerator(cpu=True)
    )
    names = ("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max")
    trainer._metrics["train"] = {name: [] for name in names}
    trainer.global_mean = lambda values, mask: OnPolicyTrainer.global_mean(trainer, values, mask)
    log_engine_gap(trainer, rollout())
    assert [trainer._metrics["train"][name] for name in names] == [[pytest.approx(0.25)], [pytest.approx(0.5)]]


def test_another_engines_infinite_log_prob_stops_the_run():
    check_log_probs(rollout(), [[-1.0, None, -3.0], [-4.0]])
    with pytest.raises(HealthError, match=r"the sampling engine gives .* not finite to completion 1"):
        check_log_probs(rollout(), [[-1.0, -2.0, -3.0], [float("-inf")]])


def test_an_unscored_rollout_has_no_kl():
    unscored = rollout()
    unscored.ref_log_probs = None
    with pytest.raises(AlignkitError, match="`score` fills them in"):
        _ = unscored.kl


@pytest.mark.parametrize("separate_critic", [False, True])
def test_vllm_is_sent_the_policys_weights_alone(separate_critic):
    """By TRL's own walk over the weights; the engine itself need not be there."""
    policy = tiny_causal_lm("llama")
    names = [name for name, _ in policy.named_parameters()]
    attach_value_head(policy, separate_critic=separate_critic)
    engine = VLLMGeneration.__new__(VLLMGeneration)
    engine.model, engine._dist = policy, SimpleNamespace(is_fsdp=False, gather_params=lambda _: torch.no_grad())
    assert "value_head.linear.weight" in dict(engine._iter_named_params())
    keep_critic_at_home(engine)
    assert [name for name, _ in engine._iter_named_params()] == names


@pytest.mark.parametrize(("use_vllm", "uses_values", "kept"), [(True, True, True), (True, False, False)])
def test_a_trainer_with_a_critic_keeps_it_from_its_engine(use_vllm, uses_values, kept):
    class Host:
        def __init__(self):
            self.use_vllm = use_vllm
            self.vllm_generation = SimpleNamespace(
                _iter_named_params=lambda: iter([("lm_head.weight", 0), ("value_head.linear.bias", 1), ("critic.a", 2)])
            )

    class Trainer(CriticMixin, Host):
        pass

    Trainer.uses_values = uses_values
    sent = [name for name, _ in Trainer().vllm_generation._iter_named_params()]
    assert sent == (["lm_head.weight"] if kept else ["lm_head.weight", "value_head.linear.bias", "critic.a"])
