"""Every protection needs what its row says that it needs, and nothing else."""

from dataclasses import replace

import pytest

from esper_ray.controller.assessment import assess
from esper_ray.controller.signals import APPLY, COVERED, HOOK, NEEDS, RISK, SEEDS, SHEETS, STEP, TABLE
from policies.strategic.messages import KEYS
from policies.strategic.packet_values import METRICS
from tests.esper_ray.controller.test_risk import ADDING, BEFORE, CONFIG, FIRING, case, fired

NEEDED = {name for row in TABLE for group in row.needs for name in group}
ALL = NEEDED | {f"metrics.{name}" for name in METRICS}
IN_CASES = {RISK: "expected_risk", COVERED: "coverage"}
IN_LATENCIES = {HOOK: "hook", STEP: "step", APPLY: "apply"}


def without(judged, names):
    """The case as it is where nobody measures these."""
    packet = judged.packet
    for name in names:
        kind, _, field = name.partition(".")
        if name == SEEDS:
            packet = packet.model_copy(update={"seeds": ()})
        elif name in IN_CASES:
            judged = replace(judged, **{IN_CASES[name]: None})
        elif name in IN_LATENCIES:
            judged = replace(judged, latencies=replace(judged.latencies, **{IN_LATENCIES[name]: None}))
        elif name == SHEETS:
            judged = replace(judged, sheets={})
        elif kind == "metrics":
            metrics = {metric: value for metric, value in packet.metrics.items() if metric != field}
            packet = packet.model_copy(update={"metrics": metrics})
        elif kind == "seeds":
            seeds = tuple(seed.model_copy(update={field: None}) for seed in packet.seeds)
            packet = packet.model_copy(update={"seeds": seeds})
        else:
            assert kind == "run"
            packet = packet.model_copy(update={field: None})
    return replace(judged, packet=packet)


def test_needs_are_keys_or_stand_beside_the_packet():
    assert {*KEYS, *NEEDS} >= NEEDED >= set(NEEDS)


@pytest.mark.parametrize(("what", "part"), FIRING.items(), ids=[f"{r}-{s.name}" for r, s in FIRING])
def test_without_what_it_needs_a_signal_is_silent_and_it_needs_no_more(what, part):
    (row,) = [row for row in TABLE if row.reason is what[0]]
    judged = case(part, op=ADDING)
    for group in row.needs:
        found = assess(BEFORE, without(judged, group), CONFIG)
        assert row.reason not in {reason for reason, _ in fired(found)}, group
    needed = {name for group in row.needs for name in group}
    assert what in fired(assess(BEFORE, without(judged, ALL - needed), CONFIG))
