"""A recipe on prompts of one's own, with nothing to compare the completions with."""

import json

import pytest

from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe


@pytest.mark.parametrize("trainer", ["ppo", "reinforce"])
def test_a_run_ends_with_its_results_where_no_row_has_a_reference(trainer, tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    prompts = [{"prompt": f"the film was {word}"} for word in ("good", "bad", "fine", "dull")] * 4
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row | {"n": i}) + "\n" for i, row in enumerate(prompts)))
    recipe = {
        "trainer": trainer,
        "model": str(tmp_path / "model"),
        "data": {"use": "files", "path": str(tmp_path / "own.jsonl")},
        "rewards": {"length": {"target": 3}},
        "training": {
            "output_dir": str(tmp_path / "run"), "max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True,
            "max_completion_length": 4, "report_to": "none", "save_strategy": "no",
        },
        "evaluation": ["reward", "diversity"],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    folder = run_recipe(load_recipe(tmp_path / "recipe.yaml"))
    results = json.loads((folder / "results.json").read_text())
    assert "distinct_2" in results["after"] and not results.get("real_text")
    assert (folder / "report.html").is_file()
