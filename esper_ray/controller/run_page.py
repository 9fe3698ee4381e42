"""The page of a run in TensorBoard: its level, the signals that fired and what was decided, over its epochs."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary as summaries

from esper_ray.controller import telemetry
from esper_ray.controller.telemetry import Form, Item, Reading, Route

DIRECTORY = "tensorboard"
"""Of all runs, in the directory of a service."""
MOST_OPEN = 16
"""Files that are open: those of the runs that were heard of last. Another one begins where a run is heard of again."""
LAYOUT: dict[str, tuple[str, tuple[Item, ...]]] = {
    "level: 0 is Green, 4 Critical": ("Level", (telemetry.RISK_LEVEL,)),
    "combined score, and the risk that the policy expects": (
        "Level",
        (telemetry.RISK_SCORE, telemetry.EXPECTED_RISK),
    ),
    "conservative mode": ("Level", (telemetry.CONSERVATIVE,)),
    "1 WARNING, 2 HIGH, 3 CRITICAL, by reason": ("Signals", (telemetry.SIGNAL,)),
    "coverage": ("Signals", (telemetry.FEATURE_COVERAGE,)),
    "validation loss": ("Signals", (telemetry.VALIDATION_LOSS,)),
    "kind: " + ", ".join(f"{at} {kind}" for at, kind in enumerate(telemetry.COMMAND_KIND.choices)): (
        "Decisions",
        (telemetry.COMMAND_KIND,),
    ),
    "op: " + ", ".join(f"{at} {op}" for at, op in enumerate(telemetry.COMMAND_OP.choices)): (
        "Decisions",
        (telemetry.COMMAND_OP,),
    ),
    "milliseconds to infer, to evaluate and to apply": (
        "Decisions",
        (telemetry.INFERENCE_MS, telemetry.EVALUATE_MS, telemetry.APPLY_MS),
    ),
}
"""Charts of the Custom Scalars page: title → category, and what it shows."""


class RunPages:
    """Writes a directory per run, which ``tensorboard --logdir`` shows. It writes by itself, without a thread.

    Args:
        directory: Of all runs.
    """

    route = Route.TENSORBOARD

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pages: dict[str, _Page] = {}

    def take(self, reading: Reading) -> None:
        """Write it.

        Raises:
            OSError: it cannot be written.
        """
        page = self._pages.pop(reading.run_id, None) or _Page(self._directory / directory_name(reading.run_id))
        self._pages[reading.run_id] = page  # the last one now
        if len(self._pages) > MOST_OPEN:
            self._pages.pop(next(iter(self._pages))).close()
        page.write(reading)

    def close(self) -> None:
        """Close all files."""
        for page in self._pages.values():
            page.close()


def directory_name(run_id: str) -> str:
    """Of a run's page, which no two runs share: the id where it can be one, else what is left of it and a digest.

    What is the service's own has one that no run can have, as there is a dot in it.
    """
    if not run_id:
        return "service.own"
    left = re.sub(r"[^\w+=@-]", "_", run_id, flags=re.ASCII)[:100]
    return run_id if left == run_id else f"{left}.{hashlib.sha256(run_id.encode()).hexdigest()[:8]}"


class _Page:
    """The event file of a run."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = (directory / name).open("xb")
        self._records = RecordWriter(self._file)
        self._epoch: int | None = None
        self._add(Event(file_version="brain.Event:2", wall_time=now))
        self._add(Event(summary=_layout(), wall_time=now))

    def write(self, reading: Reading) -> None:
        """One value. After a return to an earlier epoch, TensorBoard hides what was written from there on."""
        seconds = reading.time_ns / 1e9
        if self._epoch is None or reading.epoch < self._epoch:
            session = SessionLog(status=SessionLog.START)
            self._add(Event(session_log=session, step=reading.epoch, wall_time=seconds))
        self._epoch = reading.epoch
        summary = _summary(reading)
        if summary is not None:
            self._add(Event(summary=summary, step=reading.epoch, wall_time=seconds))

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def tag_of(item: Item, part: str = "") -> str:
    """Of a value in TensorBoard: its name with slashes, which it groups by."""
    return "/".join([*item.name.split("."), *([part] if part else [])])


def _summary(reading: Reading) -> Any:
    tag = tag_of(reading.item, reading.part)
    if reading.item.form in (Form.TEXT, Form.EVENT):
        return summaries.text(tag, f"{reading.severity.name}: {reading.value}")
    number = reading.number
    return None if number is None else summaries.scalar(tag, number)


def _layout() -> Any:
    charts: dict[str, dict[str, Any]] = {}
    for title, (category, items) in LAYOUT.items():
        tags = [f"{re.escape(tag_of(item))}{'/.*' if item.part else ''}$" for item in items]
        charts.setdefault(category, {})[title] = ["Multiline", tags]
    return summaries.custom_scalars(charts)
