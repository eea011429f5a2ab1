"""Merged adapters: plain models that give what the adapter gave."""

import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignkit import merge_adapter
from alignkit.cli import main
from alignkit.errors import ModelError
from alignkit.models.loading import load_causal_or_seq2seq, load_classifier
from alignkit.models.tiny import tiny_causal_lm, tiny_classifier, tiny_seq2seq, tiny_tokenizer
from tests.test_adapters import QUANTISED, logits, lora, trainer, values

IDS = torch.arange(2, 22).reshape(2, 10)


def saved(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def adapted(base, folder, **settings):
    """An adapter that changes what its base says, saved; and the live model."""
    model = get_peft_model(load_causal_or_seq2seq(base), LoraConfig(**{"r": 4, "init_lora_weights": False, **settings}))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_merged_model_is_plain_and_gives_what_the_adapter_gave(kind, tmp_path):
    base = saved(tiny_seq2seq() if kind == "t5" else tiny_causal_lm(kind), tmp_path / "base")
    live = adapted(base, tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    made = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    more = {"decoder_input_ids": IDS} if kind == "t5" else {}
    plain = load_causal_or_seq2seq(tmp_path / "merged")
    assert type(plain) is type(live.get_base_model())
    expected = live(input_ids=IDS, **more).logits
    torch.testing.assert_close(plain(input_ids=IDS, **more).logits, expected, rtol=0, atol=1e-5)
    assert (expected - load_causal_or_seq2seq(base)(input_ids=IDS, **more).logits).abs().max() > 1e-3
    assert made.difference < 1e-5 < made.scale and made.dtype == "float32" and not made.quantised
    assert "folded into" in (tmp_path / "merged" / "README.md").read_text()


def test_what_is_merged_loads_without_alignkit_and_without_a_word(tmp_path):
    base = saved(tiny_causal_lm("llama"), tmp_path / "base")
    live = adapted(base, tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    probe = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n"
        f"folder = {str(tmp_path / 'merged')!r}\n"
        "model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)\n"
        "AutoTokenizer.from_pretrained(folder), GenerationConfig.from_pretrained(folder)\n"
        "assert not any(report.values()), report\n"
        "assert 'alignkit' not in sys.modules and 'peft' not in sys.modules\n"
        f"torch.save(model(input_ids=torch.arange(2, 22).reshape(2, 10)).logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "were not" not in done.stderr and "newly initialized" not in done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), live(input_ids=IDS).logits, rtol=0, atol=1e-5)


def test_an_adapter_on_one_end_of_tied_embeddings_leaves_the_other_alone(tmp_path):
    base = saved(tiny_causal_lm("gpt2"), tmp_path / "base")  # its vocabulary's two ends are one tensor
    for name, settings in {
        "head": {"target_modules": ["lm_head"]},
        "embedding": {"target_modules": ["wte"]},
        "trained": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    }.items():
        live = adapted(base, tmp_path / name, **settings)
        if name == "trained":
            live.base_model.model.lm_head.modules_to_save["default"].weight.data *= 1.5
            live.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        merge_adapter(tmp_path / name, tmp_path / f"{name}-merged")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-merged").eval()
        torch.testing.assert_close(plain(input_ids=IDS).logits, live(input_ids=IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", ["8bit", pytest.param("nf4", marks=pytest.mark.slow)])
def test_an_adapter_on_quantised_weights_is_folded_into_the_full_ones(bits, small_llama, tmp_path, capsys):
    run = trainer(tmp_path / "run", small_llama, bits, "reinforce", lora(r=4), max_steps=2)
    run.train()
    run.save_model(str(tmp_path / "adapter"))
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--dtype", "fp32"]) == 0
    said = capsys.readouterr().out
    plain = load_causal_or_seq2seq(tmp_path / "merged")
    assert getattr(plain, "is_quantized", False) is False
    # the very adapter, on the base as it was before it was quantised
    full = get_peft_model(load_causal_or_seq2seq(small_llama), lora(r=4)).eval()
    trained = {n: p for n, p in run.model.named_parameters() if "lora_" in n}
    for name, parameter in full.named_parameters():
        if name in trained:
            parameter.data.copy_(trained[name])
    torch.testing.assert_close(logits(plain), logits(full), rtol=0, atol=1e-5)
    assert not torch.equal(logits(plain), logits(run.model))
    assert "quantised weights and is now on full ones" in said and QUANTISED[bits]


@pytest.mark.parametrize("method", ["ppo", "critic"])
def test_the_critic_comes_along_on_request_only(method, small_llama, tmp_path):
    run = trainer(tmp_path / "run", small_llama, method=method, adapter=lora(r=4))
    run.train()
    run.save_model(str(tmp_path / "adapter"))
    merge_adapter(tmp_path / "adapter", tmp_path / "without")
    assert not (tmp_path / "without" / "value_head.safetensors").exists()
    merge_adapter(tmp_path / "adapter", tmp_path / "merged", value_head=True)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["unexpected_keys"]
    again = trainer(tmp_path / "again", tmp_path / "merged", method=method)
    torch.testing.assert_close(values(again), values(run), rtol=0, atol=1e-4)


def test_the_weights_keep_the_precision_of_the_base_or_take_the_one_asked_for(tmp_path):
    base = saved(tiny_causal_lm("llama").to(torch.bfloat16), tmp_path / "base")
    adapted(base, tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    assert merge_adapter(tmp_path / "adapter", tmp_path / "same").dtype == "bfloat16"
    assert merge_adapter(tmp_path / "adapter", tmp_path / "wide", dtype="float32").difference < 1e-5
    kinds = [AutoModelForCausalLM.from_pretrained(tmp_path / n, dtype="auto").dtype for n in ("same", "wide")]
    assert kinds == [torch.bfloat16, torch.float32]


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(tmp_path):
    base = saved(tiny_causal_lm("llama"), tmp_path / "base")
    adapted(base, tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years")
    for arguments, said in {
        (tmp_path / "adapter", tmp_path / "full"): "not an empty folder",
        (tmp_path / "base", tmp_path / "new"): "is a whole model already",
    }.items():
        with pytest.raises(ModelError, match=said):
            merge_adapter(*arguments)
    with pytest.raises(ModelError, match="there is no precision 'int8'; known: bf16, bfloat16"):
        merge_adapter(tmp_path / "adapter", tmp_path / "new", dtype="int8")
    with pytest.raises(ModelError, match="holds no value head"):
        merge_adapter(tmp_path / "adapter", tmp_path / "new", value_head=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "full"]


def test_a_classifier_of_an_adapter_is_merged_with_its_head(tmp_path):
    body = saved(tiny_classifier().bert, tmp_path / "body")
    model, _ = load_classifier(body, new_head=True, num_labels=3)
    model = get_peft_model(model, LoraConfig(r=4, task_type="SEQ_CLS", init_lora_weights=False)).eval()
    saved(model, tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(plain.eval()(IDS).logits, model(input_ids=IDS).logits, rtol=0, atol=1e-5)
