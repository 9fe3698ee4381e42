"""Telemetry over a bus: signed, the bad news twice, and no outage is felt."""

import math

from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import RULES, Stream, StreamRules
from esper_ray.controller import telemetry
from esper_ray.controller.commands import Severity
from esper_ray.controller.emitting import Telemetry
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.remote.bus_sink import SERVICE, BusSink, Told
from esper_ray.controller.verifier import Verifier
from tests.esper_ray.controller.sealing import RING


def keys():
    return RING


def heard(bus, stream, audience):
    """What is on a stream, each verified."""
    verifier, said = Verifier(keys, NonceLedger("monitor")), []
    while deliveries := bus.receive(stream, "monitor", "c"):
        for delivery in deliveries:
            envelope = verifier.verify(delivery.payload, stream, audience)
            said.append(Told.model_validate_json(envelope.payload))
            bus.acknowledge(delivery)
    return said


def test_every_reading_leaves_and_the_bad_ones_are_emergencies_too():
    with InProcessBus() as bus:
        with Telemetry([BusSink(bus, keys)]) as telling:
            telling.emit(telemetry.VALIDATION_LOSS, 0.5, "run", 3)
            telling.emit(telemetry.VALIDATION_LOSS, math.nan, "run", 4)
            telling.emit(telemetry.COMMAND_REFUSED, "why", "run", 4, severity=Severity.CRITICAL)
        told = heard(bus, Stream.TELEMETRY, "run")
        emergencies = heard(bus, Stream.EMERGENCY, "run")
    assert [(one.name, one.value, one.epoch) for one in told] == [
        ("tamiyo.validation_loss", 0.5, 3),
        ("tamiyo.validation_loss", "nan", 4),
        ("tamiyo.command.refused", "why", 4),
    ]
    assert [one.severity for one in emergencies] == ["CRITICAL"]
    assert emergencies == told[-1:]


def test_what_is_no_runs_is_the_services():
    with InProcessBus() as bus:
        with Telemetry([BusSink(bus, keys)]) as telling:
            telling.emit(telemetry.COMPILE_WARM_MS, 2.0)
        (told,) = heard(bus, Stream.TELEMETRY, SERVICE)
    assert (told.value, told.run_id) == (2.0, "")


def test_what_a_full_bus_refuses_is_counted_and_the_rest_goes_on():
    rules = {**RULES, Stream.EMERGENCY: StreamRules(("monitor",), capacity=1)}
    with InProcessBus(rules=rules) as bus:
        with Telemetry([sink := BusSink(bus, keys)]) as telling:
            for epoch in range(3):
                telling.emit(telemetry.COMMAND_REFUSED, "why", "run", epoch, severity=Severity.HIGH)
        assert len(heard(bus, Stream.TELEMETRY, "run")) == 3
        assert len(heard(bus, Stream.EMERGENCY, "run")) == 1
        assert sink.lost == 2
