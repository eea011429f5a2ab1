"""Sampling by a second engine behind TRL's `VLLMGeneration`, played by the policy itself with a known error."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import trl.trainer.grpo_trainer as host
from processes_job import replayed, trainer_of
from trl.generation.vllm_generation import VLLMGeneration

from alignkit.models.scoring import score_completions

ERROR = 0.125  # nats that the engine's log-probabilities are off


class Engine(VLLMGeneration):
    """Gives each prompt its completion, and log-probabilities that are the policy's own but for `ERROR`."""

    def __init__(self, **settings):
        self.model, self.accelerator = settings["model"], settings["accelerator"]
        self.is_fsdp_enabled = False
        self._dist = SimpleNamespace(is_fsdp=False, gather_params=lambda _: nullcontext())
        server = {"model_config": {"logprobs_mode": "processed_logprobs"}}
        self.vllm_client = SimpleNamespace(get_server_info=lambda: server)
        self.sent: list[list[str]] = []
        self.asked = 0

    def sync_weights(self):
        self.sent.append([name for name, _ in self._iter_named_params()])

    def generate(self, prompts, images, num_generations, profiler=None):
        self.asked += 1
        completions = [replayed(list(prompt), 0) for prompt in prompts]
        log_probs = []
        for prompt, completion in zip(prompts, completions, strict=True):
            batch = [torch.tensor([row]) for row in (prompt, [1] * len(prompt), completion, [1] * len(completion))]
            with torch.no_grad():
                seen = score_completions(self.model, *batch)["log_probs"][0]
            log_probs.append([[float(value) + ERROR] for value in seen])
        return None, completions, log_probs, None


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_an_engine_samples_is_told_of_new_weights_and_its_gap_is_logged(monkeypatch, tmp_path, mode):
    monkeypatch.setattr(host, "VLLMGeneration", Engine)
    trainer = trainer_of("full", tmp_path, use_vllm=True, vllm_mode=mode, max_steps=4)
    engine = trainer.vllm_generation
    policy = [name for name, _ in trainer.model.named_parameters() if not name.startswith("value_head.")]
    trainer.train()
    assert engine.asked == 2  # two passes over each of two rollouts
    assert engine.sent and all(names == policy for names in engine.sent)
    rows = [row for row in trainer.state.log_history if "sampling/sampling_logp_difference/mean" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["sampling/sampling_logp_difference/mean"] == pytest.approx(ERROR, abs=1e-4)
        assert row["sampling/sampling_logp_difference/max"] == pytest.approx(ERROR, abs=1e-4)
        assert row["sampling/logp_difference_max"] < 1e-5  # the update compares with the policy's own figures
