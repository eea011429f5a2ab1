"""References drawn for a rollout: of the right prompt, as many different ones as there are, the same in any process."""

import warnings
from collections import Counter

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from test_cooperative import Events

from alignkit.errors import DataError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.trainers.cooperative import CooperativeTrainer
from alignkit.trainers.cooperative_config import CooperativeConfig
from alignkit.trainers.references import References
from alignkit.trainers.reinforce import ReinforceConfig, ReinforceTrainer

PROMPTS = ["the film was"] * 40 + ["it is"] * 3 + ["alone"]
TEXTS = [f"text {i}" for i in range(len(PROMPTS))]
DATA = Dataset.from_dict({"prompt": PROMPTS, "reference": TEXTS})


def own_of(prompts):
    return ["own"] * len(prompts)


@given(
    st.lists(
        st.lists(st.sampled_from([*PROMPTS[::20], "it is", "alone", "unknown"]), max_size=12), min_size=1, max_size=4
    ),
    st.integers(0, 2**40),
)
def test_processes_draw_together_what_one_draws_and_use_each_row_evenly(groups, seed):
    references = References(DATA, "reference")
    apart = [text for i, group in enumerate(groups) for text in references.drawn(groups, i, own_of(group), seed)]
    whole = [prompt for group in groups for prompt in group]
    assert apart == references.drawn([whole], 0, own_of(whole), seed)
    for prompt in set(whole):
        texts = Counter(text for text, of in zip(apart, whole, strict=True) if of == prompt)
        rows = [text for text, of in zip(TEXTS, PROMPTS, strict=True) if of == prompt] or ["own"]
        assert set(texts) <= set(rows)
        assert len(texts) == min(len(rows), whole.count(prompt))
        assert max(texts.values()) - min(texts.values()) <= 1


def test_every_row_of_a_prompt_is_drawn_alike():
    references = References(DATA, "reference")
    prompts = ["the film was"] * 4
    drawn = Counter(text for seed in range(2000) for text in references.drawn([prompts], 0, own_of(prompts), seed))
    assert len(drawn) == 40
    # 200 draws each are expected, with a standard deviation of 13.4
    assert max(abs(count - 200) for count in drawn.values()) < 60


def test_messages_are_prompts_too():
    said = [{"role": "user", "content": "Hello"}]
    data = Dataset.from_dict(
        {"prompt": [said, [{"role": "user", "content": "Bye"}], said], "reference": ["a", "b", "c"]}
    )
    drawn = References(data, "reference").drawn([[said, said]], 0, ["a", "a"], 3)
    assert sorted(drawn) == ["a", "c"]


def cooperative(folder, reward, data=DATA, **settings):
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=16, num_generations=8, discriminator_samples=8, max_steps=3,
        max_completion_length=6, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    args = CooperativeConfig(**{**defaults, **settings})
    return CooperativeTrainer(tiny_causal_lm(), reward, args, data, None, tiny_tokenizer())


class Told(Events):
    """Keeps all that it was taught, beside the prompts."""

    def __init__(self):
        super().__init__()
        self.taught: list[tuple[list, list]] = []

    def update(self, prompts, completions, references):
        self.taught.append((list(prompts), list(references)))
        return super().update(prompts, completions, references)


def check_taught(taught, rows):
    for prompts, references in taught:
        assert len(prompts) == rows
        assert all(PROMPTS[TEXTS.index(text)] == prompt for prompt, text in zip(prompts, references, strict=True))
        for prompt in set(prompts):
            texts = {text for of, text in zip(prompts, references, strict=True) if of == prompt}
            assert len(texts) == min(PROMPTS.count(prompt), prompts.count(prompt))
    assert len({tuple(references) for _, references in taught}) == len(taught), "the same texts at every step"


@pytest.mark.parametrize("samples, rows", [(8, 16), (3, 6), (0, 16)])
def test_a_learned_reward_is_taught_as_many_texts_as_the_data_have(samples, rows, tmp_path):
    """A rollout takes two rows of the data, eight times each."""
    reward = Told()
    cooperative(tmp_path, reward, discriminator_samples=samples).train()
    assert len(reward.taught) == 3
    check_taught(reward.taught, rows)


def test_so_is_one_that_learns_beside_a_policy_gradient(tmp_path):
    reward = Told()
    args = ReinforceConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=16, num_generations=8, max_steps=3, report_to="none",
        max_completion_length=6, use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    ReinforceTrainer(tiny_causal_lm(), reward, args, DATA, None, tiny_tokenizer()).train()
    assert len(reward.taught) == 3
    check_taught(reward.taught, 16)


def test_the_likelihood_beside_a_reward_is_that_of_as_many_texts(tmp_path):
    run = cooperative(tmp_path, Told(), rl_weight=0.5, reward_as="exponential")
    rows = [run.train_dataset[0]] * 8
    rollout = run.score(run.sample(rows))
    made = run.references(rollout, {"prompt_ids": rollout.made.prompt_ids, "prompt_mask": rollout.made.prompt_mask})
    ids = made["extra_completion_ids"]
    drawn = run.drawn_references(rollout.prompts, rollout.columns["reference"])
    assert len(set(drawn)) == 8
    for text, row, mask in zip(drawn, ids, made["extra_completion_mask"], strict=True):
        expected = run.processing_class(text, add_special_tokens=False)["input_ids"]
        assert row[mask.bool()].tolist() == [*expected, run.processing_class.eos_token_id][:6]


def test_with_one_completion_a_prompt_the_rows_stay_as_they_are(tmp_path):
    run = cooperative(
        tmp_path, Told(), num_generations=1, discriminator_samples=1, weighting="reward", per_device_train_batch_size=4
    )
    assert run.drawn_references(["the film was"] * 4, ["a", "b", "c", "d"]) == ["a", "b", "c", "d"]


def test_a_stream_keeps_what_stands_in_its_rows_and_says_so_where_it_matters(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(DATA))
    run = cooperative(tmp_path, Told(), data=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.drawn_references(["the film was"] * 8 + ["it is"] * 8, ["a", "b"] * 8) == ["a", "b"] * 8
    with pytest.warns(UserWarning, match="16 completions of one rollout have 2 references.* load the data whole"):
        assert run.drawn_references(["the film was"] * 16, ["a"] * 8 + ["b"] * 8) == ["a"] * 8 + ["b"] * 8


def test_data_without_references_teach_none(tmp_path):
    reward = Told()
    cooperative(tmp_path, reward, data=DATA.remove_columns("reference"), max_steps=1).train()
    assert reward.taught[0][1] == [None] * 16


def test_a_resumed_run_draws_what_the_whole_one_drew(tmp_path):
    whole, first, second = Told(), Told(), Told()
    cooperative(tmp_path / "whole", whole).train()
    settings = {"save_strategy": "steps", "save_steps": 2}
    cooperative(tmp_path / "cut", first, max_steps=2, **settings).train()
    cooperative(tmp_path / "cut", second, **settings).train(
        resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2")
    )
    assert first.taught + second.taught == whole.taught


@pytest.mark.parametrize("reference, shown", [(None, "None"), (["one", "two"], r"\['one', 'two'\]")])
def test_a_likelihood_of_no_text_or_of_several_is_refused(reference, shown, tmp_path):
    data = Dataset.from_dict({"prompt": ["the film was"] * 4, "reference": [reference] * 4})
    run = cooperative(tmp_path, Events(), data=data, rl_weight=0.5, reward_as="exponential")
    with pytest.raises(DataError, match=f"'reference' holds {shown} for the prompt 'the film was'; expected one text"):
        run.train()


def test_a_hundred_thousand_texts_of_one_prompt_are_looked_up_by_their_places():
    data = Dataset.from_dict({"prompt": [""] * 100_000, "reference": [str(i) for i in range(100_000)]})
    references = References(data, "reference")
    prompts = [""] * 1024
    assert len(set(references.drawn([prompts], 0, own_of(prompts), 1))) == 1024
    assert references._keys.nbytes + references._rows.nbytes == 16 * len(data)
