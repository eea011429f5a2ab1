"""An update in pieces is the update: same weights, same figures in the log, fewer tokens in the model at once."""

import pytest
import torch
from accelerate.utils import DistributedType
from hypothesis import given, settings
from hypothesis import strategies as st
from processes_job import Replay, trained_weights, trainer_of

from alignkit.errors import ConfigError
from alignkit.trainers.pieces import TOKENS_ON_CPU, PiecesMixin, in_pieces, pieces
from alignkit.trainers.reinforce import ReinforceTrainer

TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def batch(lengths: list[int], prompt: int = 3) -> dict[str, torch.Tensor]:
    rows, width = len(lengths), max(lengths)
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return {
        "prompt_ids": torch.arange(rows)[:, None].expand(rows, prompt),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": torch.arange(rows)[:, None].expand(rows, width),
        "completion_mask": mask,
        "learn_mask": mask,
        "advantages": torch.rand(rows, width),
        "token_share": mask.sum().float(),
    }


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 100))
def test_pieces_hold_every_row_once_and_no_more_tokens_than_asked(lengths, tokens):
    whole = batch(sorted(lengths))
    parts = pieces(whole, tokens)
    rows = torch.cat([part["prompt_ids"][:, 0] for part in parts])
    assert rows.tolist() == list(range(len(lengths)))
    for part in parts:
        size = part["prompt_ids"].numel() + part["completion_ids"].numel()
        assert size <= tokens or len(part["prompt_ids"]) == 1
        assert part["completion_ids"].shape[1] == int(part["completion_mask"].sum(1).max())
        assert part["advantages"].shape == part["completion_ids"].shape
        assert part["token_share"] == whole["token_share"]
    counts = [len(part["prompt_ids"]) for part in parts]
    assert max(counts) - min(counts) <= 1


def test_without_a_limit_nothing_is_cut():
    whole = batch([2, 3])
    assert pieces(whole, None) == [whole]
    assert pieces(whole, 12) == [whole]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(case, tokens) -> the trainer after eight steps."""
    folder = tmp_path_factory.mktemp("pieces")
    found = {}
    for case in ("lora", "full", "hybrid"):
        for tokens in (TOKENS_ON_CPU, 25):
            trainer = trainer_of(case, folder / str(tokens), Replay(), max_tokens_per_forward=tokens)
            trainer.train()
            found[case, tokens] = trainer
    return found


@pytest.mark.parametrize("case", ["lora", "full", "hybrid"])
def test_weights_are_those_of_whole_micro_batches(runs, case):
    whole, cut = (trained_weights(runs[case, tokens]) for tokens in (TOKENS_ON_CPU, 25))
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["lora", "full", "hybrid"])
def test_the_log_tells_of_whole_micro_batches(runs, case):
    whole, cut = (runs[case, tokens].state.log_history for tokens in (TOKENS_ON_CPU, 25))
    assert len(whole) == len(cut) == 9
    compared = set()
    for mine, theirs in zip(whole, cut, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - TIMES:
            if not name.startswith("phase/"):
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-4), (mine["step"], name)
                compared.add(name)
    assert {"entropy", "policy_loss", "loss", "grad_norm"} < compared
    assert {"lora": "ptx_loss", "full": "value_loss", "hybrid": "mle_loss"}[case] in compared


def test_the_model_sees_no_more_tokens_at_once(tmp_path):
    trainer = trainer_of("full", tmp_path, Replay(), max_tokens_per_forward=25)
    sizes = []
    trainer.model.model.register_forward_pre_hook(
        lambda m, a, k: sizes.append(k["input_ids"].numel()) if torch.is_grad_enabled() else None, with_kwargs=True
    )
    trainer.train()
    assert sizes and max(sizes) <= 25


def test_a_rollout_left_early_is_left_at_the_same_step(tmp_path):
    steps = []
    for tokens in (TOKENS_ON_CPU, 25):
        trainer = trainer_of(
            "full",
            tmp_path / str(tokens),
            Replay(),
            max_tokens_per_forward=tokens,
            target_kl_stop=1e-6,
            num_iterations=3,
        )
        trainer.train()
        steps.append([row["step"] for row in trainer.state.log_history if "reward" in row])
    assert steps[0] == steps[1] == [1, 3, 5, 7]  # two steps of three, then a new rollout


@pytest.mark.parametrize(
    ("kind", "optim"),
    [
        (DistributedType.DEEPSPEED, "adamw_torch"),
        (DistributedType.FSDP, "adamw_torch"),
        (DistributedType.MULTI_CPU, "adamw_torch"),
        (DistributedType.NO, "lomo"),
        (DistributedType.NO, "galore_adamw_layerwise"),
    ],
)
def test_where_several_backward_passes_cannot_be_they_are_refused(kind, optim):
    class Host:
        def __init__(self, limit):
            about = {"distributed_type": kind, "device": torch.device("cpu"), "mixed_precision": "no"}
            self.accelerator = type("Accelerator", (), about)()
            self.args = type("Args", (), {"max_tokens_per_forward": limit, "optim": optim})()

    class Trainer(PiecesMixin, Host):
        @in_pieces
        def update(self, model, batch):
            raise NotImplementedError

    assert Trainer(None)._tokens_at_once is None
    with pytest.raises(ConfigError, match=r"max_tokens_per_forward=64 .* raise gradient_accumulation_steps"):
        Trainer(64)


def test_a_loss_of_ones_own_is_not_cut_unless_that_was_asked_for(tmp_path):
    class OfRows(ReinforceTrainer):
        def update(self, model, batch):
            return super().update(model, batch).mean()

    plain = trainer_of("hybrid", tmp_path, Replay())
    assert plain._tokens_at_once == TOKENS_ON_CPU
    plain.__class__ = OfRows
    assert plain._tokens_at_once is None
    plain.args.max_tokens_per_forward = 100
    assert plain._tokens_at_once == 100
