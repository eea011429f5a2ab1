"""The simulated user's next turn: exact oracles with a stub reward and tiny models, and its way through a recipe."""

import json
import math
import statistics

import numpy
import pytest
import torch

from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.sampling import SamplingDecoder
from alignkit.errors import ConfigError, ModelError, RecipeError, RewardCallError
from alignkit.evaluation import evaluate_rows
from alignkit.json_lines import read_json_lines
from alignkit.metrics import load_metric
from alignkit.metrics.next_turn import NextTurnMetric
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_seq2seq, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit.run.models import named_models

PROMPTS = ["the film was", "it is not very good and i hated it", "a", "the plot", "this movie was dull but i loved it"]
REPLIES = ["good", "is it", "the the the", "", "i loved it ."]
KINDS = {"causal": tiny_causal_lm, "rotary": lambda: tiny_causal_lm("llama"), "seq2seq": tiny_seq2seq}


def length(prompts, completions, **columns):
    return [float(len(text.split())) for text in completions]


def metric(kind="causal", reward=length, **settings):
    user = KINDS[kind]()
    settings = {"samples": 3, "max_new_tokens": 6, "temperature": 1.5, **settings}
    return NextTurnMetric(user, reward, tiny_tokenizer(), **settings)


def drawn_one_by_one(one, text, row):
    """The turns of one row by the definition: a token at a time, by inverting the distribution at the row's numbers."""
    model, tokenizer = one.user, one.processing_class
    luck = numpy.random.default_rng(one.sampling_seed).random((row + 1, one.samples, one.max_new_tokens))[row]
    turns = []
    for numbers in luck:
        ids = tokenizer(text)["input_ids"]
        said = []
        for number in numbers:
            if model.config.is_encoder_decoder:
                start = [model.config.decoder_start_token_id]
                logits = model(torch.tensor([ids]), decoder_input_ids=torch.tensor([start + said])).logits[0, -1]
            else:
                logits = model(torch.tensor([ids + said])).logits[0, -1]
            chances = (logits.double() / one.temperature).softmax(-1).cumsum(-1)
            said.append(int((chances <= number * chances[-1]).sum()))
            if said[-1] == tokenizer.eos_token_id:
                break
        turns.append(tokenizer.decode(said, skip_special_tokens=True).strip())
    return turns


@pytest.mark.parametrize("kind", KINDS)
def test_turns_are_drawn_by_the_rows_own_numbers_whatever_the_batch(kind):
    one = metric(kind)
    read = [f"{prompt} {reply}\n" for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]
    expected = [drawn_one_by_one(one, text, row) for row, text in enumerate(read)]
    assert len({turn for row in expected for turn in row}) > 5
    for batch_size in (1, 2, 7, 64):
        one.batch_size = batch_size
        assert one.next_turns(read) == expected
    assert one.next_turns(read[:2]) == expected[:2], "rows that are left out change nothing for the others"
    assert metric(kind, seed=1).next_turns(read) != expected


def test_the_figures_are_those_of_the_turns():
    one = metric(positive_above=5.0, seed=1)
    figures = one.compute(predictions=REPLIES, prompts=[f"{prompt}\n" for prompt in PROMPTS])
    read = [f"{prompt}\n{reply}\n" for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]
    turns = [drawn_one_by_one(one, text, row) for row, text in enumerate(read)]
    counts = [[len(turn.split()) for turn in row if turn] for row in turns]
    rows = [statistics.fmean(row) if row else None for row in counts]
    means = [score for score in rows if score is not None]
    every = [count for row in counts for count in row]
    assert figures == {
        "next_turn": pytest.approx(statistics.fmean(means)),
        "next_turn_se": pytest.approx(statistics.stdev(means) / math.sqrt(len(means))),
        "next_turn_empty": pytest.approx(sum(not turn for row in turns for turn in row) / 15),
        "next_turn_positive_share": pytest.approx(sum(count > 5 for count in every) / len(every)),
    }
    assert 0 < figures["next_turn_empty"] < 1 and 0 < figures["next_turn_positive_share"] < 1
    assert one.row_scores == {"next_turn": rows}


def test_the_reward_hears_what_the_user_has_read_and_the_columns_of_the_row():
    seen = []

    def listen(prompts, completions, *, persona, **columns):
        seen.extend(zip(prompts, completions, persona, strict=True))
        return [None if who == "mute" else 1.0 for who in persona]

    one = metric("rotary", listen, name="user", samples=2)
    figures = one.compute(
        predictions=[" good\nfine", "it"], prompts=["the film was", "a"], columns={"persona": ["x", "mute"]}
    )
    assert {(prompt, persona) for prompt, _, persona in seen} == {("the film was good fine\n", "x"), ("ait\n", "mute")}
    assert all(turn and "\n" not in turn for _, turn, _ in seen) and len(seen) == 4
    assert figures["user"] == 1.0 and math.isnan(figures["user_se"]) and "user_positive_share" not in figures
    assert one.row_scores == {"user": [1.0, None]}


def test_messages_are_heard_as_lines_without_the_system():
    seen = []

    def listen(prompts, completions, **columns):
        seen.extend(prompts)
        return [0.0] * len(completions)

    said = [("system", "be kind"), ("user", "it was\ndull"), ("assistant", "was it"), ("user", "very")]
    prompt = [{"role": role, "content": text} for role, text in said]
    metric("rotary", listen, samples=1).compute(predictions=["i loved it"], prompts=[prompt])
    assert seen == ["it was dull\nwas it\nvery\ni loved it\n"]


class Silent:
    """A reward with a threshold that has no opinion on anything."""

    __name__ = "silent"
    positive_above = 0.0

    def __call__(self, prompts, completions, **columns):
        return [None] * len(completions)


def test_nothing_scored_is_no_figure_and_no_zero():
    figures = metric(reward=Silent()).compute(predictions=REPLIES, prompts=PROMPTS)
    assert all(math.isnan(figures[key]) for key in ("next_turn", "next_turn_se", "next_turn_positive_share"))


def test_the_random_state_and_the_decoder_stay_as_they_were():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    config = generation_config_for(model, tokenizer, max_new_tokens=5)
    ids, mask = torch.tensor([[5, 6], [7, 8]]), torch.ones(2, 2, dtype=torch.long)
    torch.manual_seed(0)
    numbers = torch.rand(5, 2, 1, dtype=torch.float64)
    torch.manual_seed(0)
    by_the_state = SamplingDecoder()(model, ids, mask, config)
    given = SamplingDecoder(uniform=numbers[..., 0].T)(model, ids, mask, config)
    assert torch.equal(by_the_state.completion_ids, given.completion_ids)
    before = torch.get_rng_state()
    metric().compute(predictions=["good"], prompts=["the film"])
    assert torch.equal(before, torch.get_rng_state())


def test_a_long_dialogue_loses_its_beginning():
    short, long = metric(samples=1), metric(samples=1)
    room = short.user.config.max_position_embeddings - short.max_new_tokens
    ending = "good film " * (room // 2)
    assert long.next_turns([("bad plot " * 100 + ending).strip()]) == short.next_turns([ending.strip()])
    with pytest.raises(ConfigError, match="context holds 128 tokens, and max_new_tokens=128 leaves none"):
        metric(max_new_tokens=128).next_turns(["a"])


def test_what_it_cannot_be_is_said():
    with pytest.raises(ConfigError, match=r"takes samples.*got 0, 6, 64 and 1.5"):
        metric(samples=0)
    with pytest.raises(ModelError, match="a loaded GPT2LMHeadModel needs its tokenizer"):
        NextTurnMetric(tiny_causal_lm(), length).compute(predictions=["a"])

    def broken(prompts, completions, **columns):
        raise ValueError("no")

    with pytest.raises(RewardCallError, match=r"'next_turn \(broken\)' raised ValueError"):
        metric(reward=broken).compute(predictions=REPLIES, prompts=PROMPTS)


def test_rewards_come_by_name_and_by_mapping():
    by_name = load_metric("next_turn", user=tiny_causal_lm(), reward="repetition")
    by_mapping = load_metric("next_turn", user=tiny_causal_lm(), reward={"use": "length", "target": 3})
    assert by_name.reward.__name__ == "repetition" and by_mapping.reward.target == 3


def test_rows_keep_what_each_was_found():
    rows = [
        {"prompt": prompt, "completion": reply, "reference": None, "columns": {}}
        for prompt, reply in zip(PROMPTS, REPLIES, strict=True)
    ]
    one = metric()
    evaluate_rows(rows, {"next_turn": one, "words": load_metric("reward", reward=length, name="words")})
    assert [row["metrics"]["next_turn"] for row in rows] == one.row_scores["next_turn"]
    assert [row["metrics"]["words"] for row in rows] == length(PROMPTS, REPLIES)


@pytest.fixture
def folders(tmp_path):
    """A simulated user, a policy and a classifier, saved."""
    for name, model in (("user", tiny_seq2seq()), ("policy", tiny_causal_lm()), ("judge", tiny_classifier())):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path


def recipe(folders, **metrics):
    content = {
        "trainer": "reinforce",
        "model": str(folders / "policy"),
        "data": {"use": "quickstart", "train_size": 16, "validation_size": 6},
        "rewards": {"length": {"target": 3}},
        "training": {
            "output_dir": str(folders / "run"), "max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True,
            "max_completion_length": 4, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        },
        "evaluation": {"metrics": metrics},
    }  # fmt: skip
    path = folders / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def test_a_recipe_names_user_and_judge_and_its_samples_hold_the_scores(folders):
    judge = {"use": "sentiment", "model": str(folders / "judge")}
    metrics = {
        "next_turn": {"user": str(folders / "user"), "reward": judge, "samples": 2, "max_new_tokens": 4},
        "later": {"use": "next_turn", "user": str(folders / "user"), "reward": "repetition", "samples": 1},
        "judge": {"reward": "sentiment", "model": str(folders / "judge")},
    }
    loaded = load_recipe(recipe(folders, **metrics))
    assert {key for key in named_models(loaded) if key.startswith("evaluation")} == {
        *("evaluation.next_turn.user", "evaluation.next_turn.reward", "evaluation.later.user", "evaluation.judge"),
    }  # fmt: skip
    folder = run_recipe(loaded)
    after = json.loads((folder / "results.json").read_text())["after"]
    rows = [row for row in read_json_lines(folder / "samples.jsonl") if row["phase"] == "after"]
    for name in ("next_turn", "later", "judge"):
        known = [row["metrics"][name] for row in rows if row["metrics"][name] is not None]
        assert len(rows) == 6 and after[name] == pytest.approx(statistics.fmean(known))
    assert 0 <= after["next_turn_positive_share"] <= 1 and "later_positive_share" not in after


def test_mistakes_in_a_recipe_are_found_before_anything_is_loaded(folders):
    wrong = {
        "next_turn": {"user": "u", "reward": {"use": "sentiment", "modle": "m"}, "sample": 2},
        "b": {"use": "next_turn", "reward": {"model": "m"}},
        "c": {"use": "next_turn", "user": "u"},
        "d": {"use": "next_turn", "user": "u", "reward": "lenght"},
    }
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe(folders, **wrong))
    said = "\n".join(raised.value.problems)
    for part in (
        "'sample'; did you mean 'samples'?", "'modle'; did you mean 'model'?", "evaluation.b.reward: expected the name",
        "needs the setting 'user'", "needs the setting 'reward'", "'lenght'",
    ):  # fmt: skip
        assert part in said
    with pytest.raises(RecipeError, match=r"next_turn\.reward\.trust_remote_code: refused"):
        spec = {"user": "u", "reward": {"use": "sentiment", "model": "m", "trust_remote_code": True}}
        load_recipe(recipe(folders, next_turn=spec), allow_code=False)
