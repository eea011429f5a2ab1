"""How a discriminator learns, as plain settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LearningSettings:
    """How a discriminator learns; see `Discriminator` for what each means."""

    learning_rate: float = 1e-4
    updates: int = 1
    update_size: int = 64
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    replay: int = 0
    replay_share: float = 0.5
    dropout: float | None = None
    seed: int = 0

    def problems(self) -> list[str]:
        """What is wrong with the settings, one sentence each."""
        found = []
        for name, least in {"updates": 0, "update_size": 1, "replay": 0}.items():
            if getattr(self, name) < least:
                found.append(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.max_grad_norm > 0 and self.weight_decay >= 0):
            found.append(
                "learning_rate and max_grad_norm must be above 0 and weight_decay not below it, got "
                f"{self.learning_rate}, {self.max_grad_norm} and {self.weight_decay}"
            )
        if not 0 <= self.label_smoothing < 0.5:
            found.append(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            found.append(f"dropout must lie in [0, 1), got {self.dropout}; None keeps the network's own")
        if not 0 <= self.replay_share < 1:
            found.append(f"replay_share must lie in [0, 1), got {self.replay_share}: new samples must have a part")
        return found
