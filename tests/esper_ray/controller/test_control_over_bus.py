"""``esper-ray control --bus``: a service in a process of its own, a run in this one, and Redis between them."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from esper_ray.bus.opening import open_bus
from esper_ray.bus.streams import Role, Stream
from esper_ray.cli import parse
from esper_ray.commands.control import BUS_VARIABLE
from esper_ray.controller.envelope import Envelope
from esper_ray.controller.key_file import read_key_file
from esper_ray.controller.records import Records
from esper_ray.controller.remote.run_end import RemoteController
from esper_ray.errors import UserError
from esper_ray.terminal import output
from tests.esper_ray.bus.patience import wait_for
from tests.esper_ray.bus.servers import Server, needs_redis
from tests.esper_ray.controller.test_attending import grown

EPOCHS = 12


def said(capsys, *words):
    parse([*map(str, words)]).run(output())
    return capsys.readouterr().out


@pytest.fixture
def server(tmp_path):
    (tmp_path / "redis").mkdir()
    with Server(tmp_path / "redis", appendonly="no") as running:
        yield running


@needs_redis
def test_a_host_is_trained_over_a_bus_and_all_that_is_said_is_signed(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    state = ("--directory", tmp_path / "state")
    said(capsys, "keys", "new", "--file", key_file := tmp_path / "state" / "signing_keys.json")
    with ThreadPoolExecutor(1) as threads:  # what it does to its niceness stays with it
        given = ("control", "--bus", server.url, "--max-epochs", EPOCHS, "--name", "run", *state)
        trained = threads.submit(said, capsys, *given).result()
    assert [f"epoch {at}/{EPOCHS}: " in trained for at in range(EPOCHS + 1)] == [True] * (EPOCHS + 1)
    key = read_key_file(key_file).signing
    with Records.open(tmp_path / "state") as records:
        found = list(records.records("run"))
    assert [record.decision.epoch for record in found] == list(range(EPOCHS))
    envelopes = [Envelope.read(record.decision.command) for record in found]
    with open_bus(server.url) as bus:
        told = bus.receive(Stream.TELEMETRY, "test", "c", count=1000)
    envelopes += [Envelope.read(delivery.payload) for delivery in told]
    assert len(envelopes) > 2 * EPOCHS
    assert all(key.verifies(envelope.signed, envelope.signature) for envelope in envelopes)
    assert f"{Role.SERVICE}: 0, 0" in said(capsys, "control", "status", "--bus", server.url, *state)
    assert [f" {at:>5}  " in said(capsys, "control", "--explain", "run", *state) for at in (0, EPOCHS - 1)] == [
        True
    ] * 2


@needs_redis
def test_a_service_alone_serves_models_of_ones_own_until_it_is_stopped(server, tmp_path, capsys):
    said(capsys, "keys", "new", "--file", key_file := tmp_path / "state" / "signing_keys.json")
    words = ["control", "serve", "--policy", "heuristic", "--directory", str(tmp_path / "state")]
    environment = os.environ | {BUS_VARIABLE: server.url}
    process = subprocess.Popen([sys.executable, "-m", "esper_ray", *words], env=environment, stdout=subprocess.PIPE)
    try:
        ring = read_key_file(key_file)
        with open_bus(server.url) as bus, RemoteController(bus, lambda: ring, "mine", patience_s=300) as remote:
            grown(remote).end_epoch()
        with Records.open(tmp_path / "state") as records:
            wait_for(lambda: [record.decision.epoch for record in records.records("mine")][:1] == [0])
    finally:
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert told.decode().endswith("stopped; runs go on without it\n")


def test_without_a_bus_or_a_key_it_is_said_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(BUS_VARIABLE, raising=False)
    state = ("--directory", tmp_path)
    for word in ("serve", "join"):
        with pytest.raises(UserError, match=f"{word} over which bus"):
            said(capsys, "control", word, *state)
    for word in ("serve", "train"):
        with pytest.raises(UserError, match="there is no signing key: esper-ray keys new"):
            said(capsys, "control", word, "--bus", "redis://127.0.0.1:1/0", *state)
    assert not (tmp_path / "controller.sqlite").exists()
