"""Who decides as a service does, but that no policy is asked: every decision is followed, and reported on in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from envs.vocabulary import LifecycleOp
from esper_ray.bus.streams import Stream
from esper_ray.controller.assessment import RiskConfig, RunState, assess
from esper_ray.controller.case import Case
from esper_ray.controller.commanding import make_command, record_of
from esper_ray.controller.commands import SeedOperation
from esper_ray.controller.envelope import seal
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.records import StoredRun
from esper_ray.controller.reports.observing import end_within, observe_within
from esper_ray.controller.reports.windows import Seen, WindowConfig
from esper_ray.controller.store import Store
from policies.strategic.messages import SystemState

RUN = "run"


class FieldWriter:
    """Records one decision after another on one run, each with its windows, and with the reports on those that close.

    Args:
        store: To write to.
        keys: Give the key that commands are signed with.
        packets: To decide on, again and again; each with a validation loss.

    Attributes:
        decisions: That were written.
    """

    def __init__(self, store: Store, keys: Callable[[], KeyRing], packets: Sequence[SystemState]) -> None:
        self._store, self._keys, self._packets = store, keys, packets
        self._state, self._config, self.decisions = RunState(), WindowConfig(), 0

    @property
    def reports(self) -> int:
        """That are written while the run goes on."""
        return max(self.decisions - self._config.window_epochs, 0)

    def write(self) -> float:
        """Decide once more.

        Returns:
            Seconds until decision and report are on the disk.
        """
        packet = self._packets[self.decisions % len(self._packets)].model_copy(
            update={
                "run_id": RUN,
                "epoch": self.decisions,
                "packet_id": str(self.decisions),
                "max_epochs": None,
                "timestamp_ns": time.time_ns(),
            }
        )
        began = time.perf_counter()
        found = assess(self._state, Case(packet, SeedOperation(op=LifecycleOp.WAIT)), RiskConfig())
        command = make_command(packet, found, time.time_ns())
        content = seal(
            self._keys().signing, Stream.COMMANDS, RUN, command.model_dump_json().encode(), command.issued_at_ns
        ).content
        self._store.record(
            record_of(command, packet, found, None, None, {}, content),
            StoredRun(memory=found.state.model_dump_json().encode(), hidden=None),
            also=lambda connection: observe_within(connection, Seen(packet, command), self._config, time.time_ns()),
        )
        seconds = time.perf_counter() - began
        self._state, self.decisions = found.state, self.decisions + 1
        return seconds

    def end(self) -> None:
        """The run is over: what is followed still is reported on as it is."""
        with self._store.transaction() as connection:
            end_within(connection, RUN, time.time_ns())
