"""How the discriminator learns: its loss computed again, trivial tasks, and a resume with the same bits."""

import io
import math
import random

import pytest
import torch
from alignkit_rewards import Discriminator

from alignkit.errors import RewardError
from alignkit.losses import discriminator_loss
from alignkit.models.tiny import WORDS, tiny_tokenizer

SCRATCH = {
    "causal": {"hidden_size": 16, "heads": 2, "layers": 1},
    "lstm": {"architecture": "lstm", "hidden_size": 16, "dropout": 0.2},
    "bidirectional": {"hidden_size": 16, "heads": 2, "layers": 1, "dropout": 0.2},
    "cnn": {"filters": 8, "widths": [1, 2, 3], "dropout": 0.2},
}
PROMPTS = ["it was", "the film", "this movie is very"] * 4


def made(kind: str = "causal", **settings) -> Discriminator:
    settings = {"tokenizer": tiny_tokenizer(), "learning_rate": 1e-2, "batch_size": 5, **settings}
    return Discriminator(kind="causal" if kind == "lstm" else kind, **{"scratch": SCRATCH[kind], **settings})


def texts(count: int, seed: int, words=tuple(WORDS)) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(words, k=drawn.randint(1, 6))) for _ in range(count)]


def batch(seed: int = 0) -> tuple[list, list, list]:
    return PROMPTS, texts(12, seed), texts(12, 100 + seed, ("good", "film", "very"))


def test_the_loss_is_the_cross_entropy_of_every_label():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
    real = torch.tensor([True, False, True])
    losses = discriminator_loss(logits, mask, real, label_smoothing=0.1)
    for row in range(3):
        for place in range(4):
            p = 1 / (1 + math.exp(-float(logits[row, place])))
            told = -0.9 * math.log(p) - 0.1 * math.log(1 - p) if real[row] else -math.log(1 - p)
            assert float(losses[row, place]) == pytest.approx(told if mask[row, place] else 0.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["causal", "bidirectional", "cnn"])
def test_an_update_logs_the_mean_over_labels_and_hands_the_clipped_gradient_on(kind):
    settings = {"dtype": "float64", "label_smoothing": 0.1, "max_grad_norm": 0.05}
    if kind != "causal":
        settings["scratch"] = {**SCRATCH[kind], "dropout": 0.0}
    reward = Discriminator(kind=kind, tokenizer=tiny_tokenizer(), **{"scratch": SCRATCH[kind], **settings})
    model, _ = reward.network()
    tokenizer = tiny_tokenizer()
    prompts, completions, references = batch()
    losses, finals = [], {True: [], False: []}
    for real, written in ((True, references), (False, completions)):
        for prompt, text in zip(prompts, written, strict=True):
            given, own = tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
            own = own if kind == "bidirectional" else [*own, tokenizer.eos_token_id]
            inputs = {"input_ids": torch.tensor([given + own])}
            if kind != "causal":
                inputs["token_type_ids"] = torch.tensor([[0] * len(given) + [1] * len(own)])
            logits = model(**inputs).logits.flatten()
            labels = logits[len(given) :] if kind == "causal" else logits
            target = torch.full_like(labels, 0.9 if real else 0.0)
            losses.append(torch.nn.functional.binary_cross_entropy_with_logits(labels, target, reduction="none"))
            finals[real].append(labels[-1].detach())
    loss = torch.cat(losses).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    norm = torch.sqrt(sum((g**2).sum() for g in gradients if g is not None))
    people, policy = torch.stack(finals[True]), torch.stack(finals[False])
    figures = reward.update(prompts, completions, references)
    expected = {
        "loss": loss, "grad_norm": norm, "real": people.sigmoid().mean(), "fake": policy.sigmoid().mean(),
        "gap": people.mean() - policy.mean(), "spread": policy.std(correction=0), "saturated": torch.tensor(0.0),
        "accuracy": torch.cat([people > 0, policy <= 0]).double().mean(),
        "gain": people.sigmoid().log().mean() - policy.sigmoid().mean().log(),
    }  # fmt: skip
    for name, value in expected.items():
        assert figures[name] == pytest.approx(float(value.detach()), abs=1e-9), name
    # the clipped gradient is what the optimiser saw: a tenth of it is in its running mean
    clipped = [g * min(1.0, 0.05 / norm.item()) for g in gradients if g is not None]
    assert norm > 0.05 and reward.learner().steps == 1
    moved = reward.learner().optimizer.state[next(p for p in model.parameters() if p.grad is not None)]["exp_avg"]
    torch.testing.assert_close(moved, 0.1 * clipped[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", SCRATCH)
def test_it_learns_to_tell_a_trivial_language_from_random_words(kind):
    reward = made(kind, updates=10)
    for step in range(6):
        figures = reward.update(*batch(step))
    assert figures["accuracy"] > 0.85 and figures["gap"] > 2
    if kind in ("causal", "lstm"):
        assert figures["token_accuracy"] > 0.75
    unseen = reward(PROMPTS, ["very good film"] * 12) + reward(PROMPTS, ["i plot boring the"] * 12)
    assert min(unseen[:12]) > 0.7 and max(unseen[12:]) < 0.3


@pytest.mark.parametrize("kind", ["lstm", "bidirectional", "cnn"])
def test_dropout_stands_in_place_of_the_networks_own(kind):
    def losses(own: float, **settings) -> list[float]:
        reward = made(kind, scratch={**SCRATCH[kind], "dropout": own}, **settings)
        return [reward.update(*batch())["loss"] for _ in range(3)]

    without = losses(0.0)
    assert losses(0.2, dropout=0.0) == without != losses(0.2)
    assert losses(0.0, dropout=0.2) == losses(0.2)


def test_dropout_of_attention_that_is_no_module_is_set_too():
    reward = Discriminator(scratch={"architecture": "llama", "hidden_size": 16, "heads": 2}, tokenizer=tiny_tokenizer(),
                           dropout=0.25)  # fmt: skip
    rates = {m.attention_dropout for m in reward.learner().reader.model.modules() if hasattr(m, "attention_dropout")}
    assert rates == {0.25}


def test_it_comes_to_the_ratio_of_the_two_densities():
    """People write a, b, c with 6/10, 3/10, 1/10; the policy with 2/10, 3/10, 5/10: D is p / (p + q) of each."""
    people = ["good"] * 6 + ["bad"] * 3 + ["fine"]
    policy = ["good"] * 2 + ["bad"] * 3 + ["fine"] * 5
    reward = made(updates=80, learning_rate=5e-3, batch_size=32)
    for _ in range(3):
        figures = reward.update(["it was"] * 10, policy, people)
    scores = reward(["it was"] * 3, ["good", "bad", "fine"])
    assert scores == pytest.approx([6 / 8, 1 / 2, 1 / 6], abs=0.02)
    # `gain` is the fall of the divergence from the policy to the policy times the score
    data, q = [0.6, 0.3, 0.1], [0.2 * 6 / 8, 0.3 / 2, 0.5 / 6]
    fall = sum(p * math.log(w / sum(q) / own) for p, w, own in zip(data, q, [0.2, 0.3, 0.5], strict=True))
    assert figures["gain"] == pytest.approx(fall, abs=0.03) and fall > 0.39


def test_a_constant_one_and_a_perfect_one_show_in_the_log():
    reward = made()
    model, _ = reward.network()
    with torch.no_grad():
        model.score.weight.zero_()
    figures = reward.update(*batch())
    assert figures["gap"] == figures["spread"] == figures["saturated"] == 0.0
    assert figures["gain"] == pytest.approx(0.0, abs=1e-12)
    assert figures["real"] == figures["fake"] == 0.5
    prompts, _, people = batch()
    perfect = made(updates=30, learning_rate=3e-2, batch_size=32)
    for _ in range(3):
        figures = perfect.update(prompts, ["awful dull bad"] * 12, people)
    assert figures["accuracy"] == 1.0 and figures["saturated"] == 1.0 and figures["gap"] > 8


# State


@pytest.mark.parametrize("kind", SCRATCH)
def test_a_resumed_one_has_the_same_bits(kind):
    settings = {"updates": 3, "update_size": 8, "replay": 10, "replay_share": 0.25, "weight_decay": 0.01}
    whole, first = made(kind, **settings), made(kind, **settings)
    logged = [whole.update(*batch(step)) for step in range(6)]
    for step in range(3):
        first.update(*batch(step))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)  # the global random numbers are no part of it
    resumed = made(kind, seed=5, **settings)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [resumed.update(*batch(step)) for step in range(3, 6)] == logged[3:]
    mine, theirs = resumed.state_dict(), whole.state_dict()
    assert mine["replay"] == theirs["replay"] and len(mine["replay"]) == 10 and mine["updates"] == 6
    assert torch.equal(mine["generator"], theirs["generator"]) and mine["steps"] == 18
    for name, weight in theirs["network"].items():
        assert torch.equal(mine["network"][name], weight), name
    for index, state in theirs["optimizer"].items():
        assert all(torch.equal(mine["optimizer"][index][key], value) for key, value in state.items())
    assert resumed(PROMPTS, batch()[1]) == whole(PROMPTS, batch()[1])


def test_a_state_is_a_copy_and_one_of_another_network_is_refused():
    reward = made()
    state = reward.state_dict()
    reward.update(*batch())
    assert any(not torch.equal(state["network"][k], v) for k, v in reward.state_dict()["network"].items())
    with pytest.raises(RewardError, match="of kind 'causal', this one is 'cnn'"):
        made("cnn").load_state_dict(state)
    with pytest.raises(RewardError, match="another network"):
        made("lstm").load_state_dict(state)


def test_copies_that_read_the_same_stay_equal_whatever_else_draws_numbers():
    first, second = made("cnn", replay=4), made("cnn", replay=4, seed=7)
    second.load_state_dict(first.state_dict())
    for step in range(3):
        torch.manual_seed(step)
        first.update(*batch(step))
        torch.rand(10)
        second.update(*batch(step))
    mine, theirs = first.state_dict()["network"], second.state_dict()["network"]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# What it learns from


def test_earlier_samples_have_their_share_and_the_buffer_its_size():
    reward = made(replay=20, replay_share=0.25, update_size=8, updates=2)
    assert reward.update(*batch(0))["replayed"] == 0.0
    learner = reward.learner()
    assert len(learner.kept) == 12
    known = [row.ids for row in learner.kept]
    steps = []
    learner._step, step = (lambda rows, *more: steps.append(rows) or step(rows, *more)), learner._step
    assert reward.update(*batch(1))["replayed"] == 0.25
    new = {tuple(row.ids) for row in learner.reader.encode(PROMPTS, batch(1)[1])}
    for rows in steps:
        assert len(rows) == 16  # eight of people, six of the policy's new ones, two earlier
        assert all(tuple(row.ids) in new for row in rows[8:14]) and all(row.ids in known for row in rows[14:])
    # twelve and twelve more: four of them took the places of others
    assert len(learner.kept) == 20 and all(row.ids in known or tuple(row.ids) in new for row in learner.kept)
    assert sum(tuple(row.ids) in new for row in learner.kept) >= 8


def test_each_text_is_read_once_before_any_is_read_again():
    reward = made(update_size=4, updates=3)
    learner, rows = reward.learner(), []
    learner._step, step = (lambda some, *more: rows.extend(some) or step(some, *more)), learner._step
    reward.update(*batch())
    encode = learner.reader.encode
    expected = [*encode(PROMPTS, batch()[1]), *encode(PROMPTS, batch()[2])]
    assert sorted(row.ids for row in rows) == sorted(row.ids for row in expected)


def test_without_people_there_is_nothing_to_learn():
    with pytest.raises(RewardError, match=r"2 of 3 references are None.*column 'answer'"):
        reward = made()
        reward.reference_column = "answer"
        reward.update(["a"] * 3, ["b"] * 3, [None, "good", []])
    assert made().update([], [], []) == {}


def test_references_may_be_messages_or_several():
    plain, messages, several = made(), made(), made()
    prompts, completions, references = batch()
    figures = plain.update(prompts, completions, references)
    assert figures == messages.update(prompts, completions, [[{"role": "assistant", "content": t}] for t in references])
    assert figures == several.update(prompts, completions, [[text] for text in references])
    drawn = {several.update(prompts, completions, [[t, "awful"] for t in references])["real"] for _ in range(3)}
    assert len(drawn) == 3


def test_texts_that_a_blank_tells_apart_are_pointed_out_once(caplog):
    reward = made()
    for _ in range(2):
        reward.update(PROMPTS, [" " + text for text in batch()[1]], batch()[2])
    [record] = caplog.records
    assert "all 12 completions begin with a blank and no reference does" in record.getMessage()


def test_a_loss_that_is_no_number_stops_the_run():
    reward = made(learning_rate=1e-2)
    with torch.no_grad():
        reward.network()[0].score.bias.fill_(math.nan)
    with pytest.raises(RewardError, match="its loss is nan"):
        reward.update(*batch())


@pytest.mark.parametrize("replay", [8, 64])
def test_further_updates_replay_nothing_of_their_own_sample_and_keep_it_once(replay):
    reward = made("cnn", replay=replay, replay_share=0.5, update_size=12)
    before, now = batch(0), batch(1)
    reward.update(*before)
    learner = reward.learner()
    reward.update(*now)
    kept = list(learner.kept)
    own = {tuple(row.ids) for row in learner.reader.encode(now[0], now[1])}
    earlier = [row for i, row in enumerate(kept) if i not in learner.fresh]
    assert len(kept) == min(replay, 24) and {tuple(kept[i].ids) for i in learner.fresh} <= own
    replayed = [learner._earlier(12) for _ in range(20)]
    assert all(row in earlier for rows in replayed for row in rows)
    assert any(replayed) == bool(earlier)
    reward.update_again(*now)
    assert learner.kept == kept
