"""A learner from reports to updates: when it learns, what it keeps, what it sends."""

import dataclasses
import shutil

import pytest
import torch

from esper_ray.bus.errors import BusUnavailable
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import Role, Stream
from esper_ray.controller.commands import Kind
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.learner import update_pass
from esper_ray.controller.learner.at_bus import LearnerAtBus
from esper_ray.controller.learner.learner import Learner, NotYet
from esper_ray.controller.learner.settings import ReportLearning
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.updates.candidate import check_weights, read_update
from esper_ray.controller.updates.making import update_of
from esper_ray.controller.updates.policy_update import AUDIENCE, PolicyUpdate
from esper_ray.controller.verifier import Verifier
from esper_ray.errors import UserError
from policies.strategic.checkpoint import MANIFEST_FILE, Checkpoint
from policies.strategic.taught import Taught
from tests.esper_ray.controller.field import Field, greenhouse, policy, renamed

torch.set_num_threads(1)
RUNS, EPOCHS = 4, 65
"""Each run has a last packet, which is nobody's reward: 256 decisions."""
SETTINGS = ReportLearning(passes=1, most_decisions=300, capacity=600, batch_size=128)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "policy"
    policy().save(path)
    return path


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return greenhouse(tmp_path_factory.mktemp("greenhouse") / "store")


@pytest.fixture(scope="module")
def played(start):
    run = Field(Checkpoint.load(start)).play("a run", EPOCHS, {3: Kind.PAUSE, 9: Kind.OPTIMIZER})
    return [renamed(of, f"run {number}") for number in range(RUNS) for of in run]


@pytest.fixture
def learner(start, record, tmp_path):
    with Learner(start, record, tmp_path / "learner", SETTINGS) as learner:
        yield learner


def differing(one, other):
    return [name for name in one.weights if not torch.equal(one.weights[name], other.weights[name])]


def test_too_few_decisions_make_no_update_and_it_says_why(learner, played):
    for of in played[:-1]:
        assert learner.take(of)
    assert learner.lacking() == "255 new decisions whose run's next packet is known, and an update needs 256"
    with pytest.raises(NotYet, match="255 new decisions"):
        learner.learn_once()
    assert learner.unsent() is None
    assert learner.latest_version == 0
    assert learner.take(played[-1])
    assert learner.lacking() == ""


def test_without_a_record_of_the_greenhouse_nothing_is_learnt_and_it_says_why(start, tmp_path):
    with pytest.raises(UserError, match="holds no recorded episodes: make some with esper-ray strategic collect"):
        Learner(start, tmp_path / "nothing", tmp_path / "learner", SETTINGS)
    assert not (tmp_path / "learner").exists()


class Silent(InProcessBus):
    """A bus that takes nothing until it is told to."""

    is_silent = True

    def send(self, stream, payload):
        if self.is_silent:
            raise BusUnavailable("nobody there")
        return super().send(stream, payload)


RING = KeyRing.first(0)


def taking(learner, waiting):
    """The next report of a list, into a learner."""

    def take_next(wait_s):
        return bool(waiting) and learner.take(waiting.pop())

    return take_next


@pytest.fixture(scope="module")
def updated(start, record, played, tmp_path_factory):
    """A learner's directory after its first update, which could not be sent, and what it said of it."""
    directory = tmp_path_factory.mktemp("updated") / "learner"
    with Learner(start, record, directory, SETTINGS) as learner, Silent() as bus:
        at_bus = LearnerAtBus(learner, bus, lambda: RING, taking(learner, [*played]))
        made = [learnt for _ in range(len(played) + 5) if (learnt := at_bus.step(0.0)) is not None]
        (learnt,) = made
        return directory, learnt


def test_an_update_is_a_policy_that_differs_from_the_one_before(updated, start, record):
    directory, learnt = updated
    assert (learnt.version, learnt.decisions, learnt.new, learnt.runs) == (1, 256, 256, RUNS)
    assert learnt.undecided == 2 * RUNS
    assert learnt.risk_recall is not None
    assert str(learnt).startswith("update 1: 256 decisions of 4 runs (256 new, 8 undecided), loss ")
    with Learner(start, record, directory, SETTINGS) as learner:
        update = learner.unsent()
    assert update.head.version == 1
    assert update.head.trained_on.startswith("256 decisions of 4 runs, and ")
    update, manifest = read_update(update.framed())
    _, live = read_update(update_of(start, 1).framed())
    check_weights(update, manifest, live)
    place = directory / "sent"
    place.mkdir()
    (place / MANIFEST_FILE).write_text(update.head.manifest)
    (place / manifest.weights_file).write_bytes(update.weights)
    before, after = Checkpoint.load(start), Checkpoint.load(place)
    changed = differing(before, after)
    assert any(name.startswith("heads.action.") for name in changed)
    assert not any("moments" in name for name in changed), "the scale is that of the first training"
    assert all(tensor.isfinite().all() for tensor in after.weights.values())
    for same in ("config", "seen", "return_scale", "play_temperature"):
        assert getattr(after, same) == getattr(before, same)
    assert after.registries.digests == before.registries.digests
    assert after.tasks == ("digits", "tabular")
    assert after.taught == Taught(risk=True), "no ramp of this record was drawn"


def test_what_was_taken_outlives_the_learner_counts_once_and_makes_the_same_update_to_the_bit(
    updated, start, record, played, tmp_path
):
    directory, reports = tmp_path / "learner", [*reversed(played)]
    new = []
    for part in (reports[:100], reports[80:200], reports):
        with Learner(start, record, directory, SETTINGS) as learner:
            new += [learner.take(of) for of in part]
    assert sum(new) == len(played)
    with Learner(start, record, directory, SETTINGS) as learner:
        assert learner.learn_once().new == 256
        assert "0 new decisions" in learner.lacking()
        assert not any(learner.take(of) for of in played[:20])
        assert "0 new decisions" in learner.lacking()
        assert differing(Checkpoint.load(updated[0] / "policy"), learner.checkpoint) == []


def test_versions_rise_and_an_update_begins_where_the_one_before_ended(updated, start, record, played, tmp_path):
    first = Checkpoint.load(updated[0] / "policy")
    directory = shutil.copytree(updated[0], tmp_path / "learner")
    with Learner(start, record, directory, SETTINGS) as learner:
        assert differing(learner.checkpoint, first) == []
        for of in played:
            learner.take(renamed(of, f"later {of.decision.run_id}"))
        learnt = learner.learn_once()
        assert (learnt.version, learnt.new, learnt.decisions) == (2, 256, 300), "and the latest of those before"
        assert learner.unsent().head.version == 2
        assert differing(learner.checkpoint, first)
    later = dataclasses.replace(SETTINGS, first_version=7)
    with Learner(start, record, directory, later) as learner:
        assert learner.latest_version == 2
    with Learner(start, record, tmp_path / "new", later) as learner:
        assert learner.latest_version == 6


def test_a_spoilt_gradient_leaves_the_policy_as_it_was(learner, played, monkeypatch):
    for of in played:
        learner.take(of)
    before = learner.checkpoint
    usual = update_pass.field_loss

    def spoilt(*arguments):
        found = usual(*arguments)
        return dataclasses.replace(found, total=found.total * torch.inf)

    monkeypatch.setattr(update_pass, "field_loss", spoilt)
    with pytest.raises(UserError, match="a gradient is not finite"):
        learner.learn_once()
    assert learner.unsent() is None
    assert learner.checkpoint is before
    assert learner.lacking() == "", "the same reports are there for another try"


# ---------------------------------------------------------------------- on the bus
def test_an_update_is_sent_signed_once_and_as_soon_as_the_bus_takes_it(updated, start, record, tmp_path, caplog):
    directory = shutil.copytree(updated[0], tmp_path / "learner")
    with Learner(start, record, directory, SETTINGS) as learner, Silent() as bus:
        bus.join(Stream.UPDATES, Role.SERVICE)
        at_bus = LearnerAtBus(learner, bus, lambda: RING, taking(learner, []))
        assert at_bus.step(0.0) is None
        assert at_bus.step(0.0) is None
        assert caplog.text.count("update 1 is not sent yet: nobody there") == 1
        bus.is_silent = False
        at_bus.step(0.0)
        at_bus.step(0.0)
        (delivery,) = bus.receive(Stream.UPDATES, Role.SERVICE, "service")
        assert learner.unsent() is None
    verifier = Verifier(lambda: RING, NonceLedger("service"))
    update = PolicyUpdate.of(verifier.verify(delivery.payload, Stream.UPDATES, AUDIENCE).payload)
    assert update.head.version == 1


@pytest.mark.parametrize("wrong", [{"least_decisions": 255}, {"most_decisions": 300, "least_decisions": 301}])
def test_fewer_decisions_than_256_cannot_be_asked_for(wrong):
    with pytest.raises(UserError, match="least_decisions"):
        ReportLearning(**wrong)
