"""Metrics for Prometheus, as text on a port of this machine alone: the latest values, and counts of events."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from esper_ray.controller.telemetry import Form, Item, Reading, Route, of_route
from esper_ray.errors import UserError

LOOPBACK = "127.0.0.1"
MOST_RUNS = 64
"""Runs whose values are shown: those heard of last."""


class PrometheusSink:
    """Serves what Prometheus scrapes, until it is closed.

    Args:
        port: Of the loopback interface; 0 takes a free one.

    Raises:
        UserError: the port cannot be had.

    Attributes:
        port: That is listened on.
    """

    route = Route.PROMETHEUS

    def __init__(self, port: int = 0) -> None:
        self._latest = _Latest()
        registry = CollectorRegistry()
        registry.register(self._latest)
        try:
            self._server, self._thread = start_http_server(port, LOOPBACK, registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot serve metrics on {LOOPBACK}:{port}: {reason}: give another port, or 0") from error
        self.port = self._server.server_port

    @property
    def url(self) -> str:
        """What is to be scraped."""
        return f"http://{LOOPBACK}:{self.port}/metrics"

    def take(self, reading: Reading) -> None:
        """Show it."""
        self._latest.take(reading)

    def close(self) -> None:
        """Listen no longer."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def metric_name(item: Item) -> str:
    """As Prometheus spells it."""
    return item.name.replace(".", "_") + ("_total" if item.form is Form.EVENT else "")


class _Latest(Collector):
    """The latest value of each item, run and part."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: dict[str, dict[tuple[str, str], float | str]] = {}
        """Run → item and part → value; runs in the order in which they were heard of last."""

    def take(self, reading: Reading) -> None:
        """Take a reading; what is no number any more is shown no longer."""
        key = reading.item.name, reading.part
        with self._lock:
            values = self._values.pop(reading.run_id, {})
            self._values[reading.run_id] = values
            match reading.item.form:
                case Form.EVENT:
                    values[key] = float(values.get(key, 0.0)) + 1.0
                case Form.TEXT:
                    values[key] = str(reading.value)
                case _:
                    number = reading.number
                    values.pop(key, None) if number is None else values.update({key: number})
            for run_id in [run_id for run_id in self._values if run_id][:-MOST_RUNS]:
                del self._values[run_id]

    def collect(self) -> Iterator[Metric]:
        """For a scrape."""
        with self._lock:
            values = {run_id: dict(of) for run_id, of in self._values.items()}
        for item in of_route(Route.PROMETHEUS):
            yield _family(item, values)


def _family(item: Item, values: dict[str, dict[tuple[str, str], float | str]]) -> Metric:
    labels = ["run_id", *([item.part] if item.part else []), *(["value"] if item.form is Form.TEXT else [])]
    meaning = f"{item.meaning} {item.unit}".strip()
    if item.choices:
        meaning += " " + ", ".join(f"{at} {choice}" for at, choice in enumerate(item.choices)) + "."
    kind = CounterMetricFamily if item.form is Form.EVENT else GaugeMetricFamily
    family = kind(metric_name(item), meaning, labels=labels)
    for run_id, of in values.items():
        for (name, part), value in of.items():
            if name == item.name:
                texts = [run_id, *([part] if item.part else []), *([str(value)] if item.form is Form.TEXT else [])]
                family.add_metric(texts, 1.0 if item.form is Form.TEXT else float(value))
    return family
