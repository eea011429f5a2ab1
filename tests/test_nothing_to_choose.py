"""What a decoder says of a reward that has no say, and what `generate` takes where nobody says how long."""

import logging

import pytest
import torch

from alignkit import DAS, BestOfN, Resample
from alignkit.cli import main
from alignkit.decoding.generation import generation_config_for
from alignkit.errors import ConfigError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

PROMPTS = ["the movie is", "a story of"]


def made(decoder, **settings):
    model, tokenizer = tiny_causal_lm(), decoder.processing_class
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    config = generation_config_for(model, tokenizer, max_new_tokens=3, **settings)
    config.return_dict_in_generate = True
    torch.manual_seed(0)
    return model.generate(**inputs, custom_generate=decoder, prompts=PROMPTS, generation_config=config)


def silent(prompts, completions, **columns):
    return [0.5 if prompt == PROMPTS[0] else None for prompt in prompts]


def naught(prompts, completions, **columns):
    return [0.5 if prompt == PROMPTS[0] else 0.0 for prompt in prompts]


def spoken(prompts, completions, **columns):
    return [None, 0.5] * (len(completions) // 2)


@pytest.mark.parametrize("make", [BestOfN, Resample, DAS])
@pytest.mark.parametrize("reward", [silent, naught, spoken])
def test_a_choice_that_the_reward_has_no_say_in_is_told_once(make, reward, caplog, monkeypatch):
    monkeypatch.setattr("alignkit.decoding.log_scores._said", set())
    with caplog.at_level(logging.WARNING, logger="alignkit"):
        decoder = make(reward, tiny_tokenizer())
        made(decoder)
        made(decoder)
    told = [record.getMessage() for record in caplog.records]
    if reward is spoken or (reward is naught and make is BestOfN):  # some text has a say; a reward of 0 is one
        assert told == []
    else:
        assert len(told) == 1 and f"reward '{reward.__name__}' gave no weight" in told[0]
        assert "any text of 1 of 2 prompts" in told[0]


def test_candidates_without_weights_have_no_density():
    decoder = Resample(lambda completions, **_: [0.5] * len(completions), tiny_tokenizer(), n=4)
    with pytest.raises(ConfigError, match=r"pass top_k=0 to generate"):
        decoder.log_density_ratios(made(decoder, top_k=3).candidate_log_weights, PROMPTS, ["", ""], [[1], [1]], {})
    found = decoder.log_density_ratios(made(decoder).candidate_log_weights, PROMPTS, ["", ""], [[1], [1]], {})
    assert found == pytest.approx([0.0, 0.0])


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    tiny_causal_lm().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize(
    ("recipe", "longest"),
    [
        ("trainer: ppo\ntraining: {max_completion_length: 3}\n", 3),
        ("trainer: sft\nevaluation: {max_new_tokens: 4}\n", 4),
        ("trainer: ppo\ntraining: {max_completion_length: 9999}\n", None),
    ],
)
def test_completions_are_as_long_as_the_runs_own_and_as_the_model_has_room_for(recipe, longest, run, monkeypatch):
    (run / "recipe.yaml").write_text(recipe)
    asked = []

    def note(*_, generation_config, **__):
        asked.append(generation_config.max_new_tokens)
        return []

    monkeypatch.setattr("alignkit.run.generate.generate_rows", note)
    for model in (run, run / "model"):
        assert main(["generate", str(model), "--prompt", "the movie is"]) == 0
    assert main(["generate", str(run), "--prompt", "the movie is", "--max-new-tokens", "2"]) == 0
    words = len(tiny_tokenizer()("the movie is")["input_ids"])
    room = tiny_causal_lm().config.max_position_embeddings - words
    assert asked == [longest or room, longest or room, 2]
