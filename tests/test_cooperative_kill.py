"""GCN with LoRA on a base in 8 bits, killed and resumed: policy, discriminator, optimisers and rollout end bit for bit
as those of the run that nobody killed, also from the middle of a rollout's passes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_kill import STEPS, Server, same, state_of

from alignkit.trainers.checkpoint_files import choose_checkpoint

EXPECTED = {"adapter_model.safetensors", "optimizer.pt", "rewards/letters.pt", "rng_state.pth", "rollout_0.pt"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.process.stdin.close()
    assert server.process.wait(timeout=60) == 0


def killed_and_resumed(server: Server, folder: Path, ways: list[dict]) -> int:
    """Die in each of these ways, one after the other, then run to the end. Gives how often it did die."""
    died = 0
    for how in [*ways, {}]:
        answer = server.attempt(folder, None, cooperative=True, **how)
        died += answer["exit"] is None
    return died


def test_killed_thrice_and_the_end_is_that_of_the_unbroken_run(server, tmp_path):
    assert server.attempt(tmp_path / "unbroken", None, cooperative=True)["exit"] == 0
    # at the first file of its second save; in the middle of another; while it writes a large one
    ways = [{"save": 2, "call": 0}, {"save": 3, "call": 9}, {"save": 1, "bytes": 3000}]
    assert killed_and_resumed(server, tmp_path / "killed", ways) == 3
    ends = [state_of(tmp_path / name / f"checkpoint-{STEPS}") for name in ("killed", "unbroken")]
    assert set(ends[1]) == set(ends[0]) >= EXPECTED
    assert [name for name in sorted(ends[1]) if not same(ends[0][name], ends[1][name])] == []
    assert choose_checkpoint(tmp_path / "killed").checkpoint.name == f"checkpoint-{STEPS}"
    # and the run had something to lose
    first, last = (
        load_file(tmp_path / "unbroken" / f"checkpoint-{n}" / "adapter_model.safetensors") for n in (1, STEPS)
    )
    assert all(not torch.equal(first[name], last[name]) for name in first)
