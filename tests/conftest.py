"""What several test files share: tiny forms of the quickstart's two models, and a machine without hub or models."""

import os
from pathlib import Path

import pytest

# Tiny models crawl where several threads share them, above all beside other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TINY_DATA = ["data.train_size=64", "data.validation_size=16"]
TINY_SHAPE = ["model.scratch.hidden_size=16", "model.scratch.layers=1", "model.scratch.heads=2"]


@pytest.fixture(scope="session")
def tiny_quickstart(tmp_path_factory):
    """Overrides that make recipes/quickstart.yaml run in a second: two trained models of the shape of the real ones."""
    from alignkit.recipe import load_recipe
    from alignkit.run import run_recipe

    folder = tmp_path_factory.mktemp("tiny_quickstart")
    steps = ["training.max_steps=3", "training.logging_steps=1"]
    for name in ("lm", "classifier"):
        overrides = [*TINY_DATA, *TINY_SHAPE, *steps, f"training.output_dir={folder / name}"]
        run_recipe(load_recipe(RECIPES / "quickstart" / f"{name}.yaml", overrides))
    return [
        *TINY_DATA,
        f"model={folder / 'lm' / 'model'}",
        f"rewards.sentiment.model={folder / 'classifier' / 'model'}",
        "evaluation.prompts=4",
        "training.max_steps=4",
        "training.per_device_train_batch_size=8",
        "training.num_iterations=2",
        "training.max_completion_length=8",
        "training.eval_steps=2",
    ]


@pytest.fixture
def nothing_but_this_machine(monkeypatch, tmp_path):
    """No hub, no shelf of models, and an empty working folder."""
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("ALIGNKIT_MODELS", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory):
    """The folder of a Llama of one layer, wide enough for bitsandbytes to keep 8-bit optimiser states."""
    from alignkit.models.tiny import tiny_causal_lm, tiny_tokenizer

    folder = tmp_path_factory.mktemp("small") / "llama"
    tiny_causal_lm("llama", hidden_size=64, layers=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
