"""What `make bench` measures, in which order, and what each row of figures is called."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LABELS = {
    "alignkit-ppo": "alignkit PPO, shared trunk",
    "alignkit-ppo-groups": "alignkit PPO, four answers a prompt",
    "alignkit-ppo-separate-critic": "alignkit PPO, separate critic",
    "alignkit-reinforce": "alignkit REINFORCE, leave-one-out",
    "trl112-ppo": "TRL 1.12 PPO",
    "trl116-rloo": "TRL 1.16 RLOO",
    "limit": "limit: PPO by hand",
    "floor": "floor: products alone",
}
ENVIRONMENTS = {"trl112-ppo": "trl112", "trl116-rloo": "trl116"} | dict.fromkeys(
    ("alignkit-ppo", "alignkit-ppo-groups", "alignkit-ppo-separate-critic", "alignkit-reinforce", "limit"), "alignkit"
)  # the floor runs in the project's own
PARTS = ("floor", "rounds", "phases", "growth")
# size -> (contestant, K, precision)
CONTESTANTS = {
    "S": [
        ("alignkit-ppo", 4, "fp32"),
        ("trl112-ppo", 4, "fp32"),
        ("limit", 4, "fp32"),
        ("alignkit-ppo-separate-critic", 4, "fp32"),
        ("alignkit-ppo", 4, "bf16"),
        ("trl112-ppo", 4, "bf16"),
        ("limit", 4, "bf16"),
        ("alignkit-ppo", 1, "fp32"),
        ("trl116-rloo", 1, "fp32"),
        ("alignkit-ppo-groups", 1, "fp32"),
        ("alignkit-reinforce", 1, "fp32"),
        ("limit", 1, "fp32"),
        ("alignkit-ppo", 1, "bf16"),
        ("trl116-rloo", 1, "bf16"),
        ("alignkit-ppo-groups", 1, "bf16"),
        ("alignkit-reinforce", 1, "bf16"),
        ("trl116-rloo", 4, "fp32"),
    ],
    "M": [("alignkit-ppo", 4, "fp32"), ("trl112-ppo", 4, "fp32"), ("limit", 4, "fp32")],
}
PROFILED_SIZE = "S"
# The growth plots start from this job and double one dimension at a time; each list holds the start too.
GROWTH_START = {"layers": 4, "width": 256, "vocabulary": 8192, "batch": 16, "new_tokens": 32}
GROWTH = {
    "batch": [8, 16, 32, 64],
    "new_tokens": [16, 32, 64, 128],
    "vocabulary": [4096, 8192, 16384, 32768],
    "width": [128, 256, 512, 1024],
    "layers": [2, 4, 8, 16],
}
GROWTH_STEPS = {"epochs": 1, "steps": 2, "warmup": 1}
QUICK = (("steps", 2), ("warmup", 1))


@dataclass(frozen=True)
class Measurement:
    """One process to run, and the row that it gives.

    Attributes:
        part: one of `PARTS`; the file that the row goes to.
        name: the contestant, or `floor`.
        size: S or M.
        epochs: K, updates on each rollout.
        precision: fp32 or bf16.
        round: from 1; 1 too where there are no rounds.
        changes: dimensions of the job that differ from the size's.
    """

    part: str
    name: str
    size: str
    epochs: int
    precision: str
    round: int = 1
    changes: tuple[tuple[str, int], ...] = ()

    @property
    def row(self) -> dict[str, Any]:
        """What identifies the row."""
        return {
            "round": self.round,
            "name": self.name,
            "size": self.size,
            "epochs": self.epochs,
            "precision": self.precision,
            **dict(self.changes),
        }

    @property
    def title(self) -> str:
        """For people."""
        changes = "".join(f", {key} {n}" for key, n in self.changes if GROWTH_START.get(key, n) != n)
        return f"{self.part} {self.round}: {LABELS[self.name]}, {self.size}, K={self.epochs}, {self.precision}{changes}"

    def arguments(self) -> list[str]:
        """Of `contestant.py` or `floor.py`."""
        options = ["--size", self.size, "--epochs", str(self.epochs), "--precision", self.precision]
        for key, value in self.changes:
            if key != "epochs":
                options += [f"--{key.replace('_', '-')}", str(value)]
        if self.name == "floor":
            return ["floor.py", *options]
        return ["contestant.py", self.name, *options, *(["--phases"] if self.part == "phases" else [])]


def measurements(
    rounds: int, sizes: list[str], parts: list[str], only: list[str] | None = None, quick: bool = False
) -> list[Measurement]:
    """Everything to measure: contestants interleaved round after round, so that a busy minute falls on all of them.

    Args:
        rounds: of timed processes; phases and growth are measured once.
        sizes: S, M or both.
        parts: of `PARTS`.
        only: these contestants; all when None.
        quick: two measured steps a process, after one of warm-up.
    """
    found = []
    steps = QUICK if quick else ()
    for turn in range(1, rounds + 1):
        for size in sizes:
            found += [Measurement("floor", "floor", size, k, p, turn) for k, p in floors(size)]
            found += [Measurement("rounds", name, size, k, p, turn, steps) for name, k, p in CONTESTANTS[size]]
    if PROFILED_SIZE in sizes:
        found += [
            Measurement("phases", name, PROFILED_SIZE, k, p, 1, steps) for name, k, p in CONTESTANTS[PROFILED_SIZE]
        ]
        found += list(growth())
    return [m for m in found if m.part in parts and (only is None or m.name in only)]


def floors(size: str) -> list[tuple[int, str]]:
    """The (K, precision) that a size's contestants run with."""
    return list(dict.fromkeys((epochs, precision) for _, epochs, precision in CONTESTANTS[size]))


def growth() -> Iterator[Measurement]:
    """Our PPO, one dimension doubled at a time; the start, which all dimensions share, once."""
    seen = set()
    for dimension, values in GROWTH.items():
        for value in values:
            changes = tuple(sorted({**GROWTH_START, **GROWTH_STEPS, dimension: value}.items()))
            if changes not in seen:
                seen.add(changes)
                yield Measurement("growth", "alignkit-ppo", "S", GROWTH_STEPS["epochs"], "fp32", 1, changes)
