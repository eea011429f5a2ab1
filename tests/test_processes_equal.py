"""Two processes take the steps that one takes with the same completions: PPO, ptx, LoRA, hybrid, cooperative."""

import processes_job
import pytest
import torch
from processes_job import TEXTS, launch, train

from alignkit.trainers.ptx import PtxText
from alignkit.trainers.rollout import split

CASES = ["lora", "full", "hybrid", "cooperative"]
# what is averaged over micro-batches of unequal length depends on how a rollout's rows are spread over them
SPREAD = {"entropy", "policy_loss", "value_loss", "value/mean", "ratio_max", "approx_kl"}
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Case -> outcome in one process, in the first of two, in the second of two."""
    folder = tmp_path_factory.mktemp("equal")
    ended = launch(processes_job.__file__, str(folder), *CASES)
    assert ended.returncode == 0, ended.stderr[-3000:]
    two = {case: [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in (0, 1)] for case in CASES}
    return {case: (train(case, folder / "one"), *two[case]) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_all_trainable_weights_are_those_of_one_process(runs, case):
    """With an empty second process in every second rollout, accumulated gradients and unequal numbers of tokens."""
    one, first, second = (run["weights"] for run in runs[case])
    assert one.keys() == first.keys() == second.keys()
    assert any("value_head" in name for name in one) or case in ("hybrid", "cooperative")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    for name, tensor in one.items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_log_tells_the_same(runs, case):
    one, first, _ = (run["history"] for run in runs[case])
    assert len(one) == len(first) == 9
    for mine, theirs in zip(one, first, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - SPREAD - TIMES:
            if not name.startswith("phase/"):
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-4), (mine["step"], name)
    assert runs[case][1]["coef"] == runs[case][2]["coef"] == pytest.approx(runs[case][0]["coef"], rel=1e-4)


def test_the_second_process_had_nothing_to_learn_from(runs):
    rewards = [row["rewards/opinion/mean"] for row in runs["full"][0]["history"] if "rewards/opinion/mean" in row]
    assert len(rewards) == 4
    grown = [row["grad_norm"] for row in runs["hybrid"][1]["history"] if "grad_norm" in row]
    assert min(grown) > 0  # nobody had an opinion in one rollout: the reference alone taught


@pytest.mark.parametrize("case", ["lora", "cooperative"])
def test_a_learned_reward_sees_what_one_process_sees(case, runs):
    one, first, second = runs[case]
    assert one["seen"] == first["seen"] == second["seen"] and [len(texts) for texts in one["seen"]] == [8] * 4
    assert torch.equal(one["learned"], first["learned"]) and torch.equal(one["learned"], second["learned"])


def test_references_are_drawn_for_the_completions_of_all_processes_together(runs):
    one, first, second = (run["told"] for run in runs["cooperative"])
    assert one == first == second
    for i, told in enumerate(one):
        assert sorted(told) == sorted([f"text {row}" for row in range(i, 72, 18)] * 2)
    assert len({tuple(int(text.split()[1]) // 18 for text in told) for told in one}) > 1, "always the same order"


class Process:
    """An accelerator of one of several processes, as far as the ptx text asks."""

    device = "cpu"

    def __init__(self, num_processes: int, process_index: int):
        self.num_processes, self.process_index = num_processes, process_index

    def reduce(self, counts: torch.Tensor, reduction: str) -> torch.Tensor:
        return counts  # the other processes have nothing


def test_one_learnable_token_of_all_processes_counts_whole():
    """Gradients are averaged over processes: the one that has the token must multiply by their number."""
    mask = torch.tensor([[1, 0], [0, 0]])
    ids = torch.arange(2)[:, None]
    batch = {
        "learn_mask": mask,
        "prompt_ids": ids,
        "prompt_mask": torch.ones(2, 1),
        "completion_mask": torch.ones(2, 2),
    }
    shares = [float(part["token_share"]) for part in split(batch, 2, 2, Process(2, 0))]
    assert shares == [0.5, 0.5]
    nothing = split({**batch, "learn_mask": 0 * mask}, 2, 2, Process(2, 0))
    assert all(float(part["token_share"]) > 0 for part in nothing)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_optimiser_step_takes_the_same_ptx_texts_with_any_number_of_processes(accumulation):
    rows = [([5], list(range(1, 2 + len(text)))) for text in TEXTS]

    def taken(processes: int, step: int) -> tuple[list, float, float]:
        texts, share, tokens = [], 0.0, 0
        for rank in range(processes):
            ptx = PtxText(rows, 3, 0, Process(processes, rank), accumulation)
            for micro in range(accumulation):
                batch = ptx.next(4 // processes, step * accumulation + micro)
                tokens += int(batch["extra_completion_mask"].sum())
                texts += [row[: int(n)].tolist() for row, n in zip(
                    batch["extra_completion_ids"], batch["extra_completion_mask"].sum(1), strict=True)]  # fmt: skip
                share = float(batch["extra_token_share"])
        assert share * processes == tokens
        return sorted(texts), tokens, share * processes

    for step in range(5):
        assert taken(1, step) == taken(2, step) == taken(4, step)
