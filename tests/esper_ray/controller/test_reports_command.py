"""``esper-ray reports``: what decisions led to, and parked reports put back, beside a service at work."""

import random

import pytest

from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import Role, Stream
from esper_ray.cli import parse
from esper_ray.controller.reports.delivery import DeliveryConfig, ReportDelivery
from esper_ray.controller.reports.outbox import DeliveryState
from esper_ray.controller.store import Store
from esper_ray.errors import UserError
from esper_ray.terminal import output
from tests.esper_ray.controller.evaluations import GERMINATE
from tests.esper_ray.controller.reporting import FALLING, found, record, reported, seen
from tests.esper_ray.controller.sealing import RING
from tests.esper_ray.controller.test_store import refusal


def said(capsys, directory, *words):
    parse(["reports", *map(str, words), "--directory", str(directory)]).run(output())
    return capsys.readouterr().out


def parked(store):
    """Send what is due, in vain."""
    bus = InProcessBus()
    bus.join(Stream.REPORTS, Role.LEARNER)
    later = ReportDelivery(
        store,
        bus,
        lambda: RING,
        config=DeliveryConfig(attempts=1, longest_wait_s=1e-3),
        draw=random.Random(0),
    )
    while store and found(store._path.parent, DeliveryState.PENDING):
        later.step()


def test_reports_are_listed_shown_and_put_back_beside_the_service(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    with Store(tmp_path) as store:
        for epoch, loss in enumerate((*FALLING, 0.2, 0.1, 0.0, 0.0)):
            record(store, seen(epoch, loss, operation=GERMINATE if epoch == 5 else None))
        reported(store, 1, run_id="another run")
        listed = said(capsys, tmp_path, "list")
        ids = found(tmp_path)
        assert len(ids) == 8
        assert all(report_id in listed for report_id in ids)
        assert "GERMINATE NORM stem" in listed
        assert "success" in listed
        assert "pending, sent 0 times" in listed
        of_run = said(capsys, tmp_path, "list", "--run-id", "another run")
        assert sum(report_id in of_run for report_id in ids) == 1
        report_id = next(key for key, entry in ids.items() if entry.report.op is not None)
        shown = said(capsys, tmp_path, "show", report_id)
        for word in (
            str(ids[report_id].report.command_id),
            "excess",
            "-1.04",
            "noise",
            "0.379473",
            "decision",
            "row 6",
        ):
            assert word in shown
        parked(store)
        assert "nobody has acknowledged it" in said(capsys, tmp_path, "list", "--state", "parked")
        assert "1 put back" in said(capsys, tmp_path, "requeue", report_id)
        assert "7 put back" in said(capsys, tmp_path, "requeue")
        assert "no report is parked" in said(capsys, tmp_path, "requeue")
        with InProcessBus() as bus:
            bus.join(Stream.REPORTS, Role.LEARNER)
            ReportDelivery(store, bus, lambda: RING).step()
            assert len(bus.receive(Stream.REPORTS, Role.LEARNER, "learner")) == 8


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("show",), "show which report?"),
        (("show", "00000000-0000-0000-0000-000000000000"), "there is no report 00000000"),
        (("show", "seven"), "a report has an id such as 00000000-0000-0000-0000-000000000000, got 'seven'"),
        (("requeue", "00000000-0000-0000-0000-000000000000"), "it has gone, or never was"),
        (("requeue", "--state", "parked"), "are for esper-ray reports list"),
        (("list", "some-report"), "to see one report: esper-ray reports show some-report"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path, words, why):
    Store(tmp_path).close()
    command = parse(["reports", *words, "--directory", str(tmp_path)])
    with pytest.raises(UserError) as refused:
        command.run(output())
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_controller_there_are_no_reports(tmp_path):
    assert "holds no decisions" in refusal(
        lambda: parse(["reports", "list", "--directory", str(tmp_path / "none")]).run(output())
    )
