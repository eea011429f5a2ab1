"""What a recipe says of rewards and metrics is taken as it was meant, or reported."""

import pytest

from alignkit.errors import RecipeError, RewardLoadError
from alignkit.recipe import load_recipe
from alignkit.registry import load_reward


def test_a_name_twice_in_a_list_is_reported(tmp_path):
    text = """
trainer: ppo
model: {scratch: {hidden_size: 16, layers: 1, heads: 2, context: 96}}
data: {use: quickstart}
rewards: [{length: {target: 5}}, {length: {target: 20}}]
evaluation: [diversity, repetition, diversity]
"""
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "twice.yaml")
    assert [problem.partition(" stands twice")[0] for problem in caught.value.problems] == [
        "rewards: 'length'",
        "evaluation.metrics: 'diversity'",
    ]


def test_a_functions_columns_are_no_settings(tmp_path):
    """`**columns` would swallow a misspelt key, and the reward would train with another weight than was written."""
    (tmp_path / "mine.py").write_text(
        "def excited(completions, level=1, **columns):\n    return [0.0] * len(completions)\n"
    )
    text = f"""
trainer: ppo
model: {{scratch: {{hidden_size: 16, layers: 1, heads: 2, context: 96}}}}
data: {{use: quickstart}}
rewards: {{excited: {{use: "{tmp_path}/mine.py:excited", wieght: 5.0, level: 2}}}}
"""
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "mine.yaml")
    (problem,) = caught.value.problems
    assert problem.endswith("has no setting 'wieght'; did you mean 'weight'?")
    with pytest.raises(RewardLoadError, match=r"has no setting 'levle'\. Did you mean 'level'?"):
        load_reward(f"{tmp_path}/mine.py:excited", levle=2)
