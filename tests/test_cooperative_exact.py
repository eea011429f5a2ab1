"""The exact cases of generative cooperative networks, computed by the trainer's own code on a table of 27 texts.

All but the cases' properties of the target alone (1) and the cycle of best responses (6, by the function that finds the
best text) go through `CooperativeTrainer`: exact q by the proposal `exact`, D by a learned reward that the trainer
updates, the inner minimum by an optimiser that solves for it.

`pytest -rP tests/test_cooperative_exact.py` prints the table of what the specification gives and what comes out.
"""

import math

import pytest
import torch
from tabular import (
    DATA,
    INITIAL,
    SEQUENCES,
    TARGET,
    Given,
    OptimalD,
    divergence,
    log_probs,
    rml,
    table_of,
    tabular_lm,
    trainer,
)
from test_mixture import truncated

from alignkit.advantages import masked_sum
from alignkit.decoding.mixture import MixtureDecoder
from alignkit.errors import ConfigError
from alignkit.importance import best_of_group, effective_sample_size, self_normalised

P0 = log_probs(INITIAL).exp()
D0 = DATA / (DATA + P0)
Q0 = P0 * D0 / (P0 * D0).sum()
PROPOSALS = {
    "policy": P0,
    "mixture": 0.1 * P0 + 0.9 * log_probs(truncated(INITIAL, 0.8)).exp(),
    "cold": log_probs(INITIAL / 0.5).exp(),
}
PROPOSED = {"proposal": "mixture", "proposal_settings": {"policy_share": 0.3, "top_p": 0.8}}


def holds(what: str, got: float, given: float, **within: float) -> None:
    """A line of the table of cases, and the assertion behind it."""
    print(f"| {what} | {given:.10g} | {got:.10g} |")
    assert got == pytest.approx(given, **within)


def score_function() -> torch.Tensor:
    """(27, 39) gradient of each text's log-probability at the initial table, by autograd."""
    table = INITIAL.clone().requires_grad_()
    logs = table.log_softmax(-1)
    texts = [logs[0, a] + logs[1 + a, b] + logs[4 + 3 * a + b, c] for a, b, c in SEQUENCES]
    return torch.stack([torch.autograd.grad(text, table, retain_graph=True)[0].flatten() for text in texts])


def examples(run, rows: int) -> list[dict]:
    return [run.train_dataset[i // run.num_generations] for i in range(rows)]


def gradient(folder, **settings) -> torch.Tensor:
    """Of the trainer's `update` at the initial policy, with exact q."""
    model = tabular_lm()
    run = trainer(folder, model, **settings)
    (batch,) = run.rollout(examples(run, 27))
    run.update(run.model, batch).backward()
    return model.table.grad.flatten()


def test_case_1_the_data_and_the_first_policy():
    model = tabular_lm()
    holds("1. KL(p_d, p_0)", divergence(model.table), 3.5479349163, abs=5e-11)
    holds("1. total variation", float((DATA - P0).abs().sum() / 2), 0.7444603263, abs=5e-11)
    holds("1. H(p_d)", float(-(DATA * DATA.log()).sum()), 2.2607655010, abs=5e-11)
    assert SEQUENCES[int(DATA.argmax())] == (0, 2, 1)
    holds("1. p_d of its mode (0, 2, 1)", float(DATA.max()), 0.2712154649, abs=5e-11)


def test_case_2_rml_with_the_optimal_discriminator(tmp_path):
    found = rml(tmp_path, tabular_lm(), 20)
    holds("2. RML, KL after 1 step", found.kl[0], 2.330054744, abs=5e-10)
    holds("2. after 5", found.kl[4], 0.2135914760, abs=5e-11)
    holds("2. after 10", found.kl[9], 5.675977e-4, abs=5e-11)
    holds("2. after 20", found.kl[19], 5.640340e-10, abs=5e-16)
    logged = [math.exp(row["weights/log_z"]) for row in found.run.state.log_history if "weights/log_z" in row]
    assert len(logged) == 20
    holds("2. Z at the first step", logged[0], 0.202089110, abs=5e-10)
    holds("2. Z at the last", logged[-1], 0.5, abs=1e-8)
    # the reward was taught once an outer step, on samples of the policy, and not at the steps' ends
    assert [len(texts) for texts in found.run.rewards[0].seen] == [1] * 20


def test_the_odds_of_the_optimal_discriminator_reach_the_data_in_one_step(tmp_path):
    """p D / (1 - D) is p_d for D = p_d / (p_d + p); Z is then 1, where p D has .2021 at the first step."""
    found = rml(tmp_path, tabular_lm(), 2, reward_as="odds")
    assert divergence(INITIAL) > 3.5 and found.kl[0] < 1e-9 and found.kl[1] < 1e-9
    logged = [math.exp(row["weights/log_z"]) for row in found.run.state.log_history if "weights/log_z" in row]
    assert logged == pytest.approx([1.0, 1.0], abs=1e-9)


def test_case_2_the_bound_on_each_step_and_the_ratio_of_total_variation(tmp_path):
    """What the theorem promises: KL_(t+1) - KL_t <= log(1 / eta - 1), which is negative while eta is above 1/2."""
    p, ratios, before = P0, [], divergence(INITIAL)
    for after in rml(tmp_path, tabular_lm(), 20).kl:
        d = DATA / (DATA + p)
        log_eta = min(float((DATA * d.log()).sum()), float((p * (1 - d).log()).sum()))
        assert after - before <= math.log(math.exp(-log_eta) - 1) < 0
        q = p * d / (p * d).sum()
        ratios.append(float((DATA - q).abs().sum() / (DATA - p).abs().sum()))
        p, before = q, after
    holds("2. ratio of total variation at the last step", ratios[-1], 0.5, abs=1e-4)
    assert max(ratios) < 1


def test_case_3_the_gradient_is_the_policy_gradient_divided_by_z(tmp_path):
    gcn = gradient(tmp_path)
    policy = gradient(tmp_path, weighting="reward", baseline="none")
    holds("3. norm of GCN's gradient at p_0", float(gcn.norm()), 0.1534393, abs=5e-8)
    holds("3. norm of the policy gradient", float(policy.norm()), 0.0310084, abs=5e-8)
    torch.testing.assert_close(gcn, policy / (P0 * D0).sum(), rtol=1e-12, atol=1e-15)
    # by hand: minus the sum of q times the score function
    torch.testing.assert_close(gcn, -(Q0 @ score_function()), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradient(tmp_path, weighting="reward"), policy)  # any baseline, in expectation


@pytest.mark.parametrize(
    ("name", "settings", "given", "within"),
    [
        ("policy", {"proposal": "policy"}, 0.6423, 0.03),
        (
            "mixture",
            {"proposal": "mixture", "proposal_settings": {"policy_share": 0.1, "top_p": 0.8}},
            0.0927,
            0.15,
        ),
        ("cold", {"proposal": "policy", "proposal_settings": {"temperature": 0.5}}, 0.0096, None),
    ],
)
def test_case_4_effective_sample_sizes(name, settings, given, within, tmp_path):
    """The limit from the densities that the proposal reported; what the trainer logs of 6000 completions is near it,
    but for the cold policy, whose rare texts are too rare."""
    run = trainer(tmp_path, tabular_lm(), rows=6000, **settings)
    torch.manual_seed(0)
    rollout = run.score(run.sample(examples(run, 6000)))
    run.shape(rollout)
    numbers = [9 * a + 3 * b + c for a, b, c in rollout.made.completion_ids.tolist()]
    proposal = PROPOSALS[name].clone()
    torch.testing.assert_close(rollout.made.log_density.exp(), proposal[numbers], rtol=1e-10, atol=0)
    proposal[numbers] = rollout.made.log_density.exp()
    holds(f"4. ESS / M in the limit, {name}", float(1 / (Q0**2 / proposal).sum()), given, abs=5e-5)
    if within is not None:
        holds(f"4. as the trainer logs it of 6000, {name}", run._metrics["train"]["ess/share"][-1], given, rel=within)


def test_case_4_a_pure_nucleus_is_refused_and_why():
    """Its support is 2 of the 27 texts, and however many completions it draws, the gradient's error stays at .214."""
    with pytest.raises(ConfigError, match="would never be drawn"):
        MixtureDecoder(policy_share=0.0, top_p=0.8)
    nucleus = log_probs(truncated(INITIAL, 0.8)).exp()
    assert int((nucleus > 0).sum()) == 2
    limit = self_normalised(torch.where(nucleus > 0, Q0.log(), -torch.inf), 27)
    error = (limit - Q0) @ score_function()
    holds("4. limiting error of a pure nucleus", float(error.abs().max()), 0.214, abs=5e-4)


@pytest.mark.parametrize(("name", "given"), [("policy", 0.69820), ("mixture", 1.83415)])
def test_case_5_the_bias_of_two_completions(name, given, tmp_path):
    """All 729 pairs as prompts of two completions: the trainer's weights, averaged with the pairs' probabilities."""
    density = PROPOSALS[name]
    pairs = torch.cartesian_prod(torch.arange(27), torch.arange(27))
    rows = torch.tensor(SEQUENCES)[pairs.flatten()]
    run = trainer(tmp_path, tabular_lm(), decoder=Given(rows, density), rows=1458, num_generations=2)
    weights = run.shape(run.score(run.sample(examples(run, 1458))))["weights"] * len(pairs)
    torch.testing.assert_close(weights.view(-1, 2).sum(1), torch.ones(729).double())
    likely = density[pairs].prod(1, keepdim=True)
    mean = torch.zeros(27).double().index_add(0, pairs.flatten(), (likely * weights.view(-1, 2)).flatten())
    exact, found = Q0 @ score_function(), mean @ score_function()
    holds(f"5. relative bias at M = 2, {name}", float((found - exact).norm() / exact.norm()), given, abs=5e-6)


@pytest.mark.parametrize(("name", "given", "within"), [("policy", 0.038, 0.004), ("mixture", 0.446, 0.02)])
def test_case_5_the_bias_of_64_completions(name, given, within):
    """By the package's function, on 100,000 prompts: consistent, not unbiased."""
    density, generator = PROPOSALS[name], torch.Generator().manual_seed(0)
    mean = torch.zeros(27).double()
    for _ in range(10):
        drawn = torch.multinomial(density, 64 * 10_000, replacement=True, generator=generator)
        mean.index_add_(0, drawn, self_normalised((Q0 / density).log()[drawn], 64) / 100_000)
    exact = Q0 @ score_function()
    bias = float((mean @ score_function() - exact).norm() / exact.norm())
    holds(f"5. relative bias at M = 64, {name}", bias, given, abs=within)


def test_case_6_best_responses_cycle_and_only_exact_q_stays_at_the_data(tmp_path):
    p, chosen = P0.clone(), []
    for _ in range(6):
        chosen.append(int(best_of_group((DATA / (DATA + p)).log(), 27).argmax()))
        p = torch.nn.functional.one_hot(torch.tensor(chosen[-1]), 27).double()
    assert chosen == [7, 0, 1, 0, 1, 0]
    assert max(rml(tmp_path, tabular_lm(TARGET), 2).kl) < 1e-25
    run = trainer(tmp_path, tabular_lm(TARGET), weighting="best")
    best = run.shape(run.score(run.sample(examples(run, 27))))["weights"]
    assert SEQUENCES[int(best.argmax())] == (0, 2, 1) and best.sum() == best.max() == 1
    half = 0.5 * DATA + 0.5 * best
    holds("6. KL after half a step of SelfGAN's argmax", float((DATA * (DATA / half).log()).sum()), 0.274, abs=5e-4)


@pytest.mark.parametrize(("scale", "settles"), [(1, True), (3, True), (5, False), (6, False)])
def test_case_7_a_discriminator_that_is_too_sure_never_lets_the_policy_settle(scale, settles, tmp_path):
    """Near the data an exact step multiplies a log-ratio by 1 - scale / 2: stable below 4."""
    model = tabular_lm(table_of(0.9 * DATA + 0.1 * P0))
    found = rml(tmp_path, model, 24, reward=OptimalD(model, scale)).kl
    print(f"| 7. logit times {scale}, KL at the end | {'to 0' if settles else 'not to 0'} | {found[-1]:.3g} |")
    assert max(found[-8:]) < 1e-6 if settles else min(found[-8:]) > 1e-3, found


def test_case_8_with_one_gradient_step_for_the_inner_minimum_a_large_step_leaves_the_data(tmp_path):
    """docs/trainers/cooperative.md: what is proven needs the inner minimum. One step of 16 does not reach it, from a
    policy near the data, and the weighted likelihood moves away where the policy gradient comes closer."""
    start = table_of(DATA)
    start = start + 0.05 * (INITIAL - TARGET)
    moves = {}
    for name, settings in {"gcn": {}, "gan": {"weighting": "reward", "baseline": "none"}}.items():
        model = tabular_lm(start)
        kl = [divergence(model.table)]
        run = trainer(tmp_path, model, learning_rate=16.0, **settings)
        for _ in range(3):
            (batch,) = run.rollout(examples(run, 27))
            run.optimizer = run.optimizer or run.create_optimizer()
            model.table.grad = None
            run.update(run.model, batch).backward()
            run.optimizer.step()
            kl.append(divergence(model.table))
        moves[name] = kl
    expected = {"gcn": [0.0098, 0.0438, 0.2102, 0.7553], "gan": [0.0098, 0.0061, 0.0039, 0.0032]}
    for name, kl in expected.items():
        for step, given in enumerate(kl):
            holds(f"8. one step of 16, {name}, KL after {step}", moves[name][step], given, abs=5e-5)


def test_the_weighted_likelihood_of_the_log_is_what_was_minimised(tmp_path):
    run = trainer(tmp_path, tabular_lm())
    (batch,) = run.rollout(examples(run, 27))
    loss = run.update(run.model, batch)
    assert float(loss) == pytest.approx(float(-(Q0 * P0.log()).sum()), rel=1e-12)
    assert run._metrics["train"]["ess"][-1] == pytest.approx(float(effective_sample_size(Q0, 27)), rel=1e-9)
    assert float(masked_sum(batch["weights"], torch.ones(27))) == pytest.approx(1.0)


def test_a_control_variate_leaves_the_gradient_and_takes_noise_away(tmp_path):
    """What it subtracts is the policy's own score function, whose expectation is zero: of all texts nothing, of a few
    of them more than half of the estimate's variance where the scores are nearly equal."""
    torch.testing.assert_close(gradient(tmp_path, control_variate=True), gradient(tmp_path), rtol=1e-10, atol=1e-14)
    estimates = {}
    for control in (False, True):
        run = trainer(
            *(tmp_path, tabular_lm()),
            reward=OptimalD(tabular_lm(INITIAL + 0.2 * (TARGET - INITIAL)), 1),
            rows=8000,
            proposal="policy",
            num_generations=8,
            control_variate=control,
        )
        torch.manual_seed(0)
        rollout = run.score(run.sample(examples(run, 8000)))
        weights = run.shape(rollout)["weights"] * 1000
        numbers = [9 * a + 3 * b + c for a, b, c in rollout.made.completion_ids.tolist()]
        estimates[control] = (weights[:, None] * score_function()[numbers]).view(1000, 8, -1).sum(1)
    plain, controlled = (estimates[name].var(0).sum() for name in (False, True))
    assert controlled < plain / 2
    difference = estimates[True].mean(0) - estimates[False].mean(0)
    assert float(difference.norm()) < 3 * math.sqrt(float(plain) / 1000)


@pytest.mark.parametrize("proposal", [{"proposal": "policy"}, PROPOSED])
def test_with_equal_scores_a_control_variate_leaves_nothing_to_learn(proposal, tmp_path):
    def level(completions, **columns):
        """The same for every text."""
        return [0.3] * len(completions)

    run = trainer(tmp_path, tabular_lm(), reward=level, rows=64, num_generations=8, control_variate=True, **proposal)
    weights = run.shape(run.score(run.sample(examples(run, 64))))["weights"]
    torch.testing.assert_close(weights, torch.zeros(64).double(), rtol=0, atol=1e-15)


def test_a_control_variate_beside_missing_scores_and_scores_of_zero(tmp_path):
    """No opinion counts in neither; a score of 0 has no weight but was drawn; a prompt without weights has none."""
    scores = [0.5, 0.25, None, 0.25, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0, None, 0.0]
    run = trainer(
        *(tmp_path, tabular_lm()),
        reward=lambda completions, **columns: scores,
        decoder=Given(torch.tensor(SEQUENCES[:12]), P0),
        rows=12,
        num_generations=4,
        control_variate=True,
    )
    found = run.shape(run.score(run.sample(examples(run, 12))))["weights"] * 3
    first = [0.5 - 1 / 3, 0.25 - 1 / 3, 0.0, 0.25 - 1 / 3]
    second = [1 / 3 - 0.25, -0.25, 1 / 3 - 0.25, 1 / 3 - 0.25]
    torch.testing.assert_close(found, torch.tensor([*first, *second, 0.0, 0.0, 0.0, 0.0]).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weighting": "reward"}, "has no importance weights"),
        ({"weighting": "best"}, "has no importance weights"),
    ],
)
def test_a_control_variate_where_it_does_not_hold_is_refused(settings, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        trainer(tmp_path, tabular_lm(), control_variate=True, **settings)
