"""One and the same `look_ahead` object in PPO, in TRL's RLOOTrainer, in best of n and as an `evaluate.Metric`."""

import evaluate
import pytest
import torch
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from alignkit import BestOfN, PPOConfig, PPOTrainer, load_metric, load_reward
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import encode_prompts, pad_left
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer

TURNS = ["i loved the film .", "the plot was dull ."]
SETTINGS = dict(
    per_device_train_batch_size=8, num_generations=4, max_completion_length=5, max_steps=2, logging_steps=1, bf16=False,
    report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", gradient_checkpointing=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictor")
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_reward("look_ahead", model=str(folder))


def foreseen(reward, prompts, completions) -> torch.Tensor:
    """P(POSITIVE) of each pair [last turn; reply], by the network alone and one pair at a time."""
    model, tokenizer = reward.network()
    shares = []
    for prompt, completion in zip(prompts, completions, strict=True):
        said, reply = (text if isinstance(text, str) else text[-1]["content"] for text in (prompt, completion))
        if not reply.strip():
            shares.append(float("nan"))
            continue
        first, second = (tokenizer(text.strip())["input_ids"] for text in (said, reply))
        types = torch.tensor([[0] * len(first) + [1] * len(second)])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([first + second]), token_type_ids=types).logits
        shares.append(logits.softmax(-1)[0, 1].item())
    return torch.tensor(shares)


def data() -> Dataset:
    return Dataset.from_dict({"prompt": [TURNS[row % 2] for row in range(16)]})


def test_in_our_ppo(reward, tmp_path):
    run = PPOTrainer(
        tiny_causal_lm(),
        reward,
        PPOConfig(output_dir=str(tmp_path), **SETTINGS),
        data(),
        processing_class=tiny_tokenizer(),
    )
    assert run.rewards == [reward]
    rollout = run.score(run.sample([{"prompt": TURNS[row // 4]} for row in range(8)]))
    expected = foreseen(reward, rollout.prompts, rollout.completions)
    torch.testing.assert_close(rollout.scores, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    run.train()
    assert run.state.global_step == 2
    assert all(0 < entry["rewards/look_ahead/mean"] < 1 for entry in run.state.log_history if "reward" in entry)


def test_in_trls_rloo(reward, tmp_path):
    run = RLOOTrainer(
        tiny_causal_lm(),
        reward,
        RLOOConfig(output_dir=str(tmp_path), beta=0.0, **SETTINGS),
        data(),
        processing_class=tiny_tokenizer(),
    )
    assert run.reward_funcs == [reward]
    run.train()
    logged = run._logs
    assert run.state.global_step == 2 and len(logged["completion"]) > 0
    expected = foreseen(reward, logged["prompt"], logged["completion"])
    seen = torch.tensor([float("nan") if score is None else score for score in logged["rewards"]["look_ahead"]])
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("conversational", [False, True])
def test_in_best_of_n(reward, conversational):
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    ids, mask = pad_left(encode_prompts(tokenizer, TURNS), tokenizer.pad_token_id)
    turns = [[{"role": "user", "content": turn}] for turn in TURNS] if conversational else TURNS
    config = generation_config_for(model, tokenizer, max_new_tokens=5, return_dict_in_generate=True)
    torch.manual_seed(0)
    best = BestOfN(reward, tokenizer, n=6)
    assert best.reward is reward
    out = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, custom_generate=best, prompts=turns
    )
    expected = torch.stack(
        [foreseen(reward, [turn] * 6, told) for turn, told in zip(turns, out.candidate_completions, strict=True)]
    )
    torch.testing.assert_close(out.candidate_rewards, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert out.chosen.tolist() == expected.nan_to_num(-1).argmax(1).tolist()
    assert (expected.nan_to_num(0).max(1).values > expected.nanmean(1)).all()


def test_as_a_metric(reward):
    metric = load_metric("reward", reward=reward)
    assert isinstance(metric, evaluate.Metric) and metric.reward is reward
    replies = ["it was good .", "superb"]
    expected = foreseen(reward, TURNS, replies)
    found = metric.compute(predictions=replies, prompts=TURNS)
    assert found["look_ahead"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found["look_ahead_std"] == pytest.approx(expected.std().item(), rel=1e-3)
