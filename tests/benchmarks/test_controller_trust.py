"""The figures of reports, bad envelopes and kills, with small counts; ``benchmarks.controller`` takes them in full."""

from random import Random

from benchmarks import controller_trust
from benchmarks.controller_trust import NOTES, WITHOUT_REDIS, Attackable, TrustCounts, deliver_reports, trust
from benchmarks.forging import bad_envelopes
from benchmarks.harness import Report
from esper_ray.bus.streams import Stream
from esper_ray.controller.envelope import seal
from esper_ray.controller.updates.policy_update import PolicyUpdate, UpdateHead
from tests.esper_ray.bus.servers import needs_redis
from tests.esper_ray.controller.reporting import seen
from tests.esper_ray.controller.sealing import NOW, RING
from tests.esper_ray.controller.test_attending import UNHURRIED
from tests.esper_ray.controller.updating import Here

COUNTS = TrustCounts(reports=20, latencies=2, redis_deaths=1, learner_deaths=0, bad_envelopes=300, kills=1)
PACKETS = [seen(epoch, 2.0 - 0.1 * epoch, max_epochs=30).packet for epoch in range(8)]
UPDATES = tuple(PolicyUpdate(head=UpdateHead(version=number, manifest="{}"), weights=b"w") for number in (1, 2))
ATTACKABLE = Attackable("heuristic", UPDATES, UNHURRIED)


@needs_redis
def test_nothing_is_lost_forged_or_taken_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("esper_ray.controller.service.IsolatedPolicy", lambda name, **_: Here(name))  # starts at once
    report = trust(tmp_path, COUNTS, PACKETS, ATTACKABLE)
    found = report.headline
    assert found["reports_written"] > COUNTS.reports + COUNTS.latencies
    assert (found["reports_lost"], found["reports_twice"]) == (0, 0)
    assert (found["bad_envelopes"], found["bad_envelopes_accepted"], found["kills"]) == (300, 0, 1)
    assert 0.0 < found["report_latency_p50_ms"] <= found["report_latency_p95_ms"]
    assert found["reports_per_s"] > 0.0
    assert found["redis_recovery_s"] > 0.0
    assert all(len(row) == len(table.header) for table in report.tables for row in table.rows)
    assert report.notes == list(NOTES), "each end took a good envelope afterwards"


def test_without_a_server_it_says_so_and_leaves_its_figures_out(tmp_path, monkeypatch):
    monkeypatch.setattr(controller_trust, "REDIS_SERVER", None)
    report = Report("controller.trust")
    deliver_reports(report, tmp_path, COUNTS, PACKETS)
    assert report.headline.keys() == {"reports_written", "reports_per_s"}
    assert report.headline["reports_written"] == COUNTS.reports
    assert report.notes == [WITHOUT_REDIS]


def test_bad_envelopes_are_none_of_the_good_ones_and_of_many_kinds():
    good = [seal(RING.signing, Stream.ACKS, "run", payload, NOW).content for payload in (b"one", b"another")]
    bad = bad_envelopes(Random(0), RING.signing, good)
    drawn = [next(bad) for _ in range(200)]
    assert not {*good} & {*drawn}
    assert len({*drawn}) > 100
