"""The hybrid objective of Shin et al. 2019, Eqs. 6 to 10, in closed form through the trainer's own code path.

Every expectation here is written out from the equations in float64, on logits and states of the model's plain forward;
the trainer's gradient is taken as it is. Scoring keeps log-probabilities in float32, so that is the precision.
"""

import math

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import one_hot

from alignkit import ReinforceConfig, ReinforceTrainer
from alignkit.models import scoring
from alignkit.models.recurrent import GRUSeq2SeqConfig, GRUSeq2SeqForConditionalGeneration
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

KINDS = ["gru", "gpt2"]
TAU = 0.4
WORDS = ["a", "bad", "film", "good", "is", "it", "the"]
SIZE = len(WORDS) + 3  # fewer tokens than the states are wide: a gradient on states then tells that on logits
ROWS = 8
REFERENCES = ["good", "the film is good", "it is", "a bad film"]
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def model_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(3)
    if kind == "gru":
        model = GRUSeq2SeqForConditionalGeneration(GRUSeq2SeqConfig(vocab_size=SIZE, hidden_size=16))
    else:
        model = tiny_causal_lm(vocab_size=SIZE, hidden_size=16, layers=1)
    for parameter in model.parameters():
        parameter.data.mul_(2)  # far from uniform
    return model.double()


def scored_by_row(prompts, completions, **columns):
    """A score that tells the rows apart, and None for one of them."""
    scores = [len(text.strip()) / 7 - 1 for text in completions]
    return [None if row == 2 else score for row, score in enumerate(scores)]


def run_of(kind: str, folder, reward=scored_by_row, **settings) -> ReinforceTrainer:
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=ROWS, max_completion_length=5, num_generations=1,
        baseline="learned", temperature=TAU, whiten_advantages=False, kl_coef=0.0, report_to="none", use_cpu=True,
        reference_column="reference", save_strategy="no",
    )  # fmt: skip
    args = ReinforceConfig(**{**defaults, **settings})
    prompts = ["the film", "it is", "a", "the bad film is"] * 2
    data = Dataset.from_dict({"prompt": prompts, "reference": REFERENCES * 2})
    run = ReinforceTrainer(model_of(kind), reward, args, data, processing_class=tiny_tokenizer(WORDS))
    model = run.accelerator.unwrap_model(run.model)
    assert next(model.parameters()).dtype == torch.float64
    if run.uses_values:
        torch.manual_seed(4)
        torch.nn.init.normal_(model.value_head.linear.weight)
        torch.nn.init.constant_(model.value_head.linear.bias, 0.3)
    return run


def rolled_out(run: ReinforceTrainer) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    (batch,) = run.rollout([run.train_dataset[row] for row in range(ROWS)])
    return batch


def plain(model, prompt_ids, prompt_mask, ids, mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the tokens of `ids`, and the states m_t, by the model's own forward."""
    if model.config.is_encoder_decoder:
        before = torch.cat([torch.full_like(ids[:, :1], model.config.decoder_start_token_id), ids[:, :-1]], 1)
        out = type(model).forward(
            model, input_ids=prompt_ids, attention_mask=prompt_mask, decoder_input_ids=before, output_hidden_states=True
        )
        return out.logits, out.decoder_hidden_states[-1]
    whole, seen = torch.cat([prompt_ids, ids], 1), torch.cat([prompt_mask, mask], 1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    states = model.transformer(input_ids=whole, attention_mask=seen, position_ids=positions).last_hidden_state
    states = states[:, prompt_ids.shape[1] - 1 : -1]
    return model.lm_head(states), states


def own(batch) -> tuple[torch.Tensor, ...]:
    return tuple(batch[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))


def references(batch) -> tuple[torch.Tensor, ...]:
    return tuple(batch[f"extra_{key}"] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))


def gradient_on_logits(run, batch, monkeypatch) -> torch.Tensor:
    """(B, T, V) what `update` sends back into the logits that predict the completions.

    The GRU makes logits, so they are watched. The causal LM's are never kept: what reaches the states that go into its
    head is `d W`, and W has full row rank, so d is found from it exactly.
    """
    model, kept = run.accelerator.unwrap_model(run.model), []

    def keep(tensor):
        tensor.retain_grad()
        kept.append(tensor)

    if model.config.is_encoder_decoder:
        hook = model.lm_head.register_forward_hook(lambda module, inputs, output: keep(output))
        run.update(run.model, batch).backward()
        hook.remove()
    else:
        real = scoring.chunked_log_probs
        monkeypatch.setattr(scoring, "chunked_log_probs", lambda states, *rest: keep(states) or real(states, *rest))
        run.update(run.model, batch).backward()
    (seen,) = kept
    if model.config.is_encoder_decoder:
        return seen.grad
    head, mask = model.lm_head.weight, batch["completion_mask"]
    assert torch.linalg.matrix_rank(head) == SIZE
    found = torch.zeros((*mask.shape, SIZE), dtype=torch.float64)
    found[mask.bool()] = seen.grad @ torch.linalg.pinv(head)
    return found


def score_function(logits, ids, advantages, mask) -> torch.Tensor:
    """(R - b)(p - onehot) / tau as a share of the mean over the real tokens: Eq. 9 differentiated by hand."""
    d_logits = ((logits / TAU).softmax(-1) - one_hot(ids, SIZE)) / TAU
    return d_logits * (advantages * mask)[..., None] / mask.sum()


def test_the_learning_tokens_are_those_of_scored_rows(tmp_path):
    batch = rolled_out(run_of("gru", tmp_path))
    silent = batch["learn_mask"].sum(1) == 0
    assert int(silent.sum()) == 1 and batch["completion_mask"].sum(1).gt(0).all()
    assert batch["completion_mask"].sum(1).unique().numel() > 1, "no padding to be wrong about"


@pytest.mark.parametrize("baseline", ["learned", "batch_mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_on_each_logit_is_reward_minus_baseline_times_p_minus_one_hot(
    kind, baseline, tmp_path, monkeypatch
):
    run = run_of(kind, tmp_path, baseline=baseline, baseline_coef=0.0)
    batch = rolled_out(run)
    model = run.accelerator.unwrap_model(run.model)
    got = gradient_on_logits(run, batch, monkeypatch)
    ids, mask = batch["completion_ids"], batch["learn_mask"]
    with torch.no_grad():
        logits, states = plain(model, *own(batch))
        texts = run.processing_class.batch_decode(ids, skip_special_tokens=True)
        scores = torch.tensor([len(text) / 7 - 1 for text in texts], dtype=torch.float64)[:, None]
        heard = mask[:, :1].bool()
        if baseline == "learned":
            head = model.value_head.linear
            b = (states.float() @ head.weight.T.float() + head.bias.float()).squeeze(-1).double()
        else:
            b = scores[heard].mean()
        expected = score_function(logits, ids, scores - b, mask)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert (got[mask == 0] == 0).all(), "padding, or a row without a reward"
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_baseline_gets_the_gradient_of_its_squared_error_and_the_policy_none_of_it(kind, tmp_path):
    """Eqs. 7 and 8. The trainer's loss is half the squared error, times `baseline_coef`."""
    gradients = {}
    for coefficient in (0.0, 0.7):
        run = run_of(kind, tmp_path, baseline_coef=coefficient)
        batch = rolled_out(run)
        model = run.accelerator.unwrap_model(run.model)
        run.update(run.model, batch).backward()
        gradients[coefficient] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    head = {"value_head.linear.weight", "value_head.linear.bias"}
    assert not any(gradients[0.0][name].any() for name in head & set(gradients[0.0]))
    for name in set(gradients[0.7]) - head:
        assert torch.equal(gradients[0.7][name], gradients[0.0][name]), name
    with torch.no_grad():
        _, states = plain(model, *own(batch))
        mask = batch["learn_mask"].double()
        weight, bias = model.value_head.linear.weight.double(), model.value_head.linear.bias.double()
        error = ((states @ weight.T + bias).squeeze(-1) - batch["returns"]) * mask * 0.7 / mask.sum()
    got = gradients[0.7]
    torch.testing.assert_close(
        got["value_head.linear.weight"].double()[0], (error[..., None] * states).sum((0, 1)), **CLOSE
    )
    torch.testing.assert_close(got["value_head.linear.bias"].double()[0], error.sum(), **CLOSE)
    assert got["value_head.linear.bias"].abs() > 1e-3


@pytest.mark.parametrize("weight", [0.25, 1.0, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_gradient_is_lambda_rl_plus_the_rest_mle(kind, weight, tmp_path):
    """Eq. 10 on every weight of the policy, against autograd on Eqs. 6 and 9 as they are written."""
    run = run_of(kind, tmp_path, rl_weight=weight)
    batch = rolled_out(run)
    model = run.accelerator.unwrap_model(run.model)
    run.update(run.model, batch).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "value" not in name}
    model.zero_grad()
    logits, states = plain(model, *own(batch))
    head = model.value_head.linear
    b = (states.float() @ head.weight.T.float() + head.bias.float()).squeeze(-1).double().detach()
    log_p = (logits / TAU).log_softmax(-1).gather(-1, batch["completion_ids"][..., None]).squeeze(-1)
    mask = batch["learn_mask"]
    loss = -weight * ((batch["returns"] - b) * log_p * mask).sum() / mask.sum()
    if weight < 1:
        text = references(batch)
        mle = plain(model, *text)[0].log_softmax(-1).gather(-1, text[2][..., None]).squeeze(-1)
        loss = loss - (1 - weight) * (mle * text[3]).sum() / text[3].sum()
        # what is imitated is the row's own reference, and the end after it
        told = [row[keep.bool()].tolist() for row, keep in zip(text[2], text[3], strict=True)]
        ends = run.processing_class.eos_token_id
        assert sorted(told) == sorted([*ids, ends] for ids in run.processing_class(REFERENCES * 2)["input_ids"])
    loss.backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None and "value" not in name]
    assert set(names) == set(got)
    for name in names:
        torch.testing.assert_close(got[name], dict(model.named_parameters())[name].grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_ever_nan(kind, weight, tmp_path):
    """Negative logits (the original took their logarithm), completions of one token, rows without any reward."""
    cases = {
        "logits below zero": {},
        "one token": {"max_completion_length": 1},
        "no reward at all": {"reward": lambda completions, **columns: [None] * len(completions)},
    }
    for number, (case, settings) in enumerate(cases.items()):
        run = run_of(kind, tmp_path / str(number), rl_weight=weight, **settings)
        model = run.accelerator.unwrap_model(run.model)
        if case == "logits below zero" and kind == "gru":
            torch.nn.init.constant_(model.lm_head.bias, -50.0)
        batch = rolled_out(run)
        if case == "one token":
            assert batch["completion_ids"].shape[1] == 1
        logits = plain(model, *own(batch))[0]
        assert (logits < 0).all() if case == "logits below zero" and kind == "gru" else (logits <= 0).any()
        loss = run.update(run.model, batch)
        loss.backward()
        policy = [p.grad for n, p in model.named_parameters() if p.grad is not None and "value" not in n]
        values = [p.grad for n, p in model.named_parameters() if p.grad is not None and "value" in n]
        assert math.isfinite(loss.item()) and all(torch.isfinite(gradient).all() for gradient in policy + values), case
        heard = case != "no reward at all"
        assert any(g.any() for g in policy) == (heard or weight < 1), f"{case}: a policy gradient out of nothing"
        assert any(g.any() for g in values) == heard, f"{case}: the baseline learned from nothing"
