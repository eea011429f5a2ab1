"""PPO's whole loss against plain autograd on the model's own logits, and its settings one by one."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.trainers.ppo import PPOConfig, PPOTrainer


def good_words(prompts, completions, **columns):
    return [float(text.split().count("good")) for text in completions]


def data(rows: int = 32) -> Dataset:
    prompts = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
    return Dataset.from_dict({"prompt": [prompts[i % 4] for i in range(rows)], "reference": ["good ."] * rows})


def trainer(folder, model=None, reward=good_words, train=None, **settings):
    dataset = settings.pop("ptx_dataset", None)
    named = {key: settings.pop(key) for key in ("peft_config", "metrics", "callbacks") if key in settings}
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=8, max_completion_length=6, max_steps=4, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=5e-4, seed=0,
    )  # fmt: skip
    args = PPOConfig(**{**defaults, **settings})
    model = tiny_causal_lm() if model is None else model
    train = data() if train is None else train
    return PPOTrainer(model, reward, args, train, data(4), tiny_tokenizer(), ptx_dataset=dataset, **named)


def last_log(run) -> dict:
    return [entry for entry in run.state.log_history if "loss" in entry][-1]


def spread(model, factor: float = 4.0):
    for parameter in model.parameters():
        parameter.data.mul_(factor if parameter.ndim > 1 else 1)
    return model


def plain_loss(model, batch, args, prompt_padding: int):
    """PPO's loss from `model(...).logits` and hidden states, written out."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    outputs = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    width = batch["prompt_ids"].shape[1]
    log_p = (outputs.logits[:, width - 1 : -1] / args.temperature).log_softmax(-1)
    taken = log_p.gather(-1, batch["completion_ids"][..., None])[..., 0]
    values = model.value_head(outputs.hidden_states[-1][:, width - 1 : -1])
    total, tokens = 0.0, 0
    for row in range(len(ids)):
        for t in range(int(batch["completion_mask"][row].sum())):
            advantage, ret = batch["advantages"][row, t], batch["returns"][row, t]
            ratio = torch.exp(taken[row, t] - batch["old_log_probs"][row, t])
            surrogate = torch.min(ratio * advantage, ratio.clamp(1 - args.cliprange, 1 + args.cliprange) * advantage)
            old = batch["old_values"][row, t]
            value = values[row, t]
            held = old + (value - old).clamp(-args.cliprange_value, args.cliprange_value)
            error = 0.5 * torch.max((value - ret) ** 2, (held - ret) ** 2)
            entropy = -(log_p[row, t].exp() * log_p[row, t]).sum()
            total = total - surrogate + args.vf_coef * error - args.entropy_coef * entropy
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_gradient_is_plain_autograds(kind, tmp_path):
    run = trainer(
        tmp_path, spread(tiny_causal_lm(kind)), entropy_coef=0.01, temperature=0.8, gamma=0.9, steps_per_generation=1
    )
    run.model.train()
    torch.nn.init.normal_(run.model.value_head.linear.weight, std=0.1)
    batch = run.rollout([run.train_dataset[i] for i in range(8)])[0]
    # move away from the policy that sampled, so that ratios differ from 1 and some are clipped
    generator = torch.Generator().manual_seed(1)
    for key, scale in (("old_log_probs", 0.3), ("old_values", 0.3)):
        batch[key] = batch[key] + scale * torch.randn(batch[key].shape, generator=generator)
    model = run.accelerator.unwrap_model(run.model)
    ours = {}
    run.update(run.model, batch).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    plain_loss(model, batch, run.args, 0).backward()
    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: n + m)
            checked += 1
    assert checked > 10


def test_micro_batches_add_up_to_the_whole_batch(tmp_path):
    """Four micro-batches of 2 accumulate to the gradient of one batch of 8, though their lengths differ."""
    gradients = []
    for accumulation in (1, 4):
        run = trainer(
            tmp_path, spread(tiny_causal_lm()), per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation, whiten_advantages=True,
        )  # fmt: skip
        run.model.train()
        torch.manual_seed(5)
        batches = run.rollout([run.train_dataset[i] for i in range(8)])
        assert len(batches) == accumulation
        sum(run.update(run.model, batch) for batch in batches).backward()
        gradients.append({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: n + m)


def test_a_completion_without_an_opinion_is_not_learned_from(tmp_path):
    def only_first(prompts, completions, **columns):
        return [1.0 if i == 0 else None for i in range(len(completions))]

    run = trainer(tmp_path, reward=only_first)
    rollout = run.score(run.sample([run.train_dataset[i] for i in range(8)]))
    assert rollout.learn_mask[0].sum() == rollout.made.lengths()[0]
    assert rollout.learn_mask[1:].sum() == 0
    assert torch.isnan(rollout.scores[1:]).all()


def test_a_model_that_served_a_trainer_before_has_a_reference_of_its_own(tmp_path):
    model = tiny_causal_lm()
    for attempt in range(2):
        run = trainer(tmp_path / str(attempt), model, max_steps=8, num_iterations=2, learning_rate=1e-2, kl_coef=0.0)
        run.train()
        kls = [entry["kl"] for entry in run.state.log_history if "kl" in entry]
        assert abs(kls[0]) < 1e-4 and abs(kls[-1]) > 1e-2


def test_when_no_reward_has_an_opinion_nothing_moves(tmp_path):
    def silent(prompts, completions, **columns):
        return [None] * len(completions)

    run = trainer(tmp_path, reward=silent, max_steps=2, weight_decay=0.0)
    before = copy.deepcopy(run.model.state_dict())
    run.train()
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_per_token_scores_go_to_their_tokens(tmp_path):
    class TokenCount:
        """1 for every even token id."""

        __name__ = "even"
        granularity = "token"

        def __call__(self, prompts, completions, completion_ids=None, **columns):
            return [[float(token % 2 == 0) for token in ids] for ids in completion_ids]

    run = trainer(tmp_path, reward=TokenCount(), kl_coef=0.0)
    rollout = run.score(run.sample([run.train_dataset[i] for i in range(8)]))
    batch = run.shape(rollout)
    expected = (rollout.made.completion_ids % 2 == 0) * rollout.made.completion_mask
    assert torch.equal(batch["rewards"], expected.float())
    run.train()
    assert any("rewards/even/mean" in entry for entry in run.state.log_history)


def test_the_kl_at_the_start_is_zero_and_then_grows(tmp_path):
    run = trainer(tmp_path, max_steps=8, num_iterations=2, learning_rate=1e-2, kl_coef=0.0)
    run.train()
    kls = [entry["kl"] for entry in run.state.log_history if "kl" in entry]
    assert abs(kls[0]) < 1e-4
    assert abs(kls[-1]) > 1e-2


@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq, lambda: tiny_seq2seq("bart")])
@pytest.mark.parametrize("separate_critic", [False, True])
def test_in_value_warmup_only_the_critic_learns(make, separate_critic, tmp_path):
    run = trainer(tmp_path, make(), value_warmup_steps=4, max_steps=4, separate_critic=separate_critic)
    before = copy.deepcopy(run.model.state_dict())
    run.train()
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "value_head.linear.weight" in moved
    assert all(name.startswith(("value_head.", "critic.")) for name in moved)
    assert any(name.startswith("critic.") for name in moved) == separate_critic


def test_a_separate_critic_leaves_the_policy_alone_when_only_values_are_learned(tmp_path):
    run = trainer(tmp_path, separate_critic=True)
    batch = run.rollout([run.train_dataset[i] for i in range(8)])[0]
    scores, _ = run.joint_scores(run.model, batch, "full")
    scores["values"].sum().backward()
    policy = [n for n, p in run.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert policy and all(name.startswith(("critic.", "value_head.")) for name in policy)


def test_early_stop_on_kl_samples_anew(tmp_path):
    patient = trainer(tmp_path, learning_rate=3e-2, num_iterations=4, max_steps=8)
    hasty = trainer(tmp_path, learning_rate=3e-2, num_iterations=4, max_steps=8, target_kl_stop=1e-4)
    counts = []
    for run in (patient, hasty):
        rollouts = []
        original = run.rollout
        run.rollout = lambda examples, o=original, r=rollouts: r.append(1) or o(examples)
        run.train()
        counts.append(len(rollouts))
    assert counts[0] == 2
    assert counts[1] == 4  # one pass on the policy that sampled, one that shows the drift, then a new rollout


def test_ptx_raises_the_likelihood_of_its_text_in_one_forward(tmp_path):
    text = Dataset.from_dict({"text": ["the plot was superb and the film was wonderful ."] * 8})
    run = trainer(
        tmp_path, ptx_dataset=text, ptx_coef=1.0, max_steps=30, learning_rate=5e-3, kl_coef=0.0,
        reward=lambda prompts, completions, **_: [0.0] * len(completions),
    )  # fmt: skip
    calls = []
    model = run.accelerator.unwrap_model(run.model)
    forward = model.transformer.forward
    model.transformer.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    batch = run.with_extra_text(run.rollout([run.train_dataset[i] for i in range(8)])[0])
    calls.clear()
    run.joint_scores(run.model, batch, "full")
    assert len(calls) == 1
    run.train()
    losses = [entry["ptx_loss"] for entry in run.state.log_history if "ptx_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_ptx_scores_as_it_would_alone(tmp_path):
    text = Dataset.from_dict({"text": ["the plot was superb and the film was wonderful ."] * 8})
    run = trainer(tmp_path, spread(tiny_causal_lm()), ptx_dataset=text, ptx_coef=1.0, temperature=0.5)
    batch = run.with_extra_text(run.rollout([run.train_dataset[i] for i in range(8)])[0])
    own, extra = run.joint_scores(run.model, batch, "full")
    torch.testing.assert_close(own["log_probs"], batch["old_log_probs"], rtol=0, atol=1e-5)
    ids = run.processing_class(text=text["text"][:1], return_tensors="pt")["input_ids"]
    log_p = run.model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    alone = log_p.gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(extra["log_probs"][0], alone[0], rtol=1e-4, atol=1e-5)


def test_lora_trains_adapter_and_head_and_saves_both(tmp_path):
    run = trainer(
        tmp_path, tiny_causal_lm("llama"), peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        max_steps=4, save_strategy="steps", save_steps=4, learning_rate=1e-2, kl_coef=0.0,
    )  # fmt: skip
    base = {n: p.clone() for n, p in run.model.named_parameters() if not p.requires_grad}
    run.train()
    trained = {n for n, p in run.model.named_parameters() if p.requires_grad}
    assert any("lora_" in n for n in trained) and any("value_head" in n for n in trained)
    for name, parameter in run.model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert any("value_head" in name for name in saved) and any("lora_A" in name for name in saved)
    first = next(entry for entry in run.state.log_history if "kl" in entry)
    assert abs(first["kl"]) < 1e-4  # the reference is the model with its adapter off


def test_an_adapter_goes_on_learning_with_the_head_it_was_saved_with(tmp_path):
    """Train, save, load, train, save, load: adapter and head come back each time, and the adapter still learns."""
    tiny_causal_lm("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    settings = dict(learning_rate=1e-2, kl_coef=0.0)
    run = trainer(tmp_path / "one", str(tmp_path / "base"), peft_config=lora, **settings)
    for generation in ("first", "second"):
        run.train()
        run.save_model(str(tmp_path / generation))
        saved = weights(run)
        run = trainer(tmp_path / "next", str(tmp_path / generation), **settings)
        assert weights(run).keys() == saved.keys()
        for name, tensor in weights(run).items():
            torch.testing.assert_close(tensor, saved[name], rtol=0, atol=0, msg=lambda m, n=name: n + m)
        assert abs(run.evaluate()["eval_kl"]) < 1e-4  # the reference is the policy as it was loaded


def weights(run) -> dict[str, torch.Tensor]:
    """Adapter and value head as they stand, under names without PEFT's wrappers."""
    return {
        name.replace("modules_to_save.default.", ""): parameter.detach().clone()
        for name, parameter in run.model.named_parameters()
        if parameter.requires_grad
    }


def test_a_saved_run_loads_in_plain_transformers_and_here(tmp_path):
    run = trainer(tmp_path, max_steps=4)
    run.train()
    run.save_model(str(tmp_path / "model"))
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    again = trainer(tmp_path / "again", str(tmp_path / "model"))
    before, after = (r.accelerator.unwrap_model(r.model).value_head.linear.weight for r in (run, again))
    assert torch.equal(before, after) and before.abs().sum() > 0
    assert torch.equal(plain.transformer.wte.weight, again.model.transformer.wte.weight)


def test_restore_goes_back_to_a_checkpoint(tmp_path):
    run = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    run.train()
    end = copy.deepcopy(run.model.state_dict())
    run.restore(str(tmp_path / "checkpoint-2"))
    assert any(not torch.equal(tensor, end[name]) for name, tensor in run.model.state_dict().items())
    run.restore(str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(tensor, end[name]) for name, tensor in run.model.state_dict().items())


def test_evaluation_is_the_same_twice_and_leaves_training_alone(tmp_path):
    run = trainer(tmp_path, spread(tiny_causal_lm()))
    state = torch.get_rng_state()
    first, second = run.evaluate(), run.evaluate()
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert {"eval_reward", "eval_kl", "eval_completions/mean_length"} <= first.keys()
    assert [row["prompt"] for row in run.eval_rows] == run.eval_dataset["prompt"]


def test_the_critic_starts_at_the_mean_return_and_learns_at_its_own_rate(tmp_path):
    run = trainer(tmp_path, reward=lambda prompts, completions, **_: [3.0] * len(completions), kl_coef=0.0)
    rollout = run.score(run.sample([run.train_dataset[i] for i in range(8)]))
    batch = run.shape(rollout)
    torch.testing.assert_close(batch["old_values"], 3.0 * batch["completion_mask"])
    torch.testing.assert_close(batch["advantages"], torch.zeros_like(batch["advantages"]))
    run.create_optimizer()
    rates = {id(p): g["lr"] for g in run.optimizer.param_groups for p in g["params"]}
    for name, parameter in run.model.named_parameters():
        assert rates[id(parameter)] == (1e-3 if "value_head" in name else run.args.learning_rate)
