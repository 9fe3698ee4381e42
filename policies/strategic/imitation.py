"""Supervised training on recorded episodes: decisions by cross-entropy, values and risks by what followed.

Shapes: ``B`` is the number of steps of a minibatch, ``C`` of risk classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from envs.seeding import Purpose, seed_sequence
from policies.distribution import take_entry
from policies.replacing import replacing
from policies.return_scale import ReturnScale
from policies.running_moments import power_sums
from policies.strategic.agreement import Agreement
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.imitation_config import ImitationConfig
from policies.strategic.labels import UNKNOWN_RISK, Targets
from policies.strategic.lessons import Lessons, Student, held_out_rows
from policies.strategic.replay_store import Replay, minibatches
from policies.strategic.schema import RISK_CLASSES
from policies.strategic.taught import Taught

_REFUSED = torch.finfo(torch.float32).min / 2
"""Log-probabilities below are of choices that the mask refuses."""
MOST_WEIGHT = 5.0
"""Of a choice of blending that went far better than expected."""
_FORMAT = "esper-ray imitation 1"


@dataclass(frozen=True)
class PassReport:
    """One pass over what is learnt from.

    Attributes:
        learnt: Mean of each loss while it was learnt, by name.
        held_out: The same on held-out hosts afterwards, without dropout.
        agreement: On these, :meth:`policies.strategic.agreement.Agreement.to_json`.
    """

    learnt: Mapping[str, float]
    held_out: Mapping[str, float]
    agreement: Mapping[str, Any]


class Imitation:
    """Teaches a student pass by pass; whoever stops between two can go on later to the same bits.

    Args:
        student: Who is taught; its weights are those to begin with.
        replay: What is on record.
        config: How.

    Attributes:
        return_scale: Reward units per unit of the student's values: the standard deviation of what was gained.
        history: A report per pass.
        best_pass: Number of the pass with the lowest loss on held-out hosts, from 1; 0 before the first.
        best: The network's state after it.
        taught: What passes teach beside decisions and values: that of which there is any on record, and that weighs.

    Raises:
        ValueError: no example is of a held-out host, or all are.
    """

    def __init__(self, student: Student, replay: Replay, config: ImitationConfig) -> None:
        self.config = config
        self._network, self._replay = student.network, replay
        self._lessons = Lessons(student, replay)
        self._learnt, self._held_out = (held_out_rows(replay, config.held_out, side) for side in (False, True))
        targets = [self._lessons.targets[world].at(rows) for world, rows in self._learnt.items()]
        self.return_scale = _return_scale(torch.cat([of.gained[of.exemplary] for of in targets]))
        self._class_weights = balancing_weights(torch.cat([of.risk for of in targets]))
        ramps = config.ramp_weight > 0 and any(bool(of.ramp_drawn.any()) for of in targets)
        risk = config.risk_weight > 0 and bool(self._class_weights.any())
        self.taught = Taught(risk=risk, methods=ramps, windows=ramps)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=config.lr)
        self.history: list[PassReport] = []
        self.best_pass, self.best = 0, _copy(self._network)

    def run_pass(self) -> PassReport:
        """Learn from every step once, then look at the held-out hosts.

        Raises:
            ValueError: a gradient that is not finite, or a recorded action that its mask refuses.
        """
        number = len(self.history) + 1
        order, dropout = seed_sequence(Purpose.IMITATION, self.config.seed, number).generate_state(2).tolist()
        with torch.random.fork_rng():
            torch.manual_seed(dropout)
            learnt = self._learn(torch.Generator().manual_seed(order))
        kept, agreement = self._validate()
        if not self.best_pass or kept["total"] < self.history[self.best_pass - 1].held_out["total"]:
            self.best_pass, self.best = number, _copy(self._network)
        self.history.append(PassReport(learnt, kept, agreement.to_json()))
        return self.history[-1]

    def _learn(self, generator: torch.Generator) -> dict[str, float]:
        seen = []
        for world, rows in minibatches(self._learnt, self.config.batch_size, generator):
            losses = self._losses(*self._lessons.read(world, rows, imitating=True))
            self._optimizer.zero_grad()
            losses["total"].backward()
            norm = nn.utils.clip_grad_norm_(self._network.parameters(), self.config.grad_clip)
            if not norm.isfinite():
                raise ValueError(f"a gradient is not finite: begin elsewhere with a smaller lr than {self.config.lr:g}")
            self._optimizer.step()
            seen.append(({name: loss.detach() for name, loss in losses.items()}, len(rows)))
        return _means(seen)

    @torch.no_grad()
    def _validate(self) -> tuple[dict[str, float], Agreement]:
        seen, parts = [], []
        for world, of in self._held_out.items():
            for rows in of.split(self.config.batch_size):
                result, targets = self._lessons.read(world, rows)
                seen.append((self._losses(result, targets), len(rows)))
                parts.append(Agreement.of(result, targets, self.return_scale))
        return _means(seen), Agreement.sum(parts)

    def _losses(self, result: GraphPolicyResult, targets: Targets) -> dict[str, Tensor]:
        return imitation_losses(result, targets, self.return_scale, self._class_weights, self.config)

    # ------------------------------------------------------------------ going on later
    def save(self, path: Path) -> None:
        """Write everything that further passes depend on into one file, whole or not at all.

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        tensors = {f"network.{name}": tensor for name, tensor in self._network.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {
            f"adam.{place}.{name}": tensor
            for place, state in self._optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        state = {"format": _FORMAT, "settings": self._settings(), "best_pass": self.best_pass}
        history = [asdict(report) for report in self.history]
        content = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            {"imitation": json.dumps(state | {"history": history})},
        )
        with replacing(path) as unfinished:
            unfinished.write_bytes(content)

    def load(self, path: Path) -> None:
        """Go on after what :meth:`save` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged or something else, or of other settings, records or widths; nothing is changed.
        """
        try:
            with safe_open(path, "pt") as file:
                state = json.loads((file.metadata() or {}).get("imitation", "{}"))
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is no imitation to go on with: {error}") from error
        if state.get("format") != _FORMAT:
            raise ValueError(f"{path} is no imitation to go on with: its format is not {_FORMAT!r}")
        for name, wanted in self._settings().items():
            if state["settings"].get(name) != wanted:
                raise ValueError(
                    f"{path} was begun with {name} {state['settings'].get(name)}, now it is {wanted}: go on with the "
                    "same, or begin elsewhere"
                )
        self._take_over(tensors)
        self.history = [PassReport(**report) for report in state["history"]]
        self.best_pass = state["best_pass"]

    def _settings(self) -> dict[str, Any]:
        """What must be the same for bits to be."""
        network = {f"network.{name}": value for name, value in asdict(self._network.config).items()}
        return {**asdict(self.config), **network, "records": self._replay.digest[:16]}

    def _take_over(self, tensors: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        adam: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            place, _, rest = name.partition(".")
            adam.setdefault(int(place), {})[rest] = tensor
        self._network.load_state_dict(parts["network"])
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": adam})
        self.best = parts["best"]


def imitation_losses(
    result: GraphPolicyResult,
    targets: Targets,
    return_scale: float,
    class_weights: Tensor,
    config: ImitationConfig,
) -> dict[str, Tensor]:
    """What imitation minimises, ``total``, and its parts without gradient; scalars.

    Args:
        result: What a network says of steps on record.
        targets: What these teach.
        return_scale: Reward units per unit of the network's values.
        class_weights: Of the risk classes ``[C]``.
        config: Weights of the parts.

    Raises:
        ValueError: a mask on record refuses the action on record.
    """
    assert result.risk_logits is not None, "a network says it always"
    scaled = targets.gained / return_scale
    q_taken = take_entry(result.scaled_q_values, targets.actions[:, 0])
    errors = (result.scaled_value - scaled).square() + (q_taken - scaled).square()
    parts = {
        "decisions": decision_loss(result, targets.actions, targets.exemplary),
        "value": torch.where(targets.exemplary, errors, 0.0).sum() / targets.exemplary.sum().clamp(min=1),
        "risk": risk_loss(result.risk_logits, targets.risk, class_weights),
        "ramps": ramp_loss(result, targets, scaled - result.scaled_value.detach()),
    }
    weights = {"value": config.value_weight, "risk": config.risk_weight, "ramps": config.ramp_weight}
    total = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
    return {"total": total, **{name: part.detach() for name, part in parts.items()}}


def decision_loss(result: GraphPolicyResult, actions: Tensor, exemplary: Tensor) -> Tensor:
    """Cross-entropy of recorded actions: the sum over heads, mean over exemplary steps with a choice; a scalar.

    A head that the op on record does not need adds nothing and gets no gradient.

    Args:
        result: What the policy says.
        actions: int64 ``[B, H]``.
        exemplary: Steps that count, bool ``[B]``.

    Raises:
        ValueError: the mask refuses one of them.
    """
    log_probs = result.distribution.log_prob(actions)
    refused = (log_probs < _REFUSED).any(dim=-1)
    if refused.any():
        raise ValueError(f"the mask on record refuses the action on record {actions[refused][0].tolist()}")
    chosen = result.distribution.decided(actions[:, 0]).any(dim=-1) & exemplary
    return -log_probs.sum(dim=-1).where(chosen, 0.0).sum() / chosen.sum().clamp(min=1)


def ramp_loss(result: GraphPolicyResult, targets: Targets, advantages: Tensor) -> Tensor:
    """How seeds were blended in, imitated the more the better it went (Peng et al., 2019): a scalar.

    Cross-entropy of the method and squared error of the window, mean over the steps at which blending begins in
    exemplary episodes, each weighing exp(advantage), at most ``MOST_WEIGHT``.

    Args:
        result: What the policy says.
        targets: What was drawn.
        advantages: What was gained beyond expectation, in standard deviations of what is gained, ``[B]``.
    """
    drawn = targets.ramp_drawn.nonzero().squeeze(-1)
    slot, ramp = targets.actions[drawn, 1], targets.ramp[drawn]
    logits, window = result.blending_method_logits[drawn, slot], result.schedule[drawn, slot]
    losses = F.cross_entropy(logits, ramp[:, 0].long(), reduction="none") + (window - ramp[:, 1:]).square().sum(dim=-1)
    weights = advantages[drawn].exp().clamp(max=MOST_WEIGHT)
    return (weights * losses).sum() / len(drawn) if len(drawn) else losses.sum()


def risk_loss(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of risk classes: the mean over steps whose class is known, each with its class's weight; a scalar.

    Args:
        logits: ``[B, C]``.
        classes: int64 ``[B]``, ``UNKNOWN_RISK`` where none is known; 0 is the loss if none is.
        weights: ``[C]``.
    """
    known = classes != UNKNOWN_RISK
    weight = weights.to(logits.device)[classes.clamp(min=0)] * known
    losses = F.cross_entropy(logits, classes.clamp(min=0), reduction="none")
    return (weight * losses).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def balancing_weights(classes: Tensor) -> Tensor:
    """Weights of the risk classes ``[C]`` with which each that occurs counts the same, and a step 1 on average."""
    counts = torch.bincount(classes[classes != UNKNOWN_RISK], minlength=len(RISK_CLASSES)).float()
    occurring = counts > 0
    return torch.where(occurring, counts.sum() / (occurring.sum() * counts.clamp(min=1)), 0.0)


def _return_scale(gained: Tensor) -> float:
    scale = ReturnScale()
    scale.update(power_sums(gained, torch.ones_like(gained, dtype=torch.bool)), decay=0.0)
    return float(scale.value)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _means(seen: Iterable[tuple[Mapping[str, Tensor], int]]) -> dict[str, float]:
    """Mean of each loss over steps, of minibatches and their numbers of steps."""
    sums: dict[str, float] = {}
    steps = 0
    for losses, count in seen:
        steps += count
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + float(loss) * count
    return {name: total / steps for name, total in sums.items()}
