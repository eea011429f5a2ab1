"""The cooperative trainer: the order of an outer step, exact sums over any micro-batches, and what it refuses."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_mixture import gru, lstm

from alignkit.decoding.sampling import Completions
from alignkit.errors import ConfigError, RewardError
from alignkit.importance import self_normalised
from alignkit.models.scoring import score_completions
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.reward import LearnedReward
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig
from alignkit.trainers.health import HealthCallback

PROMPTS = ["i loved the film", "the plot was", "this movie is very dull but", "it"]
MIXTURE = {"proposal": "mixture", "proposal_settings": {"policy_share": 0.4, "top_p": 0.7}}


def vowels(prompts, completions, **columns):
    return [0.05 + 0.9 * sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]


class Events(LearnedReward):
    """Notes in which order it is asked and taught."""

    __name__ = "events"

    def __init__(self):
        self.events: list[tuple[str, list]] = []

    def __call__(self, prompts, completions, **columns):
        self.events.append(("score", list(completions)))
        return vowels(prompts, completions)

    def update(self, prompts, completions, references):
        self.events.append(("update", list(completions)))
        self.references = references
        return {"seen": len(completions)}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def data(rows: int = 16) -> Dataset:
    prompts = [PROMPTS[i % 4] for i in range(rows)]
    return Dataset.from_dict({"prompt": prompts, "reference": [f"good good {i % 4} ." for i in range(rows)]})


def trainer(folder, model=None, reward=vowels, decoder=None, peft_config=None, **settings):
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=8, max_completion_length=6, max_steps=4, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", learning_rate=1e-3, num_generations=4,
    )  # fmt: skip
    args = CooperativeConfig(**{**defaults, **settings})
    return CooperativeTrainer(
        model or tiny_causal_lm(),
        reward,
        args,
        data(),
        None,
        tiny_tokenizer(),
        decoder=decoder,
        peft_config=peft_config,
    )


def examples(run, prompts: int = 2) -> list[dict]:
    return [run.train_dataset[i // run.num_generations] for i in range(prompts * run.num_generations)]


class Given:
    """Completions of unequal lengths, with densities, from a seed."""

    def __call__(self, model, prompt_ids, prompt_mask, generation_config, *, prompts=None, columns=None):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, 7, (len(prompt_ids),), generator=generator)
        ids = torch.randint(3, 33, (len(prompt_ids), 6), generator=generator)
        mask = (torch.arange(6) < lengths[:, None]).long()
        density = -3 * lengths + torch.randn(len(ids), generator=generator)
        return Completions(prompt_ids, prompt_mask, ids * mask, mask, log_density=density)


# ---- the order of an outer step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3])
def test_learned_rewards_are_taught_first_on_samples_of_the_policy_alone(samples, tmp_path):
    reward = Events()
    run = trainer(
        tmp_path, reward=reward, num_iterations=2, discriminator_samples=samples, discriminator_updates=2, **MIXTURE
    )
    run.train()
    assert [kind for kind, _ in reward.events] == ["update", "update", "score"] * 2
    (_, first), (_, again), (_, scored) = reward.events[:3]
    assert first == again and len(first) == 2 * samples and len(scored) == 8
    assert len(reward.references) == 2 * samples and all(text.startswith("good good") for text in reward.references)
    assert run.state.log_history[0]["events/seen"] == 2 * samples
    assert not reward.has_pending


def test_without_samples_of_its_own_a_reward_learns_from_the_very_completions_that_are_weighted(tmp_path):
    reward = Events()
    trainer(tmp_path, reward=reward, discriminator_samples=0, max_steps=1).train()
    assert [kind for kind, _ in reward.events] == ["update", "score"]
    assert reward.events[0][1] == reward.events[1][1]


# ---- the sum -------------------------------------------------------------------------------------------------------


def by_hand(run, rollout) -> torch.Tensor:
    """The gradient on the tied embedding of mean over prompts of sum w NLL, in one forward."""
    made, model = rollout.made, run.accelerator.unwrap_model(run.model)
    log_probs = (made.log_probs * made.completion_mask).sum(1)
    weights = self_normalised(log_probs + rollout.scores.log() - made.log_density, run.num_generations)
    seen = score_completions(model, made.prompt_ids, made.prompt_mask, made.completion_ids, made.completion_mask)
    prompts = len(weights) // run.num_generations
    return torch.autograd.grad(-(weights * seen["log_probs"].sum(1)).sum() / prompts, model.lm_head.weight)[0]


@pytest.mark.parametrize(
    "cut",
    [
        {"per_device_train_batch_size": 16},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},  # a prompt in several micro-batches
        {"per_device_train_batch_size": 16, "max_tokens_per_forward": 40},
        {"per_device_train_batch_size": 4, "steps_per_generation": 4},  # and in several optimiser steps
    ],
)
def test_the_weighted_sum_is_exact_however_it_is_cut(cut, tmp_path):
    run = trainer(tmp_path, decoder=Given(), **cut)
    rollout = run.score(run.sample(examples(run, 4)))
    expected = by_hand(run, rollout)
    model = run.accelerator.unwrap_model(run.model)
    model.zero_grad()
    parts = run.rollout(examples(run, 4))
    for part in parts:
        run._compute_loss(run.model, part).backward()
    steps = run.args.steps_per_generation // run.args.gradient_accumulation_steps
    torch.testing.assert_close(model.lm_head.weight.grad / steps, expected, rtol=1e-4, atol=1e-6)


def test_no_opinion_has_no_weight_and_a_prompt_without_any_does_not_count(tmp_path):
    def partly(prompts, completions, **columns):
        given = vowels(prompts, completions)
        return [None if i >= 4 or i == 1 else score for i, score in enumerate(given)]

    run = trainer(tmp_path, reward=partly)
    weights = run.shape(run.score(run.sample(examples(run))))["weights"]
    assert weights[1] == 0 and weights[4:].tolist() == [0.0] * 4
    assert float(weights.sum()) == pytest.approx(1.0)


def test_weights_are_tempered_and_clipped_and_the_log_says_how_much(tmp_path):
    run = trainer(tmp_path, decoder=Given(), weight_temperature=2.0, weight_clip=0.5)
    rollout = run.score(run.sample(examples(run)))
    batch = run.shape(rollout)
    found = (2 * batch["weights"]).view(2, 4)
    assert float(found.max()) < 0.99
    values = (rollout.made.log_probs.sum(1) + rollout.scores.log() - rollout.made.log_density).view(2, 4) / 2
    limit = values.logsumexp(1, keepdim=True) - torch.tensor(4.0).log() + 0.5
    torch.testing.assert_close(found, values.minimum(limit).softmax(1))
    log = run._metrics["train"]
    assert log["log_weights/clipped_share"][-1] == pytest.approx(float((values > limit).float().mean()))
    assert log["ess"][-1] == pytest.approx(float((1 / (found**2).sum(1)).mean()), rel=1e-5)


def test_several_probabilities_make_a_product_and_a_zero_is_asked_again(tmp_path):
    class Sure:
        """Rounds to 0 what it knows to be exp(-200)."""

        __name__ = "sure"

        def __call__(self, prompts, completions, **columns):
            return [0.0] * len(completions)

        def log_scores(self, prompts, completions, reference, **columns):
            return [-200.0 - i for i in range(len(completions))]

    run = trainer(tmp_path, reward=[vowels, Sure()], reward_weights=[2.0, 0.5])
    rollout = run.score(run.sample(examples(run)))
    expected = 2 * rollout.rewards[:, 0].log() + 0.5 * (-200.0 - torch.arange(8.0))
    torch.testing.assert_close(run.log_scores(rollout), expected)


def test_any_reward_serves_as_an_exponent(tmp_path):
    def length(prompts, completions, **columns):
        return [-float(len(text)) for text in completions]

    run = trainer(tmp_path, reward=length, reward_as="exponential", reward_temperature=4.0)
    rollout = run.score(run.sample(examples(run)))
    weights = run.shape(rollout)["weights"]
    torch.testing.assert_close((2 * weights).view(2, 4), (rollout.scores / 4).view(2, 4).softmax(1))
    with pytest.raises(RewardError, match=r"reward 'length' gave -.*set reward_as='exponential'"):
        other = trainer(tmp_path, reward=length)
        other.shape(other.score(other.sample(examples(other))))


def test_a_reference_beside_it_keeps_its_likelihood(tmp_path):
    losses = {}
    for weight in (1.0, 0.25, 0.0):
        run = trainer(tmp_path, rl_weight=weight)
        torch.manual_seed(0)
        batch = run.rollout(examples(run))[0]
        losses[weight] = run.update(run.model, batch).item()
    assert losses[0.25] == pytest.approx(0.25 * losses[1.0] + 0.75 * losses[0.0], rel=1e-4)


# ---- every generator, every setting --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq, lstm, gru], ids=["gpt2", "t5", "lstm", "gru"])
def test_every_generator_trains_and_scoring_agrees_with_sampling(make, tmp_path):
    run = trainer(tmp_path, make(), max_steps=2, num_iterations=2, **MIXTURE)
    run.train()
    first = run.state.log_history[0]
    assert first["sampling/logp_difference_max"] < 1e-4 and 1 <= first["ess"] <= 4 and first["grad_norm"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"weighting": "reward"},
        {"weighting": "reward", "baseline": "leave_one_out", "whiten_advantages": True, "weight_clip": 1.0, **MIXTURE},
        {"weighting": "best"},
        {"proposal": "mcts", "proposal_settings": {"simulations": 6, "children": 4}},
        {"proposal": "das", "proposal_settings": {"candidates": 4}},
        {
            "proposal": "mcts",
            "proposal_settings": {"simulations": 6, "policy_share": 0.0, "visit_temperature": 0.1},
            "weighting": "uniform",
            "num_generations": 1,
        },
        {"proposal_settings": {"temperature": 0.7}},
        {"bf16": True, **MIXTURE},
        {"lr_scheduler_type": "linear", "weighting": "reward", "num_generations": 1},
    ],
    ids=["gan", "coldgan", "best", "mcts", "das", "selfgan", "cool", "bf16", "scheduler"],
)
def test_the_family_by_settings_alone(settings, tmp_path):
    run = trainer(tmp_path, max_steps=2, **settings)
    run.train()
    assert run.state.global_step == 2 and run.state.log_history[0]["grad_norm"] > 0
    rollout = run.score(run.sample(examples(run)))
    assert run.shape(rollout)["weights"].dtype == torch.float32


def test_an_adapter_is_weighted_against_what_sampled_not_against_its_base(tmp_path):
    lora = LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False)
    run = trainer(tmp_path, peft_config=lora, max_steps=2, **MIXTURE)
    rollout = run.score(run.sample(examples(run)))
    assert float((rollout.made.log_probs - rollout.ref_log_probs).abs().max()) > 1e-3
    run.train()
    assert run.state.log_history[0]["sampling/logp_difference_max"] < 1e-4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_generations": 1}, "nothing to learn in expectation; set num_generations to 2"),
        ({"num_generations": 1, "weighting": "reward", "baseline": "leave_one_out"}, "leaves none to compare with"),
        (
            {"num_generations": 1, "weighting": "reward", **MIXTURE},
            "weight 1 whatever its density; .*proposal='policy'",
        ),
        ({"weighting": "uniform"}, "know nothing of the reward"),
        ({"weighting": "reward", "num_iterations": 2}, "holds only for the policy that sampled"),
        ({"weighting": "rewards"}, "expected one of importance, uniform, best, reward"),
        ({"reward_as": "logit"}, "expected one of probability, odds, exponential"),
        ({"proposal": "mixtur"}, "there is no proposal 'mixtur'.*mixture"),
        ({"proposal": "mixture", "proposal_settings": {"policy_share": 0, "top_p": 0.8}}, "would never be drawn"),
        ({"proposal": "mixture", "proposal_settings": {"topp": 0.8}}, "topp.*top_p"),
        ({"proposal_settings": {"top_p": 0.8}}, "top_p"),
        (
            {"proposal": "mixture", "proposal_settings": {"top_p": "0.8"}},
            "top_p: expected a number, got the text",
        ),
        (
            {"proposal": "mcts", "proposal_settings": {"simulations": [5]}},
            "simulations: expected a whole number",
        ),
        ({"proposal": "mcts", "proposal_settings": {"policy_share": 0}}, "leaves out what 'mcts' never tries"),
        ({"proposal": "das", "proposal_settings": {"sample": False, "policy_share": 0}}, "leaves out what 'das' never"),
        (
            {"reward_temperature": 0.1},
            "reward_temperature=0.1 divides scores with .*leave it out",
        ),
        ({"baseline": "none"}, "baseline='none' belongs to weighting='reward'"),
        ({"weighting": "best", "weight_clip": 1.0}, "weight_clip=1.0 belongs to"),
        ({"weighting": "best", "weight_temperature": 2.0}, "weight_temperature=2.0 belongs to"),
        ({"proposal": "mcts", "proposal_settings": {"simulation": 5}}, "simulation.*simulations"),
        ({"top_p": 0.9}, "top_p=0.9 would change what is drawn"),
        ({"temperature": 0.7}, "temperature=0.7 would change what is drawn"),
        ({"generation_kwargs": {"top_k": 5}}, "top_k=5 would change what is drawn"),
        ({"kl_coef": 0.1}, "kl_coef=0.1 has no place here"),
        ({"gamma": 0.9}, "gamma=0.9 has no place here"),
        ({"discriminator_samples": 5}, "more than num_generations=4"),
        ({"discriminator_samples": 0, **MIXTURE}, "which they are not"),
        ({"weight_clip": 0}, "weight_clip=0; expected a number above 0"),
    ],
)
def test_what_cannot_work_is_refused(settings, said, tmp_path):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        trainer(tmp_path, **settings)


def test_what_only_the_trainer_can_see_is_refused_too(tmp_path):
    class Silent(Given):
        def __call__(self, *args, **columns):
            made = super().__call__(*args, **columns)
            made.log_density = None
            return made

    run = trainer(tmp_path, decoder=Silent())
    with pytest.raises(ConfigError, match="Silent gives none"):
        run.rollout(examples(run))
    with pytest.raises(ConfigError, match="both would draw completions"):
        trainer(tmp_path, decoder=Given(), **MIXTURE)
    with pytest.raises(ConfigError, match="cannot be negative"):
        trainer(tmp_path, reward_weights=[-1.0])
    with pytest.raises(ConfigError, match=r"make .* completions, more than the 4096"):
        trainer(tmp_path, proposal="exact")


def test_the_health_check_takes_the_configs_limit(tmp_path):
    run = trainer(tmp_path, min_effective_share=0.9, max_steps=6, reward_as="exponential", reward_temperature=0.02)
    health = HealthCallback(tmp_path)
    run.add_callback(health)
    run.train()
    assert health.watch.limits.effective_share == 0.9
    (finding,) = [finding for finding in health.findings if finding.check == "weights_spread"]
    assert finding.status == "warn" and "have collapsed" in finding.message
