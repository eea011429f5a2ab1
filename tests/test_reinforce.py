"""REINFORCE: its gradient in closed form, its baselines, and the hybrid objective."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from alignkit import PPOConfig, PPOTrainer
from alignkit.errors import ConfigError, DataError
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.trainers.reinforce import BASELINES, ReinforceConfig, ReinforceTrainer


def good_words(prompts, completions, **columns):
    return [float(text.split().count("good")) for text in completions]


def data(rows: int = 32) -> Dataset:
    prompts = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
    return Dataset.from_dict({"prompt": [prompts[i % 4] for i in range(rows)], "reference": ["good good ."] * rows})


def trainer(folder, model=None, reward=good_words, train=None, **settings):
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=8, max_completion_length=6, max_steps=4, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-3, num_generations=2,
        kl_coef=0.0,
    )  # fmt: skip
    args = ReinforceConfig(**{**defaults, **settings})
    return ReinforceTrainer(model or tiny_causal_lm(), reward, args, train or data(), data(4), tiny_tokenizer())


def test_the_gradient_on_a_logit_is_advantage_times_probability_minus_one_hot(tmp_path):
    """d loss / d logits = A (p - onehot) / tau, as a mean over tokens: no autograd involved."""
    tau = 0.5
    run = trainer(tmp_path, temperature=tau, whiten_advantages=False)
    batch = run.rollout([run.train_dataset[i // 2] for i in range(8)])[0]
    model = run.accelerator.unwrap_model(run.model)
    run.update(run.model, batch).backward()
    got = model.transformer.ln_f.bias.grad.clone()  # logits = hidden @ W.T, so its gradient is sum(d logits @ W)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        width = batch["prompt_ids"].shape[1]
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, width - 1 : -1]
        onehot = torch.nn.functional.one_hot(batch["completion_ids"], logits.shape[-1])
        d_logits = batch["advantages"][..., None] * ((logits / tau).softmax(-1) - onehot) / tau
        d_logits = d_logits * batch["completion_mask"][..., None] / batch["completion_mask"].sum()
        expected = (d_logits @ model.lm_head.weight).sum((0, 1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_leave_one_out_advantages_sum_to_zero_in_every_group(tmp_path):
    run = trainer(tmp_path, num_generations=4, whiten_advantages=False)
    rollout = run.score(run.sample([run.train_dataset[i // 4] for i in range(8)]))
    first = run.shape(rollout)["advantages"][:, 0].view(2, 4)
    torch.testing.assert_close(first.sum(1), torch.zeros(2), atol=1e-5, rtol=0)
    scores = rollout.scores.view(2, 4)
    torch.testing.assert_close(first, scores - (scores.sum(1, keepdim=True) - scores) / 3)


def test_the_batch_mean_baseline_is_the_mean_return(tmp_path):
    run = trainer(tmp_path, baseline="batch_mean", num_generations=1, whiten_advantages=False)
    rollout = run.score(run.sample([run.train_dataset[i] for i in range(8)]))
    batch = run.shape(rollout)
    expected = (rollout.scores - rollout.scores.mean())[:, None] * rollout.made.completion_mask
    torch.testing.assert_close(batch["advantages"], expected)


def test_the_learned_baseline_gets_no_policy_gradient_and_gives_none(tmp_path):
    run = trainer(tmp_path, baseline="learned", num_generations=1)
    model = run.accelerator.unwrap_model(run.model)
    torch.nn.init.normal_(model.value_head.linear.weight)
    batch = run.rollout([run.train_dataset[i] for i in range(8)])[0]
    head = model.value_head.linear.weight
    run.args.baseline_coef = 0.0
    run.update(run.model, batch).backward()
    assert head.grad is None or head.grad.abs().sum() == 0
    policy_only = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "value" not in n}
    model.zero_grad()
    run.args.baseline_coef = 10.0
    run.update(run.model, batch).backward()
    assert head.grad.abs().sum() > 0
    for name, gradient in policy_only.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient)


@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq, lambda: tiny_seq2seq("bart")])
def test_the_hybrid_objective_is_the_weighted_sum(make, tmp_path):
    losses = {}
    for weight in (1.0, 0.25, 0.0):
        run = trainer(tmp_path, make(), rl_weight=weight, reward=lambda prompts, completions, **_: [1.0] * 8)
        torch.manual_seed(0)
        batch = run.rollout([run.train_dataset[i // 2] for i in range(8)])[0]
        # leave-one-out of equal rewards is 0: give the RL term something to say
        batch["advantages"] = batch["completion_mask"].float()
        losses[weight] = run.update(run.model, batch).item()
    assert losses[0.25] == pytest.approx(0.25 * losses[1.0] + 0.75 * losses[0.0], rel=1e-4)


def test_pure_likelihood_learns_the_reference(tmp_path):
    run = trainer(tmp_path, rl_weight=0.0, max_steps=60, learning_rate=5e-3)
    run.train()
    losses = [entry["mle_loss"] for entry in run.state.log_history if "mle_loss" in entry]
    assert losses[-1] < 0.2 < 1.0 < losses[0]


def test_only_a_reference_that_ends_within_the_limit_teaches_to_end(tmp_path):
    run = trainer(tmp_path, rl_weight=0.5, max_completion_length=3)
    # a prompt that the data do not have: its references stay beside it
    examples = [{"prompt": "superb it", "reference": text} for text in ("good .", "good good good .")]
    rollout = run.score(run.sample([example for example in examples for _ in range(4)]))
    ids = run.shape(rollout)["extra_completion_ids"]
    end = run.processing_class.eos_token_id
    assert [row.tolist().count(end) for row in ids] == [1] * 4 + [0] * 4 and ids.shape[1] == 3


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_trains_a_step(baseline, tmp_path):
    run = trainer(tmp_path, baseline=baseline, max_steps=2)
    run.train()
    assert run.state.global_step == 2


def test_whitened_rewards_have_variance_one_and_keep_their_mean(tmp_path):
    """Returns are sums of what was whitened: the scores at the last tokens, and the zeros before them."""

    def letters(completions, **columns):
        return [float(len(text)) for text in completions]

    run = trainer(tmp_path, reward=letters, whiten_rewards=True, whiten_advantages=False, baseline="none")
    rollout = run.score(run.sample([run.train_dataset[i // 2] for i in range(8)]))
    mask = rollout.learn_mask.bool()
    raw = torch.zeros(mask.shape)
    raw[torch.arange(8), mask.sum(1) - 1] = rollout.scores
    kept = raw[mask].double()
    white = torch.zeros(mask.shape, dtype=torch.float64)
    white[mask] = (kept - kept.mean()) / (kept.var() + 1e-8).sqrt() + kept.mean()
    expected = white.flip(1).cumsum(1).flip(1) * mask
    assert rollout.scores.std() > 0
    torch.testing.assert_close(run.shape(rollout)["advantages"], expected.float(), rtol=1e-4, atol=1e-5)


def test_a_config_of_another_kind_is_refused_in_words(tmp_path):
    with pytest.raises(ConfigError, match="ReinforceTrainer takes a ReinforceConfig, got PPOConfig"):
        ReinforceTrainer("no/such-model", good_words, PPOConfig(output_dir=str(tmp_path), use_cpu=True), data())
    for config in (ReinforceConfig, GRPOConfig):
        other = config(output_dir=str(tmp_path), use_cpu=True)
        with pytest.raises(ConfigError, match=f"PPOTrainer takes a PPOConfig, got {config.__name__}"):
            PPOTrainer("no/such-model", good_words, other, data())


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="leaves none to compare with"):
        trainer(tmp_path, num_generations=1)
    with pytest.raises(ConfigError, match="expected one of leave_one_out, batch_mean, learned, none"):
        trainer(tmp_path, baseline="loo")
    with pytest.raises(ConfigError, match="or use PPOTrainer"):
        trainer(tmp_path, num_iterations=2)
    with pytest.raises(DataError, match="no column 'reference'"):
        trainer(tmp_path, rl_weight=0.5, train=data().remove_columns("reference"))
