"""What a controller writes and sends of its decisions, and whether anything of that is lost, forged or taken twice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.bad_envelopes import Attacked, attack_reports, attack_service
from benchmarks.field_writer import FieldWriter
from benchmarks.harness import Report, Table
from benchmarks.killing import kills
from benchmarks.redis_server import REDIS_SERVER
from benchmarks.report_delivery import DOWN_SECONDS, Delivered, Way, deliver
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.key_file import KEY_FILE, CurrentKeys, write_key_file
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.store import Store
from esper_ray.controller.updates.policy_update import PolicyUpdate
from policies.strategic.messages import SystemState

ENDS = 6
"""That are attacked."""

NOTES = (
    "A durable report is timed with the decision that closes its window: judged, signed, and committed with its "
    "packet, the head of the chain on the disk; no policy is asked. Those that waited were there when delivery began.",
    "Reports go over a redis-server of their own on the loopback (appendonly, appendfsync always) to a process that "
    "commits each and then acknowledges it, signed, as a learner does. A latency is from a report's commit to that of "
    "its acknowledgement, one report at a time; the sender looks for what is new ten times a second. The server and "
    "that process are killed with SIGKILL while reports are written. The server is away for "
    f"{DOWN_SECONDS:g} s, and what is timed begins when it answers again. A report is lost if it had no effect in the "
    "end, or if that is not on record where it came from.",
    "A bad envelope is a real one that was changed (bits, fields, borders, lengths), has a stranger's signature or "
    "none, or is signed well and of another kind, for another run, too old or from the future. Accepted is what an end "
    "did not refuse, and what changed anything there. Each end took a good one afterwards, unless a note says "
    "otherwise.",
    "Kills are of a process that records decisions as fast as it can, with SIGKILL at drawn moments. After each its "
    "store was whole and held every decision that the process had told of, or the benchmark would have ended there.",
)
WITHOUT_REDIS = "redis-server is not installed: delivery was not measured."


@dataclass(frozen=True)
class TrustCounts:
    """How much of what is written and sent."""

    reports: int = 1000
    """Reports whose writing is timed, and that wait for delivery."""
    latencies: int = 200
    """Reports whose delivery is timed one by one."""
    redis_deaths: int = 5
    """Of the server, at least one."""
    learner_deaths: int = 5
    """Of who takes reports."""
    bad_envelopes: int = 12_000
    """Sent to all ends together."""
    kills: int = 50
    """Of a process that records."""


@dataclass(frozen=True)
class Attackable:
    """Who decides while bad envelopes come.

    Attributes:
        policy: That decides.
        updates: At least two of it.
        config: Of the service.
    """

    policy: str
    updates: tuple[PolicyUpdate, ...]
    config: ControllerConfig


def trust(place: Path, counts: TrustCounts, packets: Sequence[SystemState], attackable: Attackable) -> Report:
    """Measure.

    Args:
        place: An empty directory.
        counts: How much.
        packets: Of one run, with validation losses.
        attackable: Who is attacked.

    Returns:
        Headline, tables and notes.
    """
    report = Report("controller.trust", notes=list(NOTES))
    for name in ("delivery", "attack", "kills"):
        (place / name).mkdir()
    deliver_reports(report, place / "delivery", counts, packets)
    _attack(report, place / "attack", counts.bad_envelopes, packets, attackable)
    told = kills(place / "kills", counts.kills)
    report.headline["kills"] = counts.kills
    report.tables.append(Table("SIGKILLs over the store", ("kills", "decisions told"), [_cells(counts.kills, told)]))
    return report


def deliver_reports(report: Report, place: Path, counts: TrustCounts, packets: Sequence[SystemState]) -> None:
    """How fast field reports are written, and how they are delivered, where there is a redis-server.

    Args:
        report: What is found is added to.
        place: As for :func:`trust`.
        counts: Likewise.
        packets: Likewise.
    """
    key_file, state = place / KEY_FILE.name, place / "state"
    write_key_file(key_file, KeyRing.first(time.time_ns()))
    keys = CurrentKeys(key_file, {})
    with Store(state) as store:
        writer, seconds = FieldWriter(store, keys, packets), list[float]()
        while writer.reports < counts.reports:
            took = writer.write()
            if writer.reports:
                seconds.append(took)
        rate, times = len(seconds) / sum(seconds), _percentiles(seconds)
        report.headline |= {"reports_written": writer.reports, "reports_per_s": round(rate, 1)}
        rows: list[tuple[str, ...]] = [("written with their decisions", str(len(seconds)), f"{rate:.1f}", *times)]
        if REDIS_SERVER is None:
            report.notes.append(WITHOUT_REDIS)
        else:
            with closing(Way(place, store, state, key_file, writer, seed=0)) as way:
                found = deliver(way, counts.latencies, counts.redis_deaths, counts.learner_deaths)
            rows += [
                ("that waited, delivered", str(len(seconds)), f"{found.backlog_rate:.1f}", "", "", ""),
                ("delivered one by one", str(len(found.latencies)), "", *_percentiles(found.latencies)),
            ]
            _tell_deaths(report, found, counts.learner_deaths)
    header = ("reports", "number", "per second", "p50, ms", "p95, ms", "p99, ms")
    report.tables.insert(0, Table("Field reports", header, rows))


def _tell_deaths(report: Report, found: Delivered, learner_deaths: int) -> None:
    p50, p95, _ = _percentiles(found.latencies)
    report.headline |= {
        "reports_written": found.written,
        "reports_lost": found.lost,
        "reports_twice": found.twice,
        "report_latency_p50_ms": float(p50),
        "report_latency_p95_ms": float(p95),
        "redis_recovery_s": round(statistics.median(found.recoveries), 2),
    }
    rows = [
        (name, *(f"{of(seconds):.2f}" for of in (min, statistics.median, max)))
        for name, seconds in (
            ("the next report is delivered", found.recoveries),
            ("all are", found.catching_up),
        )
    ]
    report.tables.append(Table("From a killed server's return until", ("", "least, s", "median", "most"), rows))
    counted = _cells(found.written, found.lost, found.twice, len(found.recoveries), learner_deaths)
    header = ("written", "lost", "taken twice", "deaths of the server", "of the learner")
    report.tables.append(Table("Reports in all", header, [counted]))


def _attack(report: Report, place: Path, number: int, packets: Sequence[SystemState], attackable: Attackable) -> None:
    ring, draw, each = KeyRing.first(time.time_ns()), Random(0), -(-number // ENDS)
    (reports := place / "reports").mkdir()
    attacked: list[Attacked] = [
        *attack_service(
            attackable.policy, place / "service", ring, packets, attackable.updates, each, draw, attackable.config
        ),
        *attack_reports(reports, ring, packets, each, draw),
    ]
    assert len(attacked) == ENDS
    rows = [(f"{one.stream}, at the {one.end}", *_cells(one.sent, one.accepted)) for one in attacked]
    report.tables.append(Table("Bad envelopes", ("stream", "sent", "accepted"), rows))
    report.headline |= {
        "bad_envelopes": sum(one.sent for one in attacked),
        "bad_envelopes_accepted": sum(one.accepted for one in attacked),
    }
    report.notes += [f"{one.end} took no good {one.stream} afterwards." for one in attacked if not one.believes]


def _percentiles(seconds: Sequence[float]) -> tuple[str, str, str]:
    """p50, p95 and p99, milliseconds."""
    p50, p95, p99 = (f"{1e3 * value:.1f}" for value in np.percentile(seconds, (50, 95, 99)))
    return p50, p95, p99


def _cells(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number:,}" for number in numbers)
