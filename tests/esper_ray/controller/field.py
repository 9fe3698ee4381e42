"""Runs in the field for the learner's tests: packets, a graph policy's decisions on them, and reports."""

import math
from uuid import NAMESPACE_OID, uuid5

import torch

from envs.observation import ObservationLayout
from envs.vocabulary import LifecycleOp
from esper_ray.config import EnvConfig
from esper_ray.controller.commanding import proposed_operation
from esper_ray.controller.commands import (
    AdaptationCommand,
    Expectation,
    Kind,
    OptimizerChange,
    Reason,
    RiskReport,
    Selection,
    Severity,
)
from esper_ray.controller.proposals import Proposal
from esper_ray.controller.proposing import PacketProposer
from esper_ray.controller.records import Decision
from esper_ray.controller.reports.field_report import Experience, FieldReport, ReportOutcome
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.recording import RecordedWorld, record_episodes, recorded_seeds
from policies.strategic.builder import numbered
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.measured import Measured
from policies.strategic.messages import Budgets
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.replay_store import ReplayStore
from policies.strategic.seen import BLUEPRINTS, INPUTS, OPS, Seen
from tests.policies.strategic.states import METRICS, SLOTS, changed, state, wave

HOST, EXTRA, BUDGET = 1000, 234, 500
"""Parameters of a run's host, of its seeds, and that these may have."""
_PLACES = {field.name: at for at, field in enumerate(ObservationLayout(SLOTS).fields)}


def packet(epoch, accuracy=50.0, last_op=LifecycleOp.WAIT, run_id="a run", extra=EXTRA, **fields):
    """Of a run with one living seed."""
    observation = [*wave(len(_PLACES), start=0.1 * epoch)]
    for op in SLOTS.ops:
        observation[_PLACES[f"last_op_{op.name}"]] = float(op is last_op)
    observation[_PLACES["seed_parameters"]] = math.log1p(extra) / math.log1p(BUDGET)
    known = {
        "run_id": run_id,
        "packet_id": str(epoch),
        "epoch": epoch,
        "max_epochs": 150,
        "validation_accuracy": accuracy,
        "observation": tuple(observation),
        "budgets": Budgets(living_seeds=2, parameters=BUDGET),
        "metrics": METRICS | {"samples_per_s": 4000.0 + 100.0 * epoch},
    }
    return changed(state(), **(known | fields))


def policy(seed=0):
    """A checkpoint of a network with chance weights, that knows the packets' names."""
    torch.manual_seed(seed)
    network = GraphPolicyNetwork(SMALL)
    return Checkpoint(
        config=SMALL,
        weights=network.state_dict(),
        registries=numbered([Measured.of(packet(0))]),
        normaliser=MetricNormaliser(),
        seen=Seen(frozenset(INPUTS), frozenset(OPS), frozenset(BLUEPRINTS)),
        tasks=("digits",),
        min_epochs=12,
        max_epochs=150,
        commit=None,
        return_scale=0.5,
        play_temperature=0.4,
    )


class Field:
    """Where a policy decides on runs.

    Args:
        checkpoint: The policy.
        seed: Of its draws.
    """

    def __init__(self, checkpoint, seed=0):
        self.proposer = PacketProposer(checkpoint)
        self.generator = torch.Generator().manual_seed(seed)

    def decide(self, of, hidden, kind=Kind.SEED, **changes):
        """A decision on a packet, the op that is then carried out, and what the policy remembers."""
        thought = self.proposer.think(of, hidden, self.generator, False)
        proposal = Proposal(policy_version="a policy", inference_ms=0.0, **thought.said)
        proposed = proposed_operation(proposal, of, {})
        operation = proposed if kind is Kind.SEED else None
        slot = None if operation is None else operation.slot
        where = next((seed for seed in of.seeds if seed.slot == slot), None)
        expects = {} if where is None else {"slot": slot, "seed_id": where.seed_id, "stage": where.stage}
        command = AdaptationCommand(
            command_id=uuid5(NAMESPACE_OID, f"{of.run_id} {of.epoch}"),
            run_id=of.run_id,
            kind=kind,
            operation=operation,
            optimizer=OptimizerChange() if kind is Kind.OPTIMIZER else None,
            reason=Reason.POLICY if kind is Kind.SEED else Reason.LOSS_DELTA,
            issued_at_ns=of.epoch,
            expects=Expectation(epoch=of.epoch, **expects),
            risk=RiskReport(severity=Severity.INFO if kind is Kind.SEED else Severity.HIGH),
            selection=Selection(proposed=proposed, log_probability=proposal.log_prob),
        )
        decision = {
            "run_id": of.run_id,
            "packet_id": of.packet_id,
            "epoch": of.epoch,
            "command_id": str(command.command_id),
            "decided_at_ns": of.epoch,
            "level": "GREEN",
            "policy_version": proposal.policy_version,
            "action": proposal.action,
            "log_prob": proposal.log_prob,
            "proposal": proposal.model_dump_json().encode(),
            "mask": of.action_mask,
            "signals": b"[]",
            "breakers": b"{}",
            "command": command.model_dump_json().encode(),
            "packet": of.model_dump_json().encode(),
        } | changes
        return Decision(**decision), LifecycleOp.WAIT if operation is None else operation.op, thought.hidden

    def play(self, run_id="a run", epochs=6, kinds=None, ignored=(), first=0, **reported):
        """The experiences of a run, one per epoch, whose accuracy rises by one point each.

        Args:
            run_id: Of the run.
            epochs: That it is decided on.
            kinds: Epoch → kind of the command; SEED elsewhere.
            ignored: Epochs in which the run does something else than it is told.
            first: Its first epoch.
            reported: Of all reports.
        """
        told, last_op, hidden = [], LifecycleOp.WAIT, None
        for epoch in range(first, first + epochs):
            of = packet(epoch, 20.0 + epoch, last_op, run_id)
            decision, op, hidden = self.decide(of, hidden, (kinds or {}).get(epoch, Kind.SEED))
            last_op = op
            if epoch in ignored:
                last_op = LifecycleOp.PRUNE if op is LifecycleOp.WAIT else LifecycleOp.WAIT
            told.append(experience(decision, **reported))
        return told


def experience(decision, **reported):
    """A decision with its report."""
    known = {
        "report_id": uuid5(NAMESPACE_OID, f"report {decision.command_id}"),
        "command_id": uuid5(NAMESPACE_OID, f"{decision.run_id} {decision.epoch}"),
        "run_id": decision.run_id,
        "epoch": decision.epoch,
        "applied": True,
        "outcome": ReportOutcome.NEUTRAL,
        "window_epochs": 3,
        "seen_epochs": 3,
        "loss_delta_sum": 0.01,
        "loss_delta_min": 0.0,
        "loss_delta_max": 0.01,
        "excess": 0.0,
        "noise": 0.1,
    }
    return Experience(report=FieldReport(**(known | reported)), decision=decision)


def renamed(told, run_id):
    """The same of another run."""
    of = told.decision
    command_id = str(uuid5(NAMESPACE_OID, f"{run_id} {of.epoch}"))
    moved = {"run_id": run_id, "command_id": command_id}
    for name in ("packet", "command"):
        content = getattr(of, name).replace(f'"{of.run_id}"'.encode(), f'"{run_id}"'.encode())
        moved[name] = content.replace(of.command_id.encode(), command_id.encode())
    return experience(changed(of, **moved))


def greenhouse(path, who="random_valid", episodes=8, epochs=6):
    """A record of a control's episodes, as examples."""
    env = EnvConfig(task="tabular").lasting(epochs)
    path.mkdir()
    played = record_episodes(make_policy(who, env), env, recorded_seeds(0, episodes))
    ReplayStore(path).append(RecordedWorld.of(env).text, who, played)
    return path
