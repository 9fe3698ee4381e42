"""``esper-ray learn`` on a real bus: signed reports in, acknowledgements and a signed update out."""

import io
import time

import pytest
import torch
from rich.console import Console

from esper_ray.bus.opening import open_bus
from esper_ray.bus.streams import Role, Stream
from esper_ray.cli import parse
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.key_file import read_key_file, write_key_file
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.reports.field_report import ReportAck
from esper_ray.controller.updates.policy_update import AUDIENCE, PolicyUpdate
from esper_ray.errors import UserError
from policies.strategic.checkpoint import Checkpoint
from tests.esper_ray.bus.servers import Server, needs_redis
from tests.esper_ray.controller.field import Field, greenhouse, policy, renamed

torch.set_num_threads(1)


@pytest.fixture
def place(tmp_path):
    policy().save(tmp_path / "start")
    greenhouse(tmp_path / "greenhouse")
    write_key_file(tmp_path / "keys.json", KeyRing.first(time.time_ns()))
    return tmp_path


class Interrupted(Console):
    """Somebody presses Ctrl-C once it has said something."""

    def __init__(self, words):
        super().__init__(file=io.StringIO(), width=200)
        self._words = words

    def print(self, *given, **more):
        super().print(*given, **more)
        if self._words in self.file.getvalue():
            raise KeyboardInterrupt


def learn(place, url, until):
    """Run the command until it has said something; returns all that it said."""
    words = {"bus": url, "start": place / "start", "greenhouse": place / "greenhouse", "keys": place / "keys.json"}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    command = parse(["learn", *flags, "--directory", str(place / "learner"), "--passes", "1"])
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        command.run(console := Interrupted(until))
    return console.file.getvalue()


@needs_redis
def test_reports_become_a_signed_update_and_whoever_goes_on_has_it(place, tmp_path_factory):
    run = Field(Checkpoint.load(place / "start")).play("a run", 65)
    told = [renamed(of, f"run {number}") for number in range(4) for of in run]
    ring = read_key_file(place / "keys.json")
    with Server(tmp_path_factory.mktemp("redis"), appendonly="no") as server, open_bus(server.url) as bus:
        bus.join(Stream.ACKS, Role.SERVICE)
        for of in [*told, *told[:9]]:
            sent = seal(ring.signing, Stream.REPORTS, of.report.run_id, of.framed(), time.time_ns())
            bus.send(Stream.REPORTS, sent.content)
        said = learn(place, server.url, "update 1:")
        assert "latest update: none" in said
        assert "update 1: 256 decisions of 4 runs (256 new, 0 undecided)" in said
        (delivery,) = bus.receive(Stream.UPDATES, Role.SERVICE, "service")
        envelope = Envelope.read(delivery.payload)
        assert ring.signing.verifies(envelope.signed, envelope.signature)
        assert (envelope.type, envelope.audience) == (Stream.UPDATES, AUDIENCE)
        assert PolicyUpdate.of(envelope.payload).head.version == 1
        acked = []
        while deliveries := bus.receive(Stream.ACKS, Role.SERVICE, "service", count=300):
            for each in deliveries:
                acked.append(ReportAck.model_validate_json(Envelope.read(each.payload).payload).report_id)
                bus.acknowledge(each)
        assert {*acked} == {of.report.report_id for of in told}
        state = bus.state(Stream.REPORTS).groups[Role.LEARNER]
        assert (state.pending, state.dead) == (0, 0)
        assert "latest update: 1" in learn(place, server.url, "latest update")


def test_without_keys_a_record_or_a_policy_it_does_not_begin(place):
    wrong = [
        ("--keys", str(place / "nothing"), "there is no signing key"),
        ("--greenhouse", str(place / "start"), "holds no recorded episodes"),
        ("--start", str(place / "greenhouse"), "holds no strategic policy"),
    ]
    for flag, value, says in wrong:
        given = {"--start": place / "start", "--greenhouse": place / "greenhouse", "--keys": place / "keys.json"}
        flags = [str(word) for pair in (given | {flag: value}).items() for word in pair]
        command = parse(["learn", "--bus", "redis://127.0.0.1:1/0", "--directory", str(place / "learner"), *flags])
        with pytest.raises(UserError, match=says):
            command.run(Console(quiet=True))
    assert not (place / "learner").exists()


def test_without_a_bus_it_says_how_to_give_one(place, monkeypatch):
    monkeypatch.delenv("ESPER_BUS", raising=False)
    command = parse(["learn", "--start", str(place / "start"), "--greenhouse", str(place / "greenhouse")])
    with pytest.raises(UserError, match="Give --bus redis://HOST:PORT/DB, or set ESPER_BUS"):
        command.run(Console(quiet=True))
