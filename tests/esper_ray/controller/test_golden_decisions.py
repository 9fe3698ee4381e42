"""The decisions that are known by heart, through the whole service: a real worker, a real store, a real catalogue."""

import json
from dataclasses import replace

import pytest
import torch

from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.controller.assessment import RunState
from esper_ray.controller.commands import AdaptationCommand, Kind, Reason, Severity
from esper_ray.controller.service import Controller
from policies.strategic.messages import KEYS, Budgets
from tests.esper_ray.controller.test_service import PATIENT, of, told
from tests.esper_ray.controller.wanting import POLICY, wanted
from tests.policies.strategic.states import state
from tests.policies.strategic.test_inference import trained

GERMINATE, ADVANCE, PRUNE = LifecycleOp.GERMINATE, LifecycleOp.ADVANCE, LifecycleOp.PRUNE
AMENDMENTS = {
    "norm": {"quarantined": "it broke a run"},
    "conv_light": {"hazards": [{"name": "leaks", "severity": "HIGH", "what": "It leaks."}]},
    "attention": {"hazards": [{"name": "burns", "severity": "CRITICAL", "what": "It burns."}]},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("controller")


@pytest.fixture(scope="module")
def controller(directory):
    (directory / "blueprints.json").write_text(json.dumps(AMENDMENTS))
    with Controller(POLICY, directory, config=PATIENT, amendments=directory / "blueprints.json") as made:
        yield made


@pytest.fixture
def run_id(request):
    return request.node.name


def test_a_calm_run_gets_what_its_policy_proposes(controller, directory, run_id):
    command = controller.evaluate_epoch(wanted(GERMINATE, 1, run_id, validation_loss=0.5), hook_ms=10.0)
    assert told(command) == (Kind.SEED, Reason.POLICY)
    assert (command.operation.op, command.operation.slot) == (GERMINATE, "r0c0")
    assert command.operation.blueprint is Blueprint.DEPTHWISE
    assert command.operation == command.selection.proposed
    assert command.risk.severity is Severity.INFO
    (record,), _ = of(controller, directory, run_id)
    assert AdaptationCommand.model_validate_json(record.decision.command) == command


GOLDEN = {
    "hazard HIGH": ({"op": GERMINATE, "blueprint": "conv_light"}, Kind.OPTIMIZER, Reason.BLUEPRINT_HAZARD),
    "isolation violation": ({"metrics": {"isolation_violations": 1.0}}, Kind.PAUSE, Reason.ISOLATION_VIOLATIONS),
    "hook 75 ms": ({"hook_ms": 75.0}, Kind.PAUSE, Reason.HOOK_LATENCY),
    "hook 75 ms, told": ({"metrics": {"hook_latency_ms": 75.0}}, Kind.PAUSE, Reason.HOOK_LATENCY),
    "loss spike 0.18": ({"validation_loss": 0.5 + 0.18}, Kind.PAUSE, Reason.LOSS_DELTA),
    "loss up 0.1": ({"validation_loss": 0.5 + 0.1}, Kind.OPTIMIZER, Reason.LOSS_DELTA),
    "over budget": ({"op": ADVANCE, "budgets": Budgets(living_seeds=0)}, Kind.PAUSE, Reason.OVER_BUDGET),
    "quarantine": ({"op": ADVANCE, "blueprint": "norm"}, Kind.CIRCUIT_BREAKER, Reason.BLUEPRINT_QUARANTINED),
    "memory": ({"metrics": {"process_memory_share": 0.96}}, Kind.PAUSE, Reason.PROCESS_MEMORY),
}


@pytest.mark.parametrize(("fields", "kind", "reason"), GOLDEN.values(), ids=GOLDEN)
def test_trouble_of_a_run_whose_policy_wants_to_add(controller, directory, run_id, fields, kind, reason):
    assert told(controller.evaluate_epoch(wanted(GERMINATE, 1, run_id, validation_loss=0.5))) == (
        Kind.SEED,
        Reason.POLICY,
    )
    fields = {"op": GERMINATE, "validation_loss": 0.5, "hook_ms": 10.0} | fields
    hook_ms = fields.pop("hook_ms")
    command = controller.evaluate_epoch(wanted(epoch=2, run_id=run_id, **fields), hook_ms)
    assert told(command) == (kind, reason)
    assert command.operation is None
    assert (command.optimizer is not None) == (kind is Kind.OPTIMIZER)
    assert command.selection.proposed.op is fields["op"]
    _, record = of(controller, directory, run_id)[0]
    assert AdaptationCommand.model_validate_json(record.decision.command) == command


def test_a_packet_of_which_next_to_nothing_was_measured(controller, run_id):
    command = controller.evaluate_epoch(wanted(GERMINATE, 1, run_id, declared=KEYS))
    assert told(command) == (Kind.CIRCUIT_BREAKER, Reason.COVERAGE)
    assert command.coverage.average < 0.1


def test_expected_risk_of_a_policy_that_says_it(tmp_path):
    checkpoint, classes = trained(), torch.tensor([0.0, 0.0, 0.0, 0.04, 0.96])
    weight, bias = "heads.risk.2.weight", "heads.risk.2.bias"
    said = {weight: torch.zeros_like(checkpoint.weights[weight]), bias: classes.log().clamp(min=-50.0)}
    (tmp_path / "graph").mkdir()
    replace(checkpoint, weights=checkpoint.weights | said).save(tmp_path / "graph")
    with Controller(tmp_path / "graph", tmp_path / "state", config=PATIENT) as controller:
        command = controller.evaluate_epoch(state())
    assert command.risk.expected == pytest.approx(0.99)
    assert told(command) == (Kind.CIRCUIT_BREAKER, Reason.EXPECTED_RISK)


# ------------------------------------------------------------------ ways out
def test_a_quarantined_blueprint_is_not_even_offered(controller, directory, run_id):
    command = controller.evaluate_epoch(wanted(GERMINATE, 1, run_id, blueprint="norm"))
    assert told(command) == (Kind.SEED, Reason.POLICY)
    assert command.operation.op is LifecycleOp.WAIT
    assert set(command.selection.masked) == {"norm", "attention"}
    (record,), _ = of(controller, directory, run_id)
    assert sum(record.decision.mask) == 1, "WAIT"


def test_a_run_over_budget_gets_out_by_pruning(controller, run_id):
    over = {"budgets": Budgets(living_seeds=0)}
    for epoch in range(1, 6):
        assert told(controller.evaluate_epoch(wanted(ADVANCE, epoch, run_id, **over))) == (
            Kind.PAUSE,
            Reason.OVER_BUDGET,
        )
    pruned = controller.evaluate_epoch(wanted(PRUNE, 6, run_id, **over))
    assert (pruned.kind, pruned.operation.op) == (Kind.SEED, PRUNE)
    calm = controller.evaluate_epoch(wanted(GERMINATE, 7, run_id, budgets=Budgets(living_seeds=1)))
    assert told(calm) == (Kind.SEED, Reason.POLICY)


def test_a_run_with_a_quarantined_living_seed_gets_out_by_pruning_in_conservative_mode(controller, directory, run_id):
    entered = controller.evaluate_epoch(wanted(ADVANCE, 1, run_id, blueprint="norm"))
    assert told(entered) == (Kind.CIRCUIT_BREAKER, Reason.BLUEPRINT_QUARANTINED)
    pruned = controller.evaluate_epoch(wanted(PRUNE, 2, run_id, blueprint="norm"))
    assert (pruned.kind, pruned.operation.op) == (Kind.SEED, PRUNE)
    cooling = [told(controller.evaluate_epoch(wanted(GERMINATE, epoch, run_id))) for epoch in range(3, 7)]
    assert cooling == [(Kind.PAUSE, Reason.CONSERVATIVE_MODE)] * 4
    after = [controller.evaluate_epoch(wanted(GERMINATE, epoch, run_id)) for epoch in (7, 8)]
    assert told(after[1]) == (Kind.SEED, Reason.POLICY)
    _, stored = of(controller, directory, run_id)
    assert not RunState.model_validate_json(stored.memory).mode.is_on
