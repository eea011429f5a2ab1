"""The policy is what the model says: nothing that its own generation config has in it cuts or shapes what is drawn."""

import pytest
import torch
from datasets import Dataset
from test_cooperative import examples, trainer

from alignkit import PPOConfig, PPOTrainer
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.prompts import decode_completions
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError, ModelError
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.run import run_recipe

SHAPING = {
    "top_k": 2,
    "top_p": 0.3,
    "min_p": 0.5,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.05,
    "eta_cutoff": 0.05,
    "temperature": 0.3,
    "repetition_penalty": 3.0,
    "num_beams": 4,
    "num_return_sequences": 3,
}


def shaped(make, **own):
    model = make()
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize("make", [tiny_causal_lm, tiny_seq2seq])
@pytest.mark.parametrize("name", SHAPING)
def test_a_models_own_settings_shape_nothing(make, name):
    ids, mask = torch.tensor([[4, 5, 6]] * 64), torch.ones(64, 3, dtype=torch.long)

    def drawn(model, **given):
        torch.manual_seed(0)
        config = generation_config_for(model, tiny_tokenizer(), max_new_tokens=4, **given)
        return SamplingDecoder()(model, ids, mask, config)

    plain, found = drawn(make()), drawn(shaped(make, **{name: SHAPING[name]}))
    assert torch.equal(plain.completion_ids, found.completion_ids)
    # None is no opinion, and no invitation for the model's own
    none = drawn(shaped(make, **{name: SHAPING[name]}), **{name: None})
    assert torch.equal(plain.completion_ids, none.completion_ids)


def test_what_no_setting_switches_off_is_refused():
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel has top_h=0.5.*top_h = None"):
        generation_config_for(shaped(tiny_causal_lm, top_h=0.5), tiny_tokenizer())


def test_what_a_model_forbids_stays_forbidden():
    model = shaped(tiny_causal_lm, bad_words_ids=[[7]])
    ids, mask = torch.tensor([[4, 5, 6]] * 200), torch.ones(200, 3, dtype=torch.long)
    config = generation_config_for(model, tiny_tokenizer(), max_new_tokens=4)
    assert 7 not in SamplingDecoder()(model, ids, mask, config).completion_ids


@pytest.mark.parametrize("cut", [{"top_k": None}, {"top_p": None}, {"min_p": None}, {"repetition_penalty": None}])
def test_a_proposal_that_is_the_policy_draws_by_the_policys_own_probabilities(cut, tmp_path):
    run = trainer(tmp_path, model=shaped(tiny_causal_lm, top_p=0.5, top_k=3, min_p=0.3, typical_p=0.4), **cut)
    run.train()
    assert max(row["sampling/logp_difference_max"] for row in run.state.log_history if "loss" in row) < 1e-3
    made = run.sample(examples(run)).made
    # a cut would leave its trace: log q above log p
    own = (made.log_probs * made.completion_mask).sum(1)
    torch.testing.assert_close(made.log_density, own, check_dtype=False)


def test_completions_are_counted_by_num_generations_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"'num_return_sequences': 2.*num_generations says how many"):
        trainer(tmp_path, generation_kwargs={"num_return_sequences": 2})


def test_a_token_that_the_tokenizer_does_not_have_is_no_text():
    tokenizer = tiny_tokenizer()
    beyond = len(tokenizer) + 3
    assert decode_completions(tokenizer, [[beyond, 4]], False, ["it was"]) == [f" {tokenizer.decode([4])}"]


def test_a_chat_template_of_the_recipe_is_the_one_by_which_prompts_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_causal_lm().save_pretrained("policy")
    tokenizer = tiny_tokenizer()
    assert tokenizer.chat_template is None
    tokenizer.save_pretrained("policy")
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": "it was"}]] * 8})
    for split in ("train", "validation"):
        rows.to_json(f"data/{split}.jsonl")
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    content = {
        "trainer": "ppo",
        "model": "policy",
        "data": {"use": "files", "path": "data"},
        "rewards": {"length": {"target": 3}},
        "training": {
            "output_dir": "run", "max_steps": 1, "per_device_train_batch_size": 4, "max_completion_length": 4,
            "use_cpu": True, "save_strategy": "no", "chat_template_kwargs": {"chat_template": template},
        },
    }  # fmt: skip
    from test_win_rate import written

    assert (run_recipe(written(content)) / "results.json").is_file()


def test_ppo_takes_a_model_that_comes_with_beams(tmp_path):
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "max_completion_length": 4, "report_to": "none"}
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, save_strategy="no", **settings)
    prompts = Dataset.from_dict({"prompt": ["it was", "the film"] * 4})
    model = shaped(tiny_seq2seq, num_beams=4, num_return_sequences=2)
    run = PPOTrainer(model, lambda completions, **_: [0.0] * len(completions), args, prompts, None, tiny_tokenizer())
    run.train()
    assert run.state.global_step == 1
