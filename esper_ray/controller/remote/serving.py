"""A service for a bus: all its parts, in this process or in one of its own.

``python -m esper_ray.controller.remote.serving`` reads its settings from its input and serves until that ends, so that
it goes when whoever started it does, and no address with a password stands among a process's arguments.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console

from esper_ray.bus.interface import NAME, Bus
from esper_ray.bus.opening import open_bus
from esper_ray.controller.emitting import Sink, Telemetry
from esper_ray.controller.evaluation import ControllerConfig, read_config
from esper_ray.controller.key_file import KEY_FILE, CurrentKeys
from esper_ray.controller.prometheus import PrometheusSink
from esper_ray.controller.records import DIRECTORY
from esper_ray.controller.remote.bus_sink import BusSink
from esper_ray.controller.remote.service_end import ServiceEnd
from esper_ray.controller.reports.delivery import ReportDelivery
from esper_ray.controller.run_page import DIRECTORY as PAGES
from esper_ray.controller.run_page import RunPages
from esper_ray.controller.service import Controller
from esper_ray.errors import UserError
from esper_ray.stopping import say
from esper_ray.terminal import output, under_way

BUS_SECONDS = 2.0
"""Within which the bus takes a message."""
ENDS_WITHIN_S = 10.0


@dataclasses.dataclass(frozen=True)
class Serving:
    """What a service is made of.

    Attributes:
        policy: Who proposes.
        directory: For what outlives it.
        settings: JSON file of thresholds and deadlines.
        greedy: Take the policy's likeliest action instead of drawing one.
        observe: Decide and record, but send nothing.
        amendments: JSON file of one's own for the catalogue.
        tensorboard: Where the pages of the runs go; by default beside the records.
        prometheus_port: Serve metrics there; None serves none.
        bus: Address of the bus; None is one of this process, for whoever gives it.
        bus_name: Of the bus.
        keys: File of the signing keys; by default beside the records.
    """

    policy: str
    directory: Path = DIRECTORY
    settings: Path | None = None
    greedy: bool = False
    observe: bool = False
    amendments: Path | None = None
    tensorboard: Path | None = None
    prometheus_port: int | None = None
    bus: str | None = None
    bus_name: str = NAME
    keys: Path | None = None

    @property
    def key_file(self) -> Path:
        """Of the signing keys."""
        return self.keys or self.directory / KEY_FILE.name

    @property
    def config(self) -> ControllerConfig:
        """How it decides.

        Raises:
            UserError: the file of settings cannot be read.
        """
        config = ControllerConfig() if self.settings is None else read_config(self.settings)
        return dataclasses.replace(config, greedy=self.greedy or config.greedy)

    def sinks(self, console: Console) -> list[Sink]:
        """Where metrics and events go on this machine; the console is told."""
        pages = self.tensorboard or self.directory / PAGES
        sinks: list[Sink] = [RunPages(pages)]
        if self.prometheus_port is not None:
            sinks.append(prometheus := PrometheusSink(self.prometheus_port))
            console.print(f"metrics: {prometheus.url}")
        console.print(f"page: {shlex.join(['tensorboard', '--logdir', str(pages)])}")
        return sinks

    def controller(self, console: Console, telemetry: Telemetry, keys: CurrentKeys | None = None) -> Controller:
        """Start the policy, and whoever decides with it.

        Raises:
            UserError: as of :class:`esper_ray.controller.service.Controller`.
        """
        with under_way(console, f"starting the policy {self.policy}"):
            return Controller(
                self.policy,
                self.directory,
                config=self.config,
                observe=self.observe,
                amendments=self.amendments,
                keys=keys,
                telemetry=telemetry,
            )

    def opened_bus(self) -> Bus:
        """The bus.

        Raises:
            UserError: it is not fit.
            BusUnavailable: it does not answer.
        """
        return open_bus(self.bus, name=self.bus_name, timeout_s=BUS_SECONDS)

    @contextmanager
    def serving(self, console: Console) -> Iterator[ServiceEnd]:
        """Serve for as long as the context lasts.

        Raises:
            UserError: there is no key, the bus is not fit or does not answer, or the controller cannot begin.
        """
        keys = CurrentKeys(self.key_file)
        with ExitStack() as stack:
            bus = stack.enter_context(self.opened_bus())
            telemetry = stack.enter_context(Telemetry([*self.sinks(console), BusSink(bus, keys)]))
            controller = stack.enter_context(self.controller(console, telemetry, keys))
            stack.enter_context(ReportDelivery(controller.store, bus, keys, telemetry=telemetry))
            yield stack.enter_context(ServiceEnd(controller, bus, keys))


_FORM = TypeAdapter(Serving)


@contextmanager
def service_process(serving: Serving) -> Iterator[subprocess.Popen[bytes]]:
    """A service in a process of its own, which ends with the context, or with this process.

    It says what it has to say on this process's output. That it is ready its runs find out by asking.
    """
    process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(_FORM.dump_json(serving) + b"\n")
        process.stdin.flush()
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:  # it is safe to be ended at any moment
            process.kill()
            process.wait()


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever started it, and ends the input
    serving = _FORM.validate_json(sys.stdin.readline())
    try:
        with serving.serving(output()):
            while os.read(sys.stdin.fileno(), 1):
                pass
    except UserError as error:
        say(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
