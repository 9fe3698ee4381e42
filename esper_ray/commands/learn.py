"""``learn``: field reports from a bus in, updates of the policy out (docs/cluster/learner.md)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from envs.ranges import check_numbers
from esper_ray.commands.control import BUS_VARIABLE
from esper_ray.controller.learner.settings import ReportLearning
from esper_ray.errors import UserError
from esper_ray.keeping.lock import held

if TYPE_CHECKING:
    from esper_ray.controller.learner.at_bus import LearnerAtBus

WAIT_S = 1.0
"""For the next report, and after a bus that does not answer."""


@dataclass(frozen=True)
class Learn:
    """Learn from the field reports of controllers on a bus, and send them updates of their policy."""

    start: Path
    """The policy to begin with, that which the controllers have: what `esper-ray strategic imitate` wrote, or an export
    of one that was trained with --network.kind graph. Later the latest update takes its place."""
    greenhouse: Path
    """What `esper-ray strategic collect` recorded: part of every update, so that a few runs do not make the policy
    forget."""
    bus: str | None = None
    """redis://HOST:PORT/DB of the bus; the variable ESPER_BUS has the same effect, and is seen by nobody else."""
    directory: Path = Path("var/learner")
    """Where reports and the latest update are kept; one learner uses it at a time, and the same command goes on."""
    keys: Path = Path("var/controller/signing_keys.json")
    """File of the signing keys, the same that the controllers have."""
    bus_name: str = "esper"
    """Of the bus on the server; buses of other names know nothing of this one."""
    name: str = "learner"
    """Of this learner among those of the bus: the same after a restart."""
    learning: tyro.conf.OmitArgPrefixes[ReportLearning] = field(default_factory=ReportLearning)

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Take reports and learn until stopped; a line per update."""
        from esper_ray.bus.opening import open_bus
        from esper_ray.bus.streams import Role, Stream
        from esper_ray.controller.key_file import CurrentKeys
        from esper_ray.controller.learner.at_bus import LearnerAtBus
        from esper_ray.controller.learner.learner import Learner
        from esper_ray.controller.reports.taking import TakesReports
        from esper_ray.process import settle

        address = self.bus or os.environ.get(BUS_VARIABLE)
        if address is None:
            raise UserError(f"learn from which bus? Give --bus redis://HOST:PORT/DB, or set {BUS_VARIABLE}")
        settle()
        keys = CurrentKeys(self.keys)
        with (
            held(self.directory),
            Learner(self.start, self.greenhouse, self.directory, self.learning) as learner,
            open_bus(address, name=self.bus_name) as bus,
            TakesReports(bus, keys, learner.path, learner.take_within, consumer=self.name) as reports,
        ):
            bus.join(Stream.REPORTS, Role.LEARNER)
            try:
                console.print(
                    f"learning from the bus {self.bus_name}; latest update: {learner.latest_version or 'none'}"
                )
                self._learn(LearnerAtBus(learner, bus, keys, reports.step), console)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("reports and updates are kept, and the same command goes on") from None

    @staticmethod
    def _learn(at_bus: LearnerAtBus, console: Console) -> None:
        from esper_ray.bus.errors import BusError

        told = ""
        while True:
            try:
                learnt = at_bus.step(WAIT_S)
                told = ""
            except BusError as error:
                if str(error) != told:
                    console.print(f"{error}; trying again")
                told = str(error)
                time.sleep(WAIT_S)
                continue
            if learnt is not None:
                console.print(str(learnt))
