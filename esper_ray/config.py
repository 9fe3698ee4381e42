"""Settings, one frozen dataclass per part; the text under a field is its help on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

CriticBaseline = Literal["factored", "state", "op"]


def _entropy_multipliers() -> dict[str, float]:
    return {
        "op": 1.0,
        "slot": 1.0,
        "blueprint": 1.3,
        "style": 1.2,
        "tempo": 1.3,
        "alpha_target": 1.2,
        "alpha_speed": 1.2,
        "alpha_curve": 1.2,
    }


@dataclass(frozen=True)
class LearnerConfig:
    """Proximal policy optimisation (Schulman et al., 2017) over a factored action (LEARNER.md sections 3, 4)."""

    lr: float = 3e-4
    """Step size of Adam."""
    adam_epsilon: float = 1e-5
    """Adam's term against division by small second moments."""
    gamma: float = 1.0
    """Discount per epoch of the host; 1 makes the objective the whole change in score."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation: 0 trusts the critic, 1 trusts the observed rewards."""
    num_epochs: int = 4
    """Passes over every rollout."""
    minibatches: int = 4
    """Gradient steps per pass; each takes whole sequences. Must divide the number of hosts per learner."""
    clip: float = 0.2
    """Ratio of new to old probability beyond which a head gets no further push, on either side of 1."""
    kl_stop: float | None = 0.05
    """Divergence from the rollout's policy at which the rest of an update is skipped; none: never."""
    critic_baseline: CriticBaseline = "factored"
    """What is subtracted from the return: "factored" takes V(s) for the op head and Q(s, op) for its arguments,
    "state" takes V(s) for all heads, "op" takes Q(s, op) for all (starves the op head; for the ablation)."""
    value_loss_coeff: float = 0.5
    """Weight of the critic's squared errors, of V and Q together."""
    return_scale_decay: float = 0.9
    """What the running scale of returns keeps of its past at every rollout, between 0 and 1."""
    entropy_coeff: float = 0.01
    """Weight of the entropy bonus, where 1 is the entropy of a uniform choice among the admitted entries."""
    entropy_multipliers: Mapping[str, float] = field(default_factory=_entropy_multipliers)
    """Factor on the entropy bonus of each head."""
    grad_clip: float = 10.0
    """Largest global norm of a gradient, above what is usual: it guards against outliers only."""

    def __post_init__(self) -> None:
        positive = {name: getattr(self, name) for name in ("lr", "adam_epsilon", "clip", "grad_clip")}
        counts = {name: getattr(self, name) for name in ("num_epochs", "minibatches")}
        shares = {name: getattr(self, name) for name in ("gamma", "gae_lambda", "return_scale_decay")}
        weights = {f"entropy_multipliers[{name}]": value for name, value in self.entropy_multipliers.items()}
        weights |= {name: getattr(self, name) for name in ("value_loss_coeff", "entropy_coeff")}
        if self.kl_stop is not None:
            positive["kl_stop"] = self.kl_stop
        for name, value in positive.items():
            _require(value > 0, name, value, "above 0")
        for name, value in counts.items():
            _require(value >= 1, name, value, "a whole number of at least 1")
        for name, value in shares.items():
            _require(0 <= value <= 1, name, value, "between 0 and 1")
        for name, value in weights.items():
            _require(value >= 0, name, value, "0 or more")
        baselines = ("factored", "state", "op")
        _require(self.critic_baseline in baselines, "critic_baseline", self.critic_baseline, f"one of {baselines}")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"learner {name} must be {wanted}, got {value!r}")
