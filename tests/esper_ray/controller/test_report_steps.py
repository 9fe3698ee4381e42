"""What a learner makes of decisions and reports: scores, rewards, risks, and what was decided."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import split_mask
from envs.vocabulary import LifecycleOp, SeedStage
from esper_ray.bus.streams import Stream
from esper_ray.controller.commands import Kind
from esper_ray.controller.envelope import seal
from esper_ray.controller.learner.experience_store import Told
from esper_ray.controller.learner.report_risk import risk_of
from esper_ray.controller.learner.score import ScoreTerms, score_terms
from esper_ray.controller.learner.steps import check_readable, chosen, stretches_of
from esper_ray.controller.reports.field_report import ReportOutcome
from policies.distribution import ActionTables
from policies.strategic.graph import GraphArrays, GraphBatch
from policies.strategic.labels import RISES, UNKNOWN_RISK
from policies.strategic.messages import SeedState
from policies.strategic.schema import RISK_CLASSES
from tests.esper_ray.controller.field import EXTRA, HOST, Field, experience, packet, policy
from tests.esper_ray.controller.sealing import NOW, RING
from tests.policies.strategic.states import SLOTS, chain, changed, seed

torch.set_num_threads(1)
RENT, PATH = 0.03, 0.05


@pytest.fixture(scope="module")
def checkpoint():
    return policy()


@pytest.fixture(scope="module")
def field(checkpoint):
    return Field(checkpoint)


def told(experiences, new=True):
    """As the store gives a run."""
    return [
        Told(at, of.decision, of.report, score_terms(check_readable(of.decision)), new)
        for at, of in enumerate(experiences)
    ]


def stretches(experiences, checkpoint, rent=RENT, path=PATH):
    return [*stretches_of(told(experiences), checkpoint, rent, path)]


# ---------------------------------------------------------------------- score and reward
def parameters(count):
    graph = chain()
    return changed(graph, parameters=changed(graph.parameters, count=(count,)))


def test_the_score_of_a_packet_by_hand():
    # 80 % with one living seed of 234 parameters in a host of 1000: 0.8 − 0.03·log2(1.234) − 0.05.
    terms = score_terms(packet(3, accuracy=80.0, graph=parameters(HOST + EXTRA)))
    assert terms == ScoreTerms(accuracy=80.0, living=1, extra=EXTRA, host=HOST)
    assert terms.score(RENT, PATH) == pytest.approx(0.8 - 0.03 * math.log2(1.234) - 0.05)


def test_a_host_without_seeds_has_no_rent_to_pay_whatever_is_known_of_it():
    empty = tuple(SeedState(slot=slot, stage=SeedStage.DORMANT) for slot in SLOTS.slot_ids)
    terms = score_terms(packet(3, accuracy=80.0, seeds=empty, budgets=None, graph=parameters(None)))
    assert terms == ScoreTerms(80.0, 0, 0, None)
    assert terms.score(RENT, PATH) == 0.8


@pytest.mark.parametrize(
    "unknown", [{"validation_accuracy": None}, {"budgets": None}, {"observation": None}, {"graph": parameters(None)}]
)
def test_what_is_not_measured_gives_no_score(unknown):
    assert score_terms(packet(3, **unknown)).score(RENT, PATH) is None


def test_a_seed_that_is_not_trained_yet_is_not_in_the_optimiser():
    waiting, trained = seed("a", SeedStage.GERMINATED), seed("b", SeedStage.TRAINING)
    empty = SeedState(slot="c", stage=SeedStage.DORMANT)
    both = [score_terms(packet(3, seeds=of)) for of in ((waiting, empty), (trained, empty), (waiting, trained))]
    assert [of.host for of in both] == [HOST + EXTRA, HOST, None]
    assert [of.extra for of in both] == [EXTRA] * 3


def test_a_reward_is_the_score_after_less_the_score_before(field, checkpoint):
    run = field.play(epochs=4)
    (stretch,) = stretches(run, checkpoint)
    assert [step.reward for step in stretch.steps] == pytest.approx([0.01] * 3)  # one point each, and the same seeds
    assert not stretch.terminated


def test_a_gap_a_missing_score_or_a_later_packet_ends_a_stretch(field, checkpoint):
    run = field.play(epochs=8)
    unscored = changed(run[5].decision, packet=packet(5, None).model_dump_json().encode())
    parts = stretches([*run[:2], run[3], run[4], experience(unscored), run[6], run[7]], checkpoint)
    assert [[step.sequence for step in part.steps] for part in parts] == [[0], [2], [5]]


def test_the_last_packet_of_a_run_ends_it_for_good(field, checkpoint):
    run = field.play(epochs=3)
    last, _, _ = field.decide(packet(3, 43.0, max_epochs=3), None)
    (stretch,) = stretches([*run, experience(last)], checkpoint)
    assert stretch.terminated
    assert stretch.part(1, 3).terminated
    assert not stretch.part(0, 2).terminated
    assert stretch.part(0, 2).end is stretch.steps[2].graph


# ---------------------------------------------------------------------- what was decided
def admitted(step):
    views = split_mask(step.graph.action_mask[0], SLOTS.heads)
    return [LifecycleOp(op) for op in views["op"].nonzero().squeeze(-1).tolist()]


@pytest.mark.parametrize("kind", [Kind.PAUSE, Kind.OPTIMIZER, Kind.CIRCUIT_BREAKER])
def test_a_vetoed_step_admits_only_to_wait_and_keeps_its_reward(kind, field, checkpoint):
    (stretch,) = stretches(field.play(epochs=4, kinds={1: kind}), checkpoint)
    first, vetoed, after = stretch.steps
    assert [step.decided for step in stretch.steps] == [True, False, True]
    assert admitted(vetoed) == [LifecycleOp.WAIT]
    assert len(admitted(first)) == len(admitted(after)) == len(SLOTS.ops)
    assert vetoed.action == (0,) * 8
    assert vetoed.log_probs == (0.0, 0.0)
    assert vetoed.reward == pytest.approx(0.01)


def test_what_the_run_did_not_do_was_not_decided(field, checkpoint):
    (stretch,) = stretches(field.play(epochs=4, ignored={2}), checkpoint)
    assert [step.decided for step in stretch.steps] == [True, True, False]


@pytest.mark.parametrize("applied", [False, None])
def test_a_command_that_is_not_known_to_be_applied_decided_nothing(applied, field, checkpoint):
    (stretch,) = stretches(field.play(epochs=2, applied=applied), checkpoint)
    assert [step.decided for step in stretch.steps] == [False]
    (stretch,) = stretches(field.play(epochs=2), checkpoint)
    assert [step.decided for step in stretch.steps] == [True]


def test_a_command_that_travelled_in_an_envelope_is_the_command(field, checkpoint):
    bare = field.play(epochs=6, kinds={3: Kind.PAUSE})
    sent = []
    for of in bare:
        envelope = seal(RING.signing, Stream.COMMANDS, of.decision.run_id, of.decision.command, NOW)
        sent.append(experience(changed(of.decision, command=envelope.content)))

    def learnt(run):
        (stretch,) = stretches(run, checkpoint)
        return [(step.action, step.log_probs, step.decided, step.reward) for step in stretch.steps]

    assert learnt(sent) == learnt(bare)


def test_an_epoch_without_an_answer_of_the_policy_decided_nothing(field, checkpoint):
    run = field.play(epochs=2)
    silent = changed(run[0].decision, action=None, log_prob=None, proposal=None)
    (stretch,) = stretches([experience(silent), run[1]], checkpoint)
    assert not stretch.steps[0].decided


def test_a_policy_that_has_not_changed_says_of_every_decision_what_it_said_then(field, checkpoint):
    """Graphs, masks, the run's own scale and the temperature are those of the field."""
    (stretch,) = stretches(field.play(epochs=12), checkpoint)
    graphs = GraphBatch.from_arrays(GraphArrays.together([step.graph for step in stretch.steps]))
    with torch.no_grad():
        result = checkpoint.network()(graphs, ActionTables(SLOTS.heads))
    actions = torch.tensor([step.action for step in stretch.steps])
    log_probs = result.distribution.at_temperature(checkpoint.play_temperature).log_prob(actions)
    said = torch.tensor([step.log_probs for step in stretch.steps])
    torch.testing.assert_close(log_probs[:, 0], said[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_probs[:, 1:].sum(dim=1), said[:, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"packet": b"{}"},
        {"packet": packet(7).model_dump_json().encode()},
        {"command": b"{}"},
        {"mask": (1, 0)},
        {"action": (0,) * 7},
        {"action": (9,) + (0,) * 7},
        {"proposal": None},
        {"log_prob": None},
    ],
)
def test_what_cannot_be_learnt_from_is_refused(wrong, field):
    decision = field.play(epochs=1)[0].decision
    check_readable(decision)
    with pytest.raises(ValueError):  # noqa: PT011 - of pydantic, or ours
        check_readable(changed(decision, **wrong))


# ---------------------------------------------------------------------- what an update learns from
def test_all_that_is_new_is_chosen_then_the_latest_of_the_rest(field, checkpoint):
    (new,) = stretches(field.play("new", epochs=7), checkpoint)
    (old,) = stretches_of(told(field.play("old", epochs=6), new=False), checkpoint, RENT, PATH)
    run = field.play("half", epochs=6)
    (half,) = stretches_of([*told(run[:3], new=False), *told(run)[3:]], checkpoint, RENT, PATH)
    assert [len(of) for of in chosen([new, half], [old], 100)] == [6, 2, 5]
    found = chosen([new, half], [old], 10)
    assert [(of.run_id, len(of)) for of in found] == [("new", 6), ("half", 2), ("old", 2)]
    assert found[-1].steps == old.steps[-2:]
    (some,) = chosen([new, half], [old], 4)
    assert some.steps == new.steps[:4]
    assert some.end is new.steps[4].graph
    assert chosen([], [old], 2)[0].steps == old.steps[-2:]


# ---------------------------------------------------------------------- risk
def risk(outcome, rise=None, excess=0.0, noise=0.1):
    report = experience(some_decision(), outcome=outcome, loss_delta_sum=rise, excess=excess, noise=noise).report
    found = risk_of(report)
    return None if found == UNKNOWN_RISK else RISK_CLASSES[found]


@functools.cache
def some_decision():
    return Field(policy()).play(epochs=1)[0].decision


def test_outcomes_are_classes_of_risk_by_the_limits_of_recorded_episodes():
    assert risk(ReportOutcome.SUCCESS, -1.0) == "SAFE"
    assert [risk(ReportOutcome.NEUTRAL, rise) for rise in (0.02, 0.021, 0.076, 0.151)] == [
        "SAFE",
        "LOW",
        "MODERATE",
        "HIGH",
    ]
    assert risk(ReportOutcome.REGRESSION, -0.1, excess=0.2) == "SAFE", "the loss fell, and less than before"
    assert risk(ReportOutcome.REGRESSION, 0.2, excess=0.2) == "HIGH"
    assert risk(ReportOutcome.REGRESSION, 0.0, excess=0.0) == "CRITICAL", "no loss shows why"
    assert risk(ReportOutcome.REGRESSION, None, excess=None) == "CRITICAL"
    assert risk(ReportOutcome.ABORTED, 1.0) is None
    assert risk(ReportOutcome.NEUTRAL, None) is None


@given(st.floats(-2.0, 2.0))
def test_a_rise_has_the_class_that_labels_give_it(rise):
    expected = int(torch.bucketize(torch.tensor(rise, dtype=torch.float64), torch.tensor(RISES, dtype=torch.float64)))
    assert risk(ReportOutcome.NEUTRAL, rise) == RISK_CLASSES[expected]
