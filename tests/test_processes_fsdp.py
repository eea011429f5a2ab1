"""PPO with its weights sharded (FSDP2), in two processes, under the settings of recipes/accelerate/fsdp2.yaml."""

import processes_job
import pytest
import torch
from accelerate.utils.launch import prepare_multi_gpu_env
from processes_job import launch, train
from safetensors.torch import load_file
from test_launch_files import FOLDER, launched

CASES = ["lora", "full"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder, and case -> what the two processes found."""
    folder = tmp_path_factory.mktemp("sharded")
    settings = prepare_multi_gpu_env(launched(FOLDER / "fsdp2.yaml"))
    wanted = {name: value for name, value in settings.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
    ended = launch(processes_job.__file__, str(folder), *CASES, "sampled", **wanted)
    assert ended.returncode == 0, ended.stderr[-3000:]
    names = [*CASES, "sampled"]
    return folder, {name: [torch.load(folder / f"{name}-{i}.pt", weights_only=True) for i in (0, 1)] for name in names}


@pytest.mark.parametrize("case", CASES)
def test_sharded_weights_learn_what_whole_ones_learn(sharded, case, tmp_path):
    one, (first, second) = train(case, tmp_path), sharded[1][case]
    assert first["sharded"] and second["sharded"] and not one["sharded"]
    assert one["weights"].keys() == first["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(first["weights"][name], tensor, rtol=0, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name])


@pytest.mark.parametrize("case", CASES)
def test_the_critic_starts_at_the_mean_return(sharded, case):
    row = sharded[1][case][0]["history"][0]
    assert row["value/mean"] == pytest.approx(row["returns/mean"], abs=0.05) and abs(row["returns/mean"]) > 0.4


def test_the_log_sees_the_weights_move(sharded, tmp_path):
    moved = [row["weights/delta"] for row in sharded[1]["full"][0]["history"] if "weights/delta" in row]
    whole = [row["weights/delta"] for row in train("full", tmp_path)["history"] if "weights/delta" in row]
    assert moved == pytest.approx(whole, rel=0.05)  # the first process's half of each tensor


def test_a_process_that_has_finished_sampling_waits_for_the_other(sharded):
    for found in sharded[1]["sampled"]:
        lengths = [row for row in found["history"] if "completions/min_length" in row]
        assert lengths and lengths[0]["completions/min_length"] <= 2 < lengths[0]["completions/max_length"]
        assert max(row["sampling/logp_difference_max"] for row in lengths) < 1e-5
        assert found["evaluated"] == 3


def test_a_run_goes_on_from_its_checkpoint(sharded):
    for found in sharded[1]["sampled"]:
        assert found["weights"].keys() == found["resumed"].keys()
        assert all(torch.equal(tensor, found["resumed"][name]) for name, tensor in found["weights"].items())


def test_the_saved_model_is_whole(sharded):
    folder, found = sharded[0] / "sampled" / "model", sharded[1]["sampled"][0]["weights"]
    saved = load_file(folder / "model.safetensors") | load_file(folder / "value_head.safetensors")
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in found.items())
