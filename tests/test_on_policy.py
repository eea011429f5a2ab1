"""What the base keeps of TRL: data forms, adapters, quantisation, tables, cards, callbacks, best checkpoints."""

import json

import pandas as pd
import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

from alignkit import OnPolicyConfig, OnPolicyTrainer, load_metric
from alignkit.errors import AlignkitError, ConfigError
from alignkit.models.module_reward import ModuleReward
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer
from alignkit.trainers.ppo import PPOConfig, PPOTrainer

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} . {% endfor %}{% if add_generation_prompt %}!{% endif %}"
)


def good_words(prompts, completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(text.split().count("good")) for text in texts]


def letters(prompts, completions, **columns):
    """A reward that no two completions are likely to share."""
    return [len(text) / 10 for text in completions]


def data(rows: int = 32) -> Dataset:
    prompts = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
    return Dataset.from_dict({"prompt": [prompts[i % 4] for i in range(rows)], "reference": ["good ."] * rows})


def args(folder, **settings) -> PPOConfig:
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=4, max_completion_length=6, max_steps=2, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    return PPOConfig(**{**defaults, **settings})


def test_conversations_go_through_the_chat_template_and_come_back_as_messages(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((prompts[0], completions[0]))
        return good_words(prompts, completions)

    talk = Dataset.from_dict({"prompt": [[{"role": "user", "content": "the film was"}]] * 16})
    run = PPOTrainer(tiny_causal_lm(), reward, args(tmp_path), talk, talk.select(range(4)), tokenizer)
    run.train()
    prompt, completion = seen[0]
    assert prompt == [{"role": "user", "content": "the film was"}]
    assert completion[0]["role"] == "assistant" and isinstance(completion[0]["content"], str)
    made = run.sample([talk[0]]).made
    assert tokenizer.decode(made.prompt_ids[0][made.prompt_mask[0].bool()]).split() == ["the", "film", "was", ".", "!"]
    assert run.evaluate()["eval_completions/mean_length"] > 0


def test_a_stream_can_be_trained_on(tmp_path):
    stream = IterableDataset.from_generator(lambda: ({"prompt": "the film was"} for _ in range(64)))
    run = PPOTrainer(tiny_causal_lm(), good_words, args(tmp_path), stream, None, tiny_tokenizer())
    run.train()
    assert run.state.global_step == 2


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_quantised_model_trains_with_an_adapter(bits, tmp_path):
    tiny_causal_lm("llama", hidden_size=64).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    run = PPOTrainer(
        str(tmp_path / "model"), letters, args(tmp_path / "run", kl_coef=0.0, learning_rate=1e-2), data(), data(4),
        quantization_config=BitsAndBytesConfig(**{bits: True}), peft_config=LoraConfig(r=4),
    )  # fmt: skip
    base = run.model.get_base_model()
    assert base.is_quantized
    assert base.value_head.modules_to_save["default"].linear.weight.dtype == torch.float32
    run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry]
    assert all(abs(entry["loss"]) < 1e6 for entry in log)
    assert abs(log[0]["kl"]) < 0.2  # 8-bit activations are quantised per batch, so scoring is not bit-equal
    assert log[-1]["weights/delta"] > 0


def test_an_adapter_that_was_there_before_is_part_of_the_reference(tmp_path):
    model = get_peft_model(tiny_causal_lm("llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    run = PPOTrainer(model, good_words, args(tmp_path), data(), data(4), tiny_tokenizer())
    assert abs(run.evaluate()["eval_kl"]) < 1e-4
    run.train()
    assert run.state.log_history[-2]["weights/delta"] > 0


def test_gradient_checkpointing_gives_the_same_gradient(tmp_path):
    gradients = []
    for checkpointing in (False, True):
        run = PPOTrainer(
            tiny_causal_lm("llama"), good_words, args(tmp_path, gradient_checkpointing=checkpointing), data(), None,
            tiny_tokenizer(),
        )  # fmt: skip
        if checkpointing:
            run.model.gradient_checkpointing_enable()
        run.model.train()
        torch.manual_seed(0)
        run.update(run.model, run.rollout([run.train_dataset[i] for i in range(4)])[0]).backward()
        gradients.append([p.grad.clone() for p in run.model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_completions_table_and_the_model_card_are_written(tmp_path):
    settings = dict(log_completions=True, save_strategy="steps", save_steps=2, num_completions_to_print=1)
    run = PPOTrainer(tiny_causal_lm(), good_words, args(tmp_path, **settings), data(), None, tiny_tokenizer())
    run.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert len(table) == 4 and {"prompt", "completion", "good_words"} <= set(table.columns)
    assert "PPO" in (tmp_path / "README.md").read_text()


def test_rewards_may_log_columns_and_metrics_as_in_trl(tmp_path):
    def chatty(prompts, completions, log_extra=None, log_metric=None, **columns):
        log_extra("shout", [c.upper() for c in completions])
        log_metric("answer", 42.0)
        return [0.0] * len(completions)

    run = PPOTrainer(
        tiny_causal_lm(), chatty, args(tmp_path, log_completions=True, num_completions_to_print=1), data(), None,
        tiny_tokenizer(),
    )  # fmt: skip
    run.train()
    assert any(entry.get("answer") == 42.0 for entry in run.state.log_history)
    assert "shout" in pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet").columns


def test_a_sequence_classifier_is_a_reward_too(tmp_path):
    model = tiny_classifier()
    model.save_pretrained(tmp_path / "judge")
    tiny_tokenizer().save_pretrained(tmp_path / "judge")
    model.config._name_or_path = str(tmp_path / "judge")
    run = PPOTrainer(tiny_causal_lm(), model, args(tmp_path), data(), None, tiny_tokenizer())
    assert run.reward_func_names == ["judge"]
    rollout = run.score(run.sample([run.train_dataset[i] for i in range(4)]))
    ids = tiny_tokenizer()(text=[rollout.prompts[0] + rollout.completions[0]], return_tensors="pt")
    with torch.no_grad():
        expected = model(**{k: v for k, v in ids.items() if k != "token_type_ids"}).logits[0, 0].item()
    assert rollout.scores[0].item() == pytest.approx(expected, abs=1e-4)


def test_the_best_checkpoint_is_chosen_by_a_held_out_metric(tmp_path):
    settings = dict(
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=4, save_total_limit=4,
        load_best_model_at_end=True, metric_for_best_model="eval_distinct_2", learning_rate=1e-2,
    )  # fmt: skip
    run = PPOTrainer(
        tiny_causal_lm(), good_words, args(tmp_path, **settings), data(), data(8), tiny_tokenizer(),
        metrics={"diversity": load_metric("diversity")},
    )  # fmt: skip
    run.train()
    seen = {e["step"]: e["eval_distinct_2"] for e in run.state.log_history if "eval_distinct_2" in e}
    assert run.state.best_metric == max(seen.values())
    assert run.evaluate()["eval_distinct_2"] == pytest.approx(run.state.best_metric)
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"].endswith(f"checkpoint-{max(seen, key=lambda s: (seen[s], -s))}")


def test_evaluation_by_parts_names_them(tmp_path):
    parts = {"short": data(4), "long": data(6)}
    run = PPOTrainer(tiny_causal_lm(), good_words, args(tmp_path), data(), parts, tiny_tokenizer())
    assert {"eval_short_reward", "eval_long_reward"} <= run.evaluate().keys()


def test_two_rewards_of_one_name_are_told_apart_in_the_log(tmp_path):
    run = PPOTrainer(
        tiny_causal_lm(), [good_words, good_words], args(tmp_path, reward_weights=[1.0, 2.0]), data(), None,
        tiny_tokenizer(),
    )  # fmt: skip
    run.train()
    assert any(
        {"rewards/good_words/mean", "rewards/good_words_2/mean"} <= entry.keys() for entry in run.state.log_history
    )


def test_a_weight_that_is_not_finite_stops_the_run_with_words(tmp_path):
    model = tiny_causal_lm()
    run = PPOTrainer(model, good_words, args(tmp_path), data(), None, tiny_tokenizer())
    rollout = run.score(run.sample([run.train_dataset[i] for i in range(4)]))
    rollout.made.log_probs[2, 0] = torch.nan
    from alignkit.trainers.rollout_log import check_log_probs

    with pytest.raises(AlignkitError, match="the policy gives a log-probability that is not finite to completion 2"):
        check_log_probs(rollout)


def test_a_method_is_a_small_subclass(tmp_path):
    class RewardTimesLogProb(OnPolicyTrainer):
        """The base with the plain score-function loss."""

        def update(self, model, batch):
            scores, _ = self.joint_scores(model, batch)
            self.watch(batch, scores)
            return self.mean_over_tokens(-batch["rewards"].sum(1, keepdim=True) * scores["log_probs"], batch)

    config = OnPolicyConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=2, max_completion_length=4,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    run = RewardTimesLogProb(tiny_causal_lm(), good_words, config, data(), None, tiny_tokenizer())
    run.train()
    assert run.state.global_step == 2
    with pytest.raises(NotImplementedError, match="must override update"):
        OnPolicyTrainer(tiny_causal_lm(), good_words, config, data(), None, tiny_tokenizer()).train()


def test_a_sequence_classifier_is_a_reward_with_the_tokenizer_that_is_given(tmp_path):
    classifier, tokenizer = tiny_classifier(), tiny_tokenizer()
    run = PPOTrainer(
        tiny_causal_lm(), [classifier, good_words], args(tmp_path), data(), None, tokenizer,
        reward_processing_classes=[tokenizer, None],
    )  # fmt: skip
    rollout = run.score(run.sample([run.train_dataset[i] for i in range(4)]))
    for prompt, completion, score in zip(rollout.prompts, rollout.completions, rollout.rewards[:, 0], strict=True):
        with torch.no_grad():
            logits = classifier(**tokenizer(prompt + completion, return_tensors="pt")).logits
        assert score.item() == pytest.approx(logits[0, 0].item(), abs=1e-5)
    with pytest.raises(ConfigError, match="has 1 entries for 2 rewards"):
        PPOTrainer(
            tiny_causal_lm(), [classifier, good_words], args(tmp_path), data(), None, tokenizer,
            reward_processing_classes=[tokenizer],
        )  # fmt: skip


def test_the_tokenizer_comes_from_the_revision_of_the_model(tmp_path, monkeypatch):
    tiny_causal_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    asked = {}

    def spy(name, **settings):
        asked.update(settings)
        return tiny_tokenizer()

    monkeypatch.setattr("alignkit.trainers.preparation.load_tokenizer", spy)
    settings = args(tmp_path, model_init_kwargs={"revision": "v2"}, trust_remote_code=True)
    PPOTrainer(str(tmp_path / "model"), good_words, settings, data())
    assert asked == {"revision": "v2", "trust_remote_code": True}


def test_a_long_prompt_does_not_hide_the_completion_from_a_classifier():
    classifier, tokenizer = tiny_classifier(), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    reward = ModuleReward(classifier, tokenizer, max_length=4)
    good, bad = reward(["it was the film " * 5] * 2, ["good good", "bad bad"])
    assert good != bad and tokenizer.truncation_side == "right"
    talk = [[{"role": "user", "content": "it"}]], [[{"role": "assistant", "content": "good"}]]
    with torch.no_grad():
        logits = classifier(**tokenizer("it . good . ", return_tensors="pt")).logits
    assert reward(*talk) == pytest.approx([logits[0, 0].item()], abs=1e-5)
