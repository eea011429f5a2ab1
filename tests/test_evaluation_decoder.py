"""`evaluation.decoder`: held-out prompts completed by what chooses by a reward, in every kind of run."""

import json

import pytest
import torch
from datasets import Dataset
from test_held_out import EXAMPLES
from test_recipe import GOOD, problems_of

from alignkit.cli import main
from alignkit.decoding.best_of_n import BestOfN
from alignkit.decoding.choosing import CHOOSERS
from alignkit.decoding.das import DAS
from alignkit.decoding.generation import generation_config_for
from alignkit.decoding.mcts import MCTS
from alignkit.decoding.prompts import encode_prompts, pad_left
from alignkit.decoding.proposal import SearchDecoder
from alignkit.errors import ConfigError
from alignkit.held_out import generate_rows
from alignkit.models.tiny import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.recipe.extending import merged
from alignkit.run import run_recipe
from alignkit.run.best_of_n import best_of_n_rows
from alignkit.run.ingredients import gather
from alignkit.trainers.reinforce import ReinforceConfig, ReinforceTrainer

MODELS = [tiny_causal_lm, tiny_seq2seq]


def longer(prompts, completions, **columns):
    """More words are better, and the second column is seen."""
    assert len(columns["reference"]) == len(completions)
    return [min(len(text.split()), 9) / 10 for text in completions]


def rows_of(model, decoder, temperature=1.0, **more):
    tokenizer = tiny_tokenizer()
    config = generation_config_for(model, tokenizer, max_new_tokens=6, temperature=temperature)
    return generate_rows(
        model, tokenizer, EXAMPLES, generation_config=config, decoder=decoder, batch_size=3, **{"with_kl": False} | more
    )


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(("search", "settings"), [(MCTS, {"simulations": 1}), (DAS, {"beams": 1, "candidates": 1})])
def test_a_search_that_has_no_choice_is_greedy(make, search, settings):
    """One simulation, or one candidate of one beam, takes the likeliest token: the rows are those of greedy search."""
    model = make().eval()
    wanted = rows_of(model, None, temperature=0)
    got = rows_of(model, SearchDecoder(search(longer, tiny_tokenizer(), **settings)))
    assert [(row["completion"], row["length"]) for row in got] == [(r["completion"], r["length"]) for r in wanted]


@pytest.mark.parametrize("make", MODELS)
def test_best_of_n_has_the_best_of_the_samples_and_its_length(make):
    model, tokenizer = make().eval(), tiny_tokenizer()
    config = generation_config_for(model, tokenizer, max_new_tokens=6)
    how = {"generation_config": config, "reward_funcs": [longer], "batch_size": len(EXAMPLES)}
    # the same order of prompts, hence the same draws
    order = sorted(range(len(EXAMPLES)), key=lambda i: len(tokenizer(EXAMPLES[i]["prompt"])["input_ids"]))
    examples = [EXAMPLES[i] for i in order]
    wanted = best_of_n_rows(model, tokenizer, examples, decoder=BestOfN(longer, tokenizer, n=5), **how)
    got = generate_rows(
        model, tokenizer, examples, with_kl=False, decoder=SearchDecoder(BestOfN(longer, tokenizer, 5)), **how
    )
    for one, other in zip(got, wanted, strict=True):
        assert (one["completion"], one["length"], one["rewards"]) == (
            *(other["completion"], other["length"], other["rewards"]),
        )
        assert one["rewards"]["longer"] >= other["first"]["rewards"]["longer"]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    "make_search", [lambda t: BestOfN(longer, t, 3), lambda t: MCTS(longer, t, simulations=4, policy_share=0.9)]
)
def test_padding_is_no_part_of_a_completion_whoever_names_the_end(make, make_search):
    """The model alone knows its end token: `generate` asks it where the caller says nothing."""
    model, tokenizer = make().eval(), tiny_tokenizer()
    ends = [token for token in range(len(tokenizer)) if token % 3 == 1]  # so many that texts end early
    model.generation_config.eos_token_id = ends
    config = generation_config_for(model, tokenizer, max_new_tokens=6)
    config.eos_token_id = None
    ids, mask = pad_left(encode_prompts(tokenizer, [row["prompt"] for row in EXAMPLES]), config.pad_token_id)
    columns = {"reference": [row["reference"] for row in EXAMPLES]}
    torch.manual_seed(3)
    made = SearchDecoder(make_search(tokenizer))(model, ids, mask, config, columns=columns)
    assert made.lengths().min() < made.completion_ids.shape[1]
    for row in made.ids():
        assert not set(row[:-1]) & set(ends) and (row[-1] in ends or len(row) == 6)


def test_searches_are_refused_where_weights_are_shared_and_best_of_n_is_not():
    model, tokenizer = tiny_causal_lm().eval(), tiny_tokenizer()
    config = generation_config_for(model, tokenizer, max_new_tokens=2)
    ids = torch.tensor([[5, 6]])
    how = {"columns": {"reference": [None]}, "synced_gpus": True}
    with pytest.raises(ConfigError, match="every process must ask equally often"):
        SearchDecoder(MCTS(longer, tokenizer))(model, ids, torch.ones_like(ids), config, **how)
    made = SearchDecoder(BestOfN(longer, tokenizer, 2))(model, ids, torch.ones_like(ids), config, **how)
    assert made.completion_ids.shape[0] == 1


def test_the_kl_is_that_of_the_text_at_the_temperature_of_sampling():
    """Whoever chose it: each row alone, scored under both models."""
    model, reference, tokenizer = tiny_causal_lm().eval(), tiny_causal_lm(seed=3).eval(), tiny_tokenizer()
    search, made = SearchDecoder(MCTS(longer, tokenizer, simulations=5, children=4)), []

    def seen(*args, **more):
        made.append(search(*args, **more))
        return made[-1]

    rows = rows_of(model, seen, temperature=0.7, with_kl=True, ref_model=reference)
    found = {}
    for batch in made:
        for given, mask, ids in zip(batch.prompt_ids, batch.prompt_mask, batch.ids(), strict=True):
            logits = [one(torch.tensor([[*given[mask.bool()].tolist(), *ids]])).logits for one in (model, reference)]
            seen_by = [(one[0, -len(ids) - 1 : -1] / 0.7).log_softmax(-1) for one in logits]
            own, other = (one.gather(1, torch.tensor(ids)[:, None]).sum() for one in seen_by)
            found[tuple(given[mask.bool()].tolist())] = float(own - other)
    assert len(found) == len(rows)
    for row in rows:
        assert row["kl"] == pytest.approx(found[tuple(tokenizer(row["prompt"])["input_ids"])], abs=1e-4)


def test_model_and_random_state_are_left_as_they_were():
    model = tiny_causal_lm().train()
    before = torch.get_rng_state()
    rows_of(model, SearchDecoder(MCTS(longer, tiny_tokenizer(), simulations=3, visit_temperature=1.0)))
    assert model.training and torch.equal(torch.get_rng_state(), before)


VOWELS = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]
"""
ON_POLICY = """
trainer: {trainer}
model: {{scratch: {{architecture: gpt2, hidden_size: 16, layers: 1, heads: 2, vocab_size: 300, context: 128}}}}
data: {{use: quickstart, train_size: 16, validation_size: 8}}
rewards: {{{folder}/vowels.py:vowels: {{}}}}
training: {{max_steps: 1, per_device_train_batch_size: 8, max_completion_length: 6, num_generations: 2, {kl}: 0,
  save_strategy: no, output_dir: {folder}/{trainer}}}
"""
SUPERVISED = """
trainer: {trainer}
model: {{scratch: {scratch}}}
data: {{use: files, path: {folder}/pairs.jsonl, validation: {folder}/pairs.jsonl}}
training: {{max_steps: 1, per_device_train_batch_size: 4, save_strategy: no, output_dir: {folder}/{trainer}}}
evaluation: {{prompts: 8, max_new_tokens: 6, metrics: {{length: {{}}}}}}
"""
KL = {"reinforce": "kl_coef", "rloo": "beta"}
SHAPES = {
    "sft": "{architecture: gpt2, hidden_size: 16, layers: 1, heads: 2, vocab_size: 300, context: 32}",
    "seq2seq": "{architecture: gru, hidden_size: 16, vocab_size: 300, context: 32}",
}


@pytest.mark.parametrize("trainer", ["reinforce", "rloo", "sft", "seq2seq"])
def test_a_run_is_judged_by_what_the_decoder_finds(trainer, tmp_path):
    """By the reward that the decoder asks, as a metric: more than by plain samples, for ours and TRL's trainers."""
    (tmp_path / "vowels.py").write_text(VOWELS)
    texts = ["good good and good", "a film", "good story", "it was good and so good"]
    lines = [json.dumps({"prompt": f"the movie {i}", "reference": text}) for i, text in enumerate(texts * 2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    text = SUPERVISED if trainer in SHAPES else ON_POLICY
    (tmp_path / "run.yaml").write_text(
        text.format(trainer=trainer, folder=tmp_path, scratch=SHAPES.get(trainer), kl=KL.get(trainer))
    )
    asked = f"{tmp_path}/vowels.py:vowels"
    search = f"use: mcts, simulations: 30, children: 20, exploration: 0.2, reward: {{use: '{asked}'}}"
    judge = f"evaluation.metrics={{judge: {{reward: '{asked}'}}}}"
    figures = {}
    for name, decoder in {
        "plain": [],
        "best": [f"evaluation.decoder={{use: best_of_n, n: 6, reward: '{asked}'}}"],
        "mcts": [f"evaluation.decoder={{{search}}}"],
    }.items():
        file = tmp_path / f"{name}.json"
        assert main(["evaluate", str(tmp_path / "run.yaml"), judge, *decoder, "--output", str(file)]) == 0
        figures[name] = json.loads(file.read_text())["figures"]["judge"]
    assert figures["best"] >= figures["plain"] and figures["mcts"] >= figures["plain"], figures
    assert max(figures["best"], figures["mcts"]) > figures["plain"], figures


def test_the_reward_that_trains_is_the_one_that_guides(tmp_path):
    """Named as one of the recipe's rewards it is the same object, and being asked teaches it nothing."""
    (tmp_path / "vowels.py").write_text(VOWELS)
    (tmp_path / "run.yaml").write_text(ON_POLICY.format(trainer="reinforce", folder=tmp_path, kl="kl_coef"))
    own = ["rewards={distinct: {window: 20}}", "training.max_steps=4", "training.eval_strategy=steps"]
    guided = "evaluation={decoder: {use: das, beams: 2, candidates: 3, reward: distinct}}"
    recipe = load_recipe(tmp_path / "run.yaml", [*own, "training.eval_steps=2", guided])
    found = gather(recipe)
    assert found.chooser.reward is found.rewards[0]
    folder = run_recipe(recipe)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_reward" in row] == [0, 2, 4]
    learned = [row["distinct/distinct"] for row in rows if "distinct/distinct" in row]
    plain = run_recipe(load_recipe(tmp_path / "run.yaml", [*own, f"training.output_dir={tmp_path}/plain"]))
    others = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    assert learned == [row["distinct/distinct"] for row in others if "distinct/distinct" in row]


def test_a_copy_of_a_reward_that_learns_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD)
    recipe = load_recipe(tmp_path / "run.yaml", ["evaluation={decoder: {use: das, reward: distinct}}"])
    with pytest.raises(ConfigError, match="distinct learns, and this copy of it would know nothing"):
        gather(recipe)


def test_columns_that_a_decoder_needs_are_those_of_the_completed_rows(tmp_path):
    """Supervised runs complete rows with every column of the data; what is missing is told before a model is loaded."""
    (tmp_path / "persona.py").write_text("def persona(completions, persona):\n    return [0.5] * len(completions)\n")
    lines = [json.dumps({"prompt": f"the movie {i}", "completion": " good", "persona": "shy"}) for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.yaml").write_text(SUPERVISED.format(trainer="sft", folder=tmp_path, scratch=SHAPES["sft"]))
    decoder = f"evaluation.decoder={{use: best_of_n, n: 2, reward: '{tmp_path}/persona.py:persona'}}"
    assert main(["evaluate", str(tmp_path / "run.yaml"), decoder]) == 0
    overlap = "evaluation.decoder={use: best_of_n, n: 2, reward: reference_overlap}"
    assert main(["evaluate", str(tmp_path / "run.yaml"), overlap]) == 0
    (tmp_path / "pairs.jsonl").write_text("\n".join(line.replace("persona", "mood") for line in lines) + "\n")
    assert main(["evaluate", str(tmp_path / "run.yaml"), decoder]) == 2


def test_best_of_n_is_not_for_a_sweep_that_begins_greedily(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(GOOD)
    decoder = "evaluation={decoder: {use: best_of_n, reward: {use: length, target: 5}}}"
    assert main(["evaluate", str(tmp_path / "run.yaml"), decoder, "--temperatures", "0", "1"]) == 2
    assert "--temperatures: best_of_n chooses among 8 samples" in capsys.readouterr().err


def test_a_dry_run_names_the_decoder(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(GOOD.replace("some/model", str(tmp_path / "no")))
    given = "evaluation={decoder: {use: das, reward: {use: length, target: 5}}}"
    run_recipe(load_recipe(tmp_path / "run.yaml", [given]), dry_run=True)
    assert "decoder das, which asks length" in capsys.readouterr().out


def test_trls_kl_to_a_model_from_scratch_is_refused(tmp_path, capsys):
    """TRL would look for it on the hub by its empty name."""
    (tmp_path / "vowels.py").write_text(VOWELS)
    (tmp_path / "run.yaml").write_text(ON_POLICY.format(trainer="rloo", folder=tmp_path, kl="beta"))
    assert main(["evaluate", str(tmp_path / "run.yaml"), "training.beta=0.1"]) == 2
    assert "training.beta=0.1: for its KL, TRL's rloo loads the starting model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        ({"use": "beam"}, "there is no decoder 'beam' that chooses by a reward; known: best_of_n, das, mcts"),
        ({"use": "mcts"}, "mcts chooses by a reward; name it"),
        (
            {"use": ["mcts"], "reward": "length"},
            "expected `use`, the name of a decoder (best_of_n, resample, mcts, das); got a list",
        ),
        ({"reward": "length"}, "expected `use`, the name of a decoder (best_of_n, resample, mcts, das); got nothing"),
        ({"use": "mcts", "reward": "lenght"}, "Did you mean 'length'"),
        ({"use": "mcts", "reward": "length", "beams": 3}, "the decoder 'mcts' has no setting 'beams'"),
        ({"use": "mcts", "reward": "length", "simulations": 0}, "simulations"),
        ({"use": "best_of_n", "reward": "length", "n": 0}, "expected a whole number of 1 or more, got 0"),
        ("mcts", "evaluation.decoder: expected a mapping"),
    ],
)
def test_a_decoder_that_cannot_be_is_told_before_anything_is_loaded(decoder, said, tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD)
    problems = problems_of(tmp_path / "run.yaml", [f"evaluation={json.dumps({'decoder': decoder})}"])
    assert any(said in problem for problem in problems), problems


def test_best_of_n_is_not_for_greedy_evaluation(tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD)
    evaluation = {"temperature": 0, "decoder": {"use": "best_of_n", "reward": {"use": "length", "target": 5}}}
    (problem,) = problems_of(tmp_path / "run.yaml", [f"evaluation={json.dumps(evaluation)}"])
    assert "best_of_n chooses among 8 samples, and at temperature 0 all are the same" in problem
    (tmp_path / "run.yaml").write_text(GOOD)
    del evaluation["temperature"]
    greedy = [f"evaluation={json.dumps(evaluation)}", "training.eval_temperature=0"]
    (problem,) = problems_of(tmp_path / "run.yaml", greedy)
    assert "at temperature 0 all are the same" in problem
    evaluation["decoder"]["n"] = 1
    load_recipe(tmp_path / "run.yaml", [f"evaluation={json.dumps(evaluation)}", *greedy[1:]])


def test_a_decoder_is_switched_off_again(tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD)
    given = "evaluation={decoder: {use: das, reward: {use: length, target: 5}}}"
    recipe = load_recipe(tmp_path / "run.yaml", [given, "evaluation.decoder=null"])
    assert recipe.evaluation["decoder"] is None and gather(recipe).chooser is None
    assert gather(load_recipe(tmp_path / "run.yaml", [given])).chooser.name == "das"


def test_another_decoder_takes_nothing_over():
    base = {"evaluation": {"decoder": {"use": "mcts", "reward": {"use": "sentiment", "model": "m"}, "simulations": 9}}}
    assert merged(base, {"evaluation": {"decoder": {"use": "das", "reward": "length"}}})["evaluation"] == {
        "decoder": {"use": "das", "reward": "length"}
    }
    same = merged(base, {"evaluation": {"decoder": {"simulations": 3, "reward": {"use": "length"}}}})["evaluation"]
    assert same["decoder"] == {"use": "mcts", "reward": {"use": "length"}, "simulations": 3}
    assert sorted(CHOOSERS) == ["best_of_n", "das", "mcts", "resample"]


def test_a_trainer_takes_a_decoder_and_not_its_name(tmp_path):
    args = ReinforceConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    data = Dataset.from_dict({"prompt": ["a", "b"]})
    with pytest.raises(ConfigError, match=r"eval_decoder='mcts'; expected a decoder, such as BestOfN"):
        ReinforceTrainer(tiny_causal_lm(), longer, args, data, None, tiny_tokenizer(), eval_decoder="mcts")
