"""Reports and updates come out of their bytes as they went in."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.controller.records import Decision
from esper_ray.controller.reports.field_report import Experience, FieldReport, ReportOutcome
from esper_ray.controller.updates.policy_update import PolicyUpdate, UpdateHead


def experience(**more: object) -> Experience:
    decision = {
        "run_id": "a run",
        "packet_id": "p-1",
        "epoch": 3,
        "command_id": str(uuid4()),
        "decided_at_ns": 1,
        "level": "green",
        "policy_version": "heuristic",
        "action": (1, 0, 2, 0, 0, 0, 0, 0),
        "log_prob": -0.5,
        "proposal": b'{"a": 1}',
        "mask": (1, 1, 0),
        "signals": b"[]",
        "breakers": b"{}",
        "command": b"\x00\xff",
        "packet": b"{}",
    } | more
    report = FieldReport(
        report_id=uuid4(),
        command_id=UUID(str(decision["command_id"])),
        run_id="a run",
        epoch=3,
        op=LifecycleOp.GERMINATE,
        slot="r0c0",
        blueprint=Blueprint.LORA,
        outcome=ReportOutcome.SUCCESS,
        window_epochs=3,
        seen_epochs=3,
    )
    return Experience(report=report, decision=Decision.model_validate(decision))


@given(st.one_of(st.none(), st.binary(min_size=1)), st.binary(), st.binary(), st.one_of(st.none(), st.just((1, 0))))
def test_a_report_comes_out_as_it_went_in(
    proposal: bytes | None, signals: bytes, packet: bytes, mask: tuple[int, ...] | None
) -> None:
    told = experience(proposal=proposal, signals=signals, packet=packet, mask=mask)
    assert Experience.of(told.framed()) == told


@given(st.integers(1, 2**40), st.text(max_size=50), st.binary())
def test_an_update_comes_out_as_it_went_in(version: int, manifest: str, weights: bytes) -> None:
    update = PolicyUpdate(head=UpdateHead(version=version, manifest=manifest), weights=weights)
    assert PolicyUpdate.of(update.framed()) == update


@given(st.binary())
def test_what_is_neither_is_refused(content: bytes) -> None:
    for kind in (Experience, PolicyUpdate):
        with pytest.raises(ValueError):  # noqa: PT011 - of any kind
            kind.of(content)


def test_a_report_about_another_decision_is_refused() -> None:
    ours, theirs = experience(), experience()
    mixed = Experience(report=ours.report, decision=theirs.decision)
    with pytest.raises(ValueError, match="another decision"):
        Experience.of(mixed.framed())
