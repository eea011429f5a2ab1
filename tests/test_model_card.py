"""The model cards that trainers write name a model that there is, or none."""

import re

import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from alignkit import PPOConfig, PPOTrainer
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer
from alignkit.trainers.whole_checkpoints import with_whole_checkpoints

DATA = Dataset.from_dict({"prompt": ["the movie is", "a story of"] * 4})
TEXTS = Dataset.from_dict({"text": ["the film was good .", "the plot was bad ."] * 4})
SHARED = dict(report_to="none", use_cpu=True, max_steps=1, save_steps=1, disable_tqdm=True)
PLAIN = dict(bf16=False, gradient_checkpointing=False)
NAMELESS = "This model was trained from a model without a name (built from scratch, or in Python)."


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def ppo(model, folder):
    args = PPOConfig(**SHARED, output_dir=folder, max_completion_length=4, per_device_train_batch_size=2)
    return PPOTrainer(model, length, args, DATA, processing_class=tiny_tokenizer())


def grpo(model, folder):
    size = dict(max_completion_length=4, per_device_train_batch_size=2, num_generations=2)
    args = GRPOConfig(**SHARED, **PLAIN, **size, output_dir=folder)
    return with_whole_checkpoints(GRPOTrainer)(model, length, args, DATA, processing_class=tiny_tokenizer())


def sft(model, folder):
    args = SFTConfig(**SHARED, **PLAIN, output_dir=folder)
    return with_whole_checkpoints(SFTTrainer)(model, args, train_dataset=TEXTS, processing_class=tiny_tokenizer())


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("made", [ppo, grpo, sft])
def test_a_model_that_was_built_has_no_name_in_its_card(made, tmp_path):
    made(tiny_causal_lm(), str(tmp_path)).train()
    card = card_of(tmp_path)
    assert NAMELESS in card and "None" not in card
    assert 'model="path/to/this/model"' in card


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }} {% endfor %}"])
def test_the_quick_start_asks_a_chat_question_only_where_there_is_a_chat_template(template, tmp_path):
    trainer = sft(tiny_causal_lm("llama"), str(tmp_path / "run"))
    trainer.processing_class.chat_template = template
    trainer.save_model(str(tmp_path / "model"))
    trainer.create_model_card(model_name="small")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(tmp_path / "run"), re.DOTALL)
    assert ("question" in code) is (template is not None)
    exec(code.replace("path/to/this/model", str(tmp_path / "model")), {})


def test_a_local_model_is_named_by_its_folder_and_a_runs_by_the_run(tmp_path):
    start = tmp_path / "runs" / "small"
    for folder, name in ((start / "lm", "lm"), (start / "model", "small/model")):
        tiny_causal_lm().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        (start / "recipe.yaml").write_text("trainer: sft\n") if folder.name == "model" else None
        ppo(str(folder), str(tmp_path / "run")).train()
        card = card_of(tmp_path / "run")
        assert f"a fine-tuned version of `{name}`, a model in a local folder." in card and "None" not in card
        assert str(tmp_path) not in card


def test_a_published_model_is_linked_as_the_host_links_it(tmp_path):
    model = tiny_causal_lm()
    model.config._name_or_path = "someone/small-lm"
    ppo(model, str(tmp_path)).create_model_card(model_name="run", dataset_name="someone/prompts")
    card = card_of(tmp_path)
    assert "version of [someone/small-lm](https://huggingface.co/someone/small-lm) on the [someone/prompts]" in card
    assert "None" not in card


def test_the_card_of_a_classifier_stays_the_hosts(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    cards = []
    for kind in (Trainer, with_whole_checkpoints(Trainer)):
        kind(tiny_classifier(), args).create_model_card(model_name="small")
        cards.append(card_of(tmp_path))
    assert cards[0] == cards[1] and "None" not in cards[0]
