"""The control variate over several optimiser steps: the same gradient in expectation, far less noise, nothing lost."""

import pytest
import torch
from tabular import INITIAL, SEQUENCES, TARGET, OptimalD, tabular_lm, trainer
from test_scoring import KINDS, generator, left_padded

from alignkit.errors import ConfigError
from alignkit.models.head import chunked_log_probs, log_probs_at, top_log_probs
from alignkit.models.scoring import score_completions

SEVERAL = {"num_iterations": 3}


def examples(run, rows: int) -> list[dict]:
    return [run.train_dataset[i // run.num_generations] for i in range(rows)]


def moved_gradient(folder, **settings) -> torch.Tensor:
    """Of `update` where the policy has moved on since it sampled; every text is drawn once."""
    model = tabular_lm()
    run = trainer(folder, model, **SEVERAL, **settings)
    (batch,) = run.rollout(examples(run, 27))
    with torch.no_grad():
        model.table += 0.7 * torch.randn(model.table.shape, generator=torch.Generator().manual_seed(1)).double()
    run.update(run.model, batch).backward()
    return model.table.grad.flatten()


@pytest.mark.parametrize("tokens", [1, 2, 64])
def test_its_gradient_is_that_of_the_weighted_likelihood_however_far_the_policy_has_moved(tokens, tmp_path):
    """Over all texts what is subtracted is what is added, whichever tokens are summed and whichever drawn."""
    plain = moved_gradient(tmp_path)
    controlled = moved_gradient(tmp_path, control_variate=True, control_variate_tokens=tokens)
    assert float(plain.norm()) > 0.1
    torch.testing.assert_close(controlled, plain, rtol=1e-6, atol=1e-7)


def test_of_few_texts_it_leaves_far_less_noise(tmp_path):
    found = {}
    for control in (False, True):
        model = tabular_lm()
        reward = OptimalD(tabular_lm(INITIAL + 0.05 * (TARGET - INITIAL)), 1)
        run = trainer(
            tmp_path, model, reward=reward, rows=64, proposal="policy", num_generations=8, control_variate=control,
            **SEVERAL,
        )  # fmt: skip
        start, gradients = model.table.detach().clone(), []
        for seed in range(40):
            torch.manual_seed(seed)
            with torch.no_grad():
                model.table.copy_(start)
            (batch,) = run.rollout(examples(run, 64))
            with torch.no_grad():
                model.table += 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1)).double()
            model.table.grad = None
            run.update(run.model, batch).backward()
            gradients.append(model.table.grad.flatten().clone())
        found[control] = torch.stack(gradients)
    plain, controlled = (found[name].var(0).sum() for name in (False, True))
    assert controlled < plain / 2
    difference = found[True].mean(0) - found[False].mean(0)
    assert float(difference.norm()) < 4 * float(((plain + controlled) / 40).sqrt())


def test_with_equal_scores_the_policy_is_held_where_it_sampled(tmp_path):
    """What remains is the divergence from the policy that sampled: no gradient there, elsewhere one that leads back."""

    def level(completions, **columns):
        return [0.3] * len(completions)

    model = tabular_lm()
    run = trainer(
        tmp_path, model, reward=level, rows=64, proposal="policy", num_generations=8, control_variate=True,
        learning_rate=0.5, **SEVERAL,
    )  # fmt: skip
    (batch,) = run.rollout(examples(run, 64))
    run.update(run.model, batch).backward()
    assert float(model.table.grad.abs().max()) < 1e-6
    at_first = model.table.detach().clone()
    seen = model.table.grad.new_zeros(13, 3).bool()
    for a, b, _ in batch["completion_ids"].tolist():
        seen[[0, 1 + a, 4 + 3 * a + b]] = True
    with torch.no_grad():
        model.table += 0.5 * torch.randn(at_first.shape, generator=torch.Generator().manual_seed(2)).double()
    for _ in range(400):
        model.table.grad = None
        run.update(run.model, batch).backward()
        with torch.no_grad():
            model.table -= 5.0 * model.table.grad
    gap = (model.table.softmax(-1) - at_first.softmax(-1)).abs()[seen.view(model.table.shape)]
    assert float(gap.max()) < 0.05


def test_one_step_needs_none_of_it_and_what_does_not_fit_is_refused(tmp_path):
    run = trainer(tmp_path, tabular_lm(), control_variate=True)
    assert "next_ids" not in run.rollout(examples(run, 27))[0]
    several = trainer(tmp_path, tabular_lm(), control_variate=True, control_variate_tokens=2, **SEVERAL)
    (batch,) = several.rollout(examples(several, 27))
    assert batch["next_ids"].shape == (27, 3, 2) and batch["next_probs"].shape == (27, 3, 2)
    with pytest.raises(ConfigError, match=r"several optimiser steps a rollout and rl_weight=0.5: .*set rl_weight to 1"):
        trainer(tmp_path, tabular_lm(), control_variate=True, rl_weight=0.5, **SEVERAL)
    assert len(SEQUENCES) == 27


# ---- what it asks of scoring ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_further_tokens_are_scored_as_the_completions_own_are(kind):
    model = generator(kind)
    completions = torch.randint(3, 30, (3, 5), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(5) < torch.tensor([[5], [2], [4]])).long()
    batch = (*left_padded([7, 3, 5]), completions * mask, mask)
    plain = score_completions(model, *batch)
    found = score_completions(model, *batch, at=batch[2][..., None].repeat(1, 1, 2), top=5)
    torch.testing.assert_close(found["at"], plain["log_probs"][..., None].repeat(1, 1, 2), rtol=1e-4, atol=1e-4)
    again = score_completions(model, *batch, at=found["top_ids"])["at"]
    torch.testing.assert_close(again, found["top_log_probs"], rtol=1e-4, atol=1e-4)
    assert not found["top_log_probs"].requires_grad and found["at"].requires_grad
    inside = batch[3].bool()
    assert bool((found["top_log_probs"][inside].diff(dim=-1) <= 0).all())
    assert float(found["top_log_probs"][~inside].abs().sum()) == 0


def test_the_gradient_of_further_tokens_is_that_of_the_whole_softmax():
    torch.manual_seed(0)
    hidden = torch.randn(6, 8, requires_grad=True)
    head, labels, at = torch.nn.Linear(8, 11), torch.randint(0, 11, (6,)), torch.randint(0, 11, (6, 4))
    inverse = torch.full((6,), 0.8)
    log_probs, _ = chunked_log_probs(hidden, head, labels, inverse, False)
    ours = log_probs_at(hidden, head, labels, log_probs, at, inverse)
    weights = torch.randn(6, 4)
    mine = torch.autograd.grad((ours * weights).sum(), [hidden, *head.parameters()], retain_graph=True)
    logs = (head(hidden) * inverse[:, None]).log_softmax(-1)
    torch.testing.assert_close(ours, logs.gather(1, at), rtol=1e-5, atol=1e-5)
    whole = torch.autograd.grad((logs.gather(1, at) * weights).sum(), [hidden, *head.parameters()])
    for one, other in zip(mine, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    ids, found = top_log_probs(hidden, head, inverse, 30)
    assert ids.shape == (6, 11)
    torch.testing.assert_close(found, logs.sort(-1, descending=True).values.detach(), rtol=1e-5, atol=1e-5)
