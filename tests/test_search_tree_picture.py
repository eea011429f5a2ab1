"""The picture of a tree search shows what the search knew."""

import re

import pytest
import torch

from alignkit import MCTS
from alignkit.decoding.generation import generation_config_for
from alignkit.errors import DataError
from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.report.search_tree import draw_search_tree


def letters(completions, **columns):
    return [min(1.0, sum(text.count(letter) for letter in "abcde") / 9) for text in completions]


def test_every_step_is_drawn_with_its_visits(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm()
    config = generation_config_for(model, tokenizer, max_new_tokens=4, return_dict_in_generate=True)
    search = MCTS(letters, tokenizer, simulations=12, children=5, exploration=1.0)
    out = model.generate(
        input_ids=torch.tensor([[4, 9], [7, 5]]), generation_config=config, custom_generate=search, prompts=["a", "b"]
    )
    for row, steps in enumerate(out.steps):
        file = draw_search_tree(steps, tokenizer, tmp_path / f"{row}.svg", most=3)
        drawn = re.findall(r"<!-- N (\d+)  Q ", file.read_text(encoding="utf-8"))
        expected = []
        for step in steps:
            visits = dict(zip(step.tokens, step.visits, strict=True))
            own = visits.pop(step.token)
            expected += [own, *sorted(visits.values(), reverse=True)[:2]]
        assert [int(n) for n in drawn] == expected
    png = draw_search_tree(out.steps[0], tokenizer, tmp_path / "tree.png")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no step to draw"):
        draw_search_tree([], tiny_tokenizer(), tmp_path / "tree.svg")
