"""Over a bus a run is decided on as beside it, by nobody but its controller, and whatever happens it goes on."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import RULES, Stream, StreamRules, group_of_run
from esper_ray.controller.commanding import sent_command
from esper_ray.controller.commands import Outcome
from esper_ray.controller.envelope import Envelope, seal
from esper_ray.controller.keys import Key, KeyRing, KeyState
from esper_ray.controller.records import Fate, Records
from esper_ray.controller.remote.run_end import RemoteController
from esper_ray.controller.remote.service_end import ServiceEnd
from esper_ray.controller.service import Controller
from esper_ray.errors import UserError
from tests.envs.live.loops import same
from tests.esper_ray.bus.patience import wait_for
from tests.esper_ray.bus.servers import Server, needs_redis
from tests.esper_ray.controller.sealing import OTHER_SECRET, RING
from tests.esper_ray.controller.test_attending import EXPORT, UNHURRIED, episode

torch.set_num_threads(1)

FOREVER, EPOCHS = 1e4, 12


def keys():
    return RING


@pytest.fixture(params=[pytest.param("in process"), pytest.param("redis", marks=needs_redis)])
def new_bus(request, tmp_path):
    """Makes one end after another of one bus."""
    if request.param == "in process":
        with InProcessBus() as bus:
            yield lambda: bus
        return
    from esper_ray.bus.redis_bus import RedisBus

    with Server(tmp_path, appendonly="no") as server:
        yield lambda: RedisBus(server.url)


@contextmanager
def served(bus, directory, policy="heuristic", **more):
    with (
        Controller(policy, directory, config=UNHURRIED, keys=keys, **more) as controller,
        ServiceEnd(controller, bus, keys) as end,
    ):
        yield end


def remotely(bus, run_id, epochs=EPOCHS, **more):
    with RemoteController(bus, keys, run_id, **{"wait_s": FOREVER, **more}) as remote:
        return episode(remote, epochs)


def kept(directory, run_id):
    with Records.open(directory) as records:
        return list(records.records(run_id))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run beside its controller: its decisions, and its loop."""
    with Controller(EXPORT, tmp_path_factory.mktemp("near"), config=UNHURRIED) as controller:
        return episode(controller.named("run"), EPOCHS)


def test_a_run_over_a_bus_is_the_run_beside_its_controller_bit_for_bit(new_bus, tmp_path, plain):
    near, loop = plain
    with served(new_bus(), tmp_path, EXPORT) as end:
        far, far_loop = remotely(bus := new_bus(), "run")
        wait_for(lambda: all(record.fate is Fate.ANSWERED for record in kept(tmp_path, "run")))
    assert [decision.action for decision in far] == [decision.action for decision in near]
    assert len({decision.op for decision in far}) > 1
    assert same(far_loop.model.state_dict(), loop.model.state_dict())
    records = kept(tmp_path, "run")
    assert [record.decision.epoch for record in records] == list(range(EPOCHS))
    for record in records:
        envelope = Envelope.read(record.decision.command)
        assert RING.signing.verifies(envelope.signed, envelope.signature), "what is on record is what was signed"
        assert str(sent_command(record.decision.command).command_id) == record.decision.command_id
    assert end.refused == 0
    assert group_of_run("run") not in bus.state(Stream.COMMANDS).groups, "it has left"


def test_two_runs_have_their_own_commands(tmp_path):
    names = ("one", "another")
    with InProcessBus() as bus, served(bus, tmp_path) as end, ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(remotely, bus, name) for name in names]
        assert all(len(run.result()[0]) == EPOCHS + 1 for run in runs)
        wait_for(lambda: all(record.fate is Fate.ANSWERED for name in names for record in kept(tmp_path, name)))
        with pytest.raises(UserError, match="there is a run 'one' already"):
            remotely(bus, "one")
        assert end.refused == 0
    for name in names:
        assert [record.decision.epoch for record in kept(tmp_path, name)] == list(range(EPOCHS))


def test_without_a_service_it_is_said_at_once_and_nothing_is_left(tmp_path):
    with InProcessBus() as bus, RemoteController(bus, keys, "run", patience_s=0.01) as remote:
        with pytest.raises(UserError, match=r"no controller has answered within 0\.01 s"):
            episode(remote)
        assert bus.state(Stream.COMMANDS).groups == {}


class Interrupted:
    """A service that goes after some epochs, and comes back after some more."""

    def __init__(self, bus, directory, goes, comes):
        self.bus, self.directory, self.goes, self.comes = bus, directory, goes, comes
        self.remote = RemoteController(bus, keys, "run", wait_s=FOREVER)

    def attend(self, training):
        self.service = served(self.bus, self.directory)
        self.service.__enter__()
        attendance = self.remote.attend(training)
        choose, epochs = attendance.choose, itertools.count()

        def chosen(grower, observations):
            epoch = next(epochs)
            if epoch == self.goes:
                self.service.__exit__(None, None, None)
                attendance._wait_s = 0.0
            if epoch == self.comes:
                self.service = served(self.bus, self.directory)
                self.service.__enter__()
                attendance._wait_s, attendance._missed = FOREVER, 0
            return choose(grower, observations)

        attendance.choose = chosen
        return attendance


def test_a_run_goes_on_without_its_service_and_with_it_again(tmp_path):
    with InProcessBus() as bus:
        controller = Interrupted(bus, tmp_path, goes=3, comes=7)
        decisions, _ = episode(controller, EPOCHS)
        controller.remote.close()
        controller.service.__exit__(None, None, None)
    assert len(decisions) == EPOCHS + 1
    epochs = [record.decision.epoch for record in kept(tmp_path, "run")]
    assert epochs[:3] == [0, 1, 2]
    assert epochs == sorted(set(epochs)), "what waited for it is decided on in its order, or not at all"
    assert epochs[-(EPOCHS - 7) :] == list(range(7, EPOCHS))
    assert all("no command" in decision.note for decision in decisions[3:7])


def test_what_the_bus_refuses_is_on_record_as_never_sent(tmp_path):
    rules = {**RULES, Stream.COMMANDS: StreamRules(("nobody",), capacity=6)}
    with InProcessBus(rules=rules) as bus, served(bus, tmp_path) as end:
        remotely(bus, "run", wait_s=0.0)
        wait_for(lambda: len(kept(tmp_path, "run")) >= 5)
        end.close()
    fates = [record.fate for record in kept(tmp_path, "run")]
    assert Fate.ABORTED in fates


# ---------------------------------------------------------------------- strangers
class Spied(InProcessBus):
    """One on which a stranger says something before everything that is sent."""

    def __init__(self, **saying):
        super().__init__()
        self.saying, self.sent = saying, []

    def send(self, stream, payload):
        for content in self.saying.get(stream.name, lambda payload: [])(payload):
            super().send(stream, content)
        self.sent.append((stream, payload))
        return super().send(stream, payload)


def forged(payload):
    """Of what is said: with another key, without a signature, of another type, and nothing at all."""
    real = Envelope.read(payload)
    stranger = Key(OTHER_SECRET, KeyState.SIGNING)
    yield seal(stranger, Stream(real.type), real.audience, real.payload, time.time_ns()).content
    yield payload[:-8] + bytes(8)
    yield seal(RING.signing, Stream.TELEMETRY, real.audience, real.payload, time.time_ns()).content
    yield seal(RING.signing, Stream(real.type), "another run", real.payload, time.time_ns()).content
    yield seal(RING.signing, Stream(real.type), real.audience, real.payload, time.time_ns() - 10**12).content
    yield b"nothing"


def test_strangers_change_nothing(tmp_path, plain):
    with Spied(STATES=forged, COMMANDS=forged, RESULTS=forged) as bus, served(bus, tmp_path / "spied", EXPORT) as end:
        spied, spied_loop = remotely(bus, "run")
        wait_for(lambda: all(record.fate is Fate.ANSWERED for record in kept(tmp_path / "spied", "run")))
    assert [decision.action for decision in spied] == [decision.action for decision in plain[0]]
    assert same(spied_loop.model.state_dict(), plain[1].model.state_dict())
    assert [record.decision.epoch for record in kept(tmp_path / "spied", "run")] == list(range(EPOCHS))
    assert end.refused >= 6 * EPOCHS


def test_what_is_repeated_has_its_effect_once(tmp_path, plain):
    def twice(payload):
        yield payload

    with Spied(STATES=twice, COMMANDS=twice, RESULTS=twice) as bus, served(bus, tmp_path / "spied", EXPORT):
        spied, spied_loop = remotely(bus, "run")
        wait_for(lambda: all(record.fate is Fate.ANSWERED for record in kept(tmp_path / "spied", "run")))
    assert [decision.action for decision in spied] == [decision.action for decision in plain[0]]
    assert same(spied_loop.model.state_dict(), plain[1].model.state_dict())
    records = kept(tmp_path / "spied", "run")
    assert [record.decision.epoch for record in records] == list(range(EPOCHS))
    assert all(b'"outcome":"applied"' in record.result for record in records), Outcome.APPLIED


def test_a_packet_of_before_a_restart_is_not_decided_on_again(tmp_path):
    with Spied() as bus:
        with served(bus, tmp_path):
            remotely(bus, "run")
        before = kept(tmp_path, "run")
        with served(bus, tmp_path) as end:
            for stream, payload in list(bus.sent):
                if stream is Stream.STATES:
                    bus.send(stream, payload)
            wait_for(lambda: bus.state(Stream.STATES).groups["service"].unread == 0)
            end.close()
    assert [record.decision.command_id for record in kept(tmp_path, "run")] == [
        record.decision.command_id for record in before
    ]


def test_a_service_with_another_key_is_no_service(tmp_path):
    def other_keys():
        return KeyRing((Key(OTHER_SECRET, KeyState.SIGNING),))

    with InProcessBus() as bus, served(bus, tmp_path) as end:
        with RemoteController(bus, other_keys, "run", patience_s=0.3) as remote, pytest.raises(UserError, match="keys"):
            episode(remote)
        assert end.refused >= 1
