"""A shadow run: a candidate answers what the live policy was asked, in a process of its own, and nobody obeys."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from esper_ray.controller.isolated_policy import IsolatedPolicy
from esper_ray.controller.proposals import Ending, Request, draw_seed
from esper_ray.controller.records import Record, Records
from esper_ray.controller.trial import TRIAL_SECONDS
from esper_ray.controller.updates.verdicts import UpdateReason, UpdateRejected
from esper_ray.errors import UserError

SNAPSHOTS = 32
"""Packets that a candidate is asked about."""
REFERENCE_FILE = "reference_packets.json.gz"
LATE_SHARE = 0.05
"""Of the answers that may be late: what a busy machine does to any policy."""


@dataclass(frozen=True)
class Snapshot:
    """What a policy was asked, or could have been.

    Attributes:
        run_id: Of the packet.
        packet_id: Of the packet.
        packet: As JSON.
        mask: What was admitted, in place of the packet's own; None leaves that.
    """

    run_id: str
    packet_id: str
    packet: bytes
    mask: tuple[int, ...] | None = None


def reference_snapshots() -> list[Snapshot]:
    """Packets of real hosts that ship with the library (:mod:`esper_ray.controller.reference_packets`)."""
    place = importlib.resources.files("esper_ray.controller.updates") / REFERENCE_FILE
    packets = json.loads(gzip.decompress(place.read_bytes()))
    return [Snapshot(one["run_id"], one["packet_id"], json.dumps(one).encode()) for one in packets]


def latest_snapshots(records: Records, count: int) -> list[Snapshot]:
    """The last packets on which a policy has answered, in their order; records that cannot be read are left out.

    Raises:
        StoreFailed: not even which there are.
    """
    decisions = [record.decision for record in records.answered(count) if isinstance(record, Record)]
    return [Snapshot(one.run_id, one.packet_id, one.packet, one.mask) for one in reversed(decisions)]


def snapshots_of(records: Records, count: int = SNAPSHOTS) -> list[Snapshot]:
    """What a candidate is asked: the last packets that were judged, and reference packets where those are too few.

    Raises:
        StoreFailed: not even which there are.
    """
    latest = latest_snapshots(records, count)
    return [*reference_snapshots()[: count - len(latest)], *latest]


def shadow_run(
    candidate: IsolatedPolicy,
    snapshots: Sequence[Snapshot],
    deadline_s: float,
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Ask a candidate, as the live policy is asked: each run's packets in their order, with what it remembers itself.

    Args:
        candidate: A policy that decides nothing yet.
        snapshots: To ask about.
        deadline_s: Within which its answers would count.
        now: Seconds.

    Raises:
        UpdateRejected: it did not start, or an answer is none, or too many are late.
    """
    try:
        candidate.wait_ready()
    except UserError as error:
        raise UpdateRejected(UpdateReason.SHADOW_FAILED, str(error)) from error
    times = sorted(_answered(candidate, snapshots, max(deadline_s, TRIAL_SECONDS), now))
    slow = times[len(times) - 1 - int(LATE_SHARE * len(times))]
    if slow > deadline_s:
        detail = f"it takes {1e3 * slow:.0f} ms (p95 of {len(times)} packets), and may take {1e3 * deadline_s:.0f}"
        raise UpdateRejected(UpdateReason.SHADOW_LATE, detail)


def _answered(
    candidate: IsolatedPolicy, snapshots: Sequence[Snapshot], patience_s: float, now: Callable[[], float]
) -> Iterator[float]:
    """How long each answer takes, seconds."""
    hidden: dict[str, bytes | None] = {}
    for shot in snapshots:
        seed = draw_seed(shot.run_id, shot.packet_id)
        request = Request(shot.packet, seed, hidden.get(shot.run_id), shot.mask)
        began = now()
        reply = candidate.ask(request, patience_s)
        yield now() - began
        if reply.proposal is None:
            reason = UpdateReason.SHADOW_LATE if reply.ending is Ending.TIMEOUT else UpdateReason.SHADOW_FAILED
            raise UpdateRejected(reason, f"packet {shot.packet_id} of {shot.run_id}: {reply.ending}: {reply.reason}")
        hidden[shot.run_id] = reply.proposal.hidden
