"""How a discriminator learns: gradient steps on people's texts, the policy's, and earlier ones of the policy's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from alignkit.errors import RewardError
from alignkit.losses import discriminator_loss
from alignkit.models.discriminators import set_dropout
from alignkit_rewards.discriminator.settings import LearningSettings
from alignkit_rewards.discriminator.texts import Reader, Row, last_of

# Beyond these the policy gains nothing from being a little better.
SATURATED = (0.01, 0.99)
_SEED_LIMIT = 2**31


@dataclass
class Seen:
    """What the network made of texts when it first read them: log-odds, whose they are, and its labels of tokens."""

    odds: list[torch.Tensor]
    real: list[torch.Tensor]
    right: float = 0.0
    labels: float = 0.0

    def add(self, logits: torch.Tensor, mask: torch.Tensor, real: torch.Tensor) -> None:
        """Adds a batch: (B, L) logits and mask, (B,) whose texts."""
        self.odds.append(last_of(logits, mask).cpu().double())  # not every accelerator has doubles
        self.real.append(real.cpu())
        self.right += float((((logits > 0) == real[:, None]) & mask).sum())
        self.labels += float(mask.sum())

    def figures(self, per_token: bool) -> dict[str, float]:
        """What to log of them; see `Discriminator`."""
        odds, real = torch.cat(self.odds), torch.cat(self.real)
        fake = ~real
        scores = odds.sigmoid()
        low, high = SATURATED
        figures = {
            "accuracy": ((odds > 0) == real).double().mean(),
            "real": scores[real].mean(),
            "fake": scores[fake].mean(),
            "gap": odds[real].mean() - odds[fake].mean(),
            "spread": odds[fake].std(correction=0),
            "saturated": ((scores[fake] < low) | (scores[fake] > high)).double().mean(),
            "gain": logsigmoid(odds[real]).mean() - logsigmoid(odds[fake]).logsumexp(0) + math.log(int(fake.sum())),
        }
        if per_token:
            figures["token_accuracy"] = torch.tensor(self.right / self.labels)
        return {name: float(value) for name, value in figures.items()}


class Learner:
    """The optimiser of a discriminator, its earlier samples and its random numbers.

    Everything random comes from a generator of its own: copies that begin equal and read the same stay equal, whatever
    else draws numbers, and a saved one goes on with the same bits.

    Args:
        reader: whose network learns.
        settings: how.
    """

    def __init__(self, reader: Reader, settings: LearningSettings):
        self.reader, self.settings = reader, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.kept: list[Row] = []
        self.fresh: set[int] = set()  # places of those that the last update put there
        self.updates = self.steps = 0
        self.weights = [weight for weight in reader.model.parameters() if weight.requires_grad]
        self.optimizer: Any = None
        if settings.updates:
            if settings.dropout is not None:
                set_dropout(reader.model, settings.dropout)
            narrow = {weight.dtype for weight in self.weights if weight.dtype.itemsize < 4}
            if narrow:
                raise RewardError(
                    f"discriminator: weights in {narrow.pop()} are too coarse for the steps of learning; load them in "
                    "float32 and set dtype, which is then the precision of the computations, or freeze it: updates: 0"
                )
            self.optimizer = torch.optim.AdamW(
                self.weights, lr=settings.learning_rate, weight_decay=settings.weight_decay
            )

    def draw(self, count: int) -> int:
        """One of so many, at random."""
        return int(torch.randint(count, (), generator=self.generator)) if count > 1 else 0

    def learn(self, real: Sequence[Row], fake: Sequence[Row], again: bool = False) -> dict[str, float]:
        """Takes the gradient steps of one update; gives what to log.

        Args:
            real: people's texts.
            fake: the policy's, not necessarily of equal number.
            again: they are those of the last update, which keeps them no second time, nor takes them for earlier ones.
        """
        if not again:
            self.fresh = set()
        if not self.settings.updates:
            return self._measure(real, fake)
        seen = Seen([], [])
        losses, norms, replayed = [], [], 0
        size = min(self.settings.update_size, len(real), len(fake))
        streams = self._stream(len(real)), self._stream(len(fake))
        model = self.reader.model
        model.train()
        # dropout draws from the global generator, which is others' too
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(_SEED_LIMIT, (), generator=self.generator)))
            for _ in range(self.settings.updates):
                earlier = self._earlier(size)
                replayed += len(earlier)
                people = [next(streams[0]) for _ in range(size)]
                theirs = [next(streams[1]) for _ in range(size - len(earlier))]
                rows = [real[i] for i, _ in people] + [fake[i] for i, _ in theirs] + earlier
                new = [first for _, first in (*people, *theirs)]
                loss, norm = self._step(rows, size, [*new, *[False] * len(earlier)], seen)
                losses.append(loss)
                norms.append(norm)
        model.eval()
        if not again:
            self._keep(fake)
        self.updates += 1
        self.steps += len(losses)
        figures = {"loss": sum(losses) / len(losses), **seen.figures(self.reader.kind == "causal")}
        figures["grad_norm"] = sum(norms) / len(norms)
        if self.settings.replay:
            figures["replayed"] = replayed / (size * len(losses))
        return figures

    def _step(self, rows: list[Row], people: int, new: list[bool], seen: Seen) -> tuple[float, float]:
        """One gradient step on rows, the first `people` of which people wrote; its loss and the gradient's norm."""
        reader = self.reader
        labels = sum(len(row.ids) - row.begins for row in rows) if reader.kind == "causal" else len(rows)
        total = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for places in reader.batches(rows):
            logits, mask = reader.logits([rows[i] for i in places])
            real = torch.tensor([i < people for i in places], device=logits.device)
            loss = discriminator_loss(logits, mask, real, self.settings.label_smoothing).sum() / labels
            loss.backward()
            total += float(loss.detach())
            fresh = torch.tensor([new[i] for i in places], device=logits.device)
            if bool(fresh.any()):
                seen.add(logits.detach()[fresh], mask[fresh], real[fresh])
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self.settings.max_grad_norm))
        if not torch.isfinite(torch.tensor([total, norm])).all():
            raise RewardError(
                f"discriminator: its loss is {total} and its gradient's norm {norm} after {self.steps} steps; lower "
                "learning_rate, or compute in float32"
            )
        self.optimizer.step()
        return total, norm

    @torch.inference_mode()
    def _measure(self, real: Sequence[Row], fake: Sequence[Row]) -> dict[str, float]:
        """The figures of a network that does not learn."""
        seen, total, labels = Seen([], []), 0.0, 0
        rows = [*real, *fake]
        for places in self.reader.batches(rows):
            logits, mask = self.reader.logits([rows[i] for i in places])
            whose = torch.tensor([i < len(real) for i in places], device=logits.device)
            total += float(discriminator_loss(logits, mask, whose, self.settings.label_smoothing).sum())
            labels += int(mask.sum())
            seen.add(logits, mask, whose)
        self.updates += 1
        return {"loss": total / labels, **seen.figures(self.reader.kind == "causal")}

    def _stream(self, count: int) -> Iterator[tuple[int, bool]]:
        """Places of `count` texts in random order, again and again; and whether it is the first time."""
        first = True
        while True:
            for place in torch.randperm(count, generator=self.generator).tolist():
                yield place, first
            first = False

    def _earlier(self, size: int) -> list[Row]:
        """Earlier samples for their share of a step, without any of this update."""
        known = [row for i, row in enumerate(self.kept) if i not in self.fresh]
        wanted = min(round(self.settings.replay_share * size), len(known), size - 1)
        chosen = torch.randperm(len(known), generator=self.generator)[:wanted].tolist() if wanted else []
        return [known[i] for i in chosen]

    def _keep(self, fake: Sequence[Row]) -> None:
        """Puts the policy's texts among the earlier ones; when these are full, each takes the place of a random one."""
        for row in fake if self.settings.replay else ():
            place = len(self.kept)
            if place < self.settings.replay:
                self.kept.append(row)
            else:
                place = self.draw(place)
                self.kept[place] = row
            self.fresh.add(place)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, counters, earlier samples and random state, as copies on the CPU."""
        optimizer = self.optimizer.state_dict()["state"] if self.optimizer else {}
        return {
            "kind": self.reader.kind,
            "network": _copied(self.reader.model.state_dict()),
            "optimizer": _copied(optimizer),
            "updates": self.updates,
            "steps": self.steps,
            "replay": [[list(row.ids), row.begins, list(row.types or [])] for row in self.kept],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave.

        Raises:
            RewardError: it is the state of another network.
        """
        if state["kind"] != self.reader.kind:
            raise RewardError(
                f"discriminator: the state is of kind {state['kind']!r}, this one is {self.reader.kind!r}"
            )
        try:
            self.reader.model.load_state_dict(state["network"])
        except RuntimeError as error:
            raise RewardError(
                f"discriminator: the state is of another network than {type(self.reader.model).__name__}: "
                f"{str(error).splitlines()[-1].strip()} Resume with the model or scratch that the run began with"
            ) from error
        if self.optimizer:
            groups = self.optimizer.state_dict()["param_groups"]  # settings, which a resumed run may change
            self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.updates, self.steps = state["updates"], state["steps"]
        self.kept = [Row(list(ids), begins, list(types) or None) for ids, begins, types in state["replay"]]
        self.generator.set_state(state["generator"].cpu())


def _copied(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    return {key: _copied(value) for key, value in state.items()} if isinstance(state, dict) else state
