"""A service that reads packets: it decides as the export does in its own process, whatever slots a host has."""

import asyncio
import json
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from envs.vocabulary import SeedStage
from esper_ray.errors import UserError
from esper_ray.keeping.strategic_policy import POLICY, load_strategic
from esper_ray.measuring.controls import make_policy
from esper_ray.measuring.trained import Trained, World
from esper_ray.serving.client import PolicyClient, ServiceError
from esper_ray.serving.deciding import PacketDecider
from esper_ray.serving.messages import Refusal, RefusedError
from esper_ray.serving.packets import PacketInterface
from esper_ray.serving.replica import SessionKeeper
from esper_ray.serving.service import _opened, running
from esper_ray.serving.settings import ServiceConfig
from policies.player import Player
from policies.strategic.coverage import Coverage
from policies.strategic.inference import StrategicPolicy
from policies.strategic.schema import BLENDING_METHODS, RISK_CLASSES
from policies.strategic.seen import Seen
from policies.strategic.taught import NOTHING, Taught
from tests.devices import DEVICES
from tests.esper_ray.graph_exports import make_export, packet_now
from tests.esper_ray.serving.test_service import free_port
from tests.policies.strategic.packets import packets
from tests.policies.strategic.states import METRICS, chain, changed, seed, state
from tests.policies.strategic.test_both_ways_in import MAX_EPOCHS

INTERFACE = PacketInterface("digits", 1, Seen(), NOTHING)
ALL = Taught(risk=True, methods=True, windows=True)
TASKS = ("digits", "digits_scale")


@pytest.fixture(scope="module")
def graph_export(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("packets"), "digits", "digits_scale")


@pytest.fixture(scope="module")
def decider(graph_export):
    return _opened(graph_export, ServiceConfig())[1]


@pytest.fixture(scope="module")
def saying_all(graph_export):
    """Of a policy that was taught everything, and shown everything."""
    return PacketDecider(replace(load_strategic(graph_export), seen=Seen.all_but({}), taught=ALL))


@pytest.fixture
def keeper(decider):
    return SessionKeeper(decider, ServiceConfig())


def body(packet, **more):
    return json.dumps({"packet": packet.model_dump(mode="json"), **more}).encode()


class Host:
    """A host of a task, and the export's player that drives it."""

    def __init__(self, export, task, seed, greedy):
        trained = Trained.open(export, "latest", World(task, max_epochs=MAX_EPOCHS))
        self.player = Player(make_policy("learned", trained.env, trained), 1, seed, greedy)
        self.env = MorphogenesisVectorEnv(1, task=task, max_epochs=MAX_EPOCHS, graph=True)
        self.observation, _ = self.env.reset(seed=seed)

    @property
    def packet(self):
        return packet_now(self.env, self.observation)

    def step(self):
        """Its next action, which is taken."""
        action = self.player.act(self.observation)
        self.observation, *_ = self.env.step(action)
        return action[0].tolist()


# ------------------------------------------------------------------ what it decides
def test_hosts_of_three_slots_and_of_five_are_driven_as_by_the_export(graph_export, keeper):
    """Side by side, drawing and greedy, step for step; the replica gets its policy from another process."""
    keeper = pickle.loads(pickle.dumps(keeper))
    hosts = {f"{task} {greedy}": Host(graph_export, task, 5, greedy) for task in TASKS for greedy in (False, True)}

    async def play():
        taken = []
        for name, host in hosts.items():
            await keeper.open(name, 5, host.player._deterministic)
        for step in range(8):
            for name, host in hosts.items():
                asked = INTERFACE.read(body(host.packet, step=step))
                done, said = await keeper.act(name, *asked)
                assert done == step
                assert said["action"] == host.step()
                assert list(said["blending"]) == list(host.env.task.slots.slot_ids)
                taken.append(said["choices"]["op"])
        return taken

    assert len(set(asyncio.run(play()))) >= 3


def test_a_step_asked_for_again_gets_its_answer_and_moves_neither_draws_nor_scale(graph_export):
    """Of a policy that has seen how fast runs are: a packet moves its run's scale once the decision on it stands."""
    checkpoint = replace(load_strategic(graph_export), seen=Seen.all_but({}))
    keeper = SessionKeeper(PacketDecider(checkpoint), ServiceConfig())
    sent = [changed(state(), packet_id=str(at), metrics={**METRICS, "samples_per_s": 100.0}) for at in range(3)]
    run, values = StrategicPolicy(checkpoint).open_run("run"), []
    for packet in sent:
        values.append(checkpoint.return_scale * float(run.read(packet).result.scaled_value))
        run.commit()

    async def play():
        for name in "ab":
            await keeper.open(name, 1, False)
        repeated = [await keeper.act("a", step, sent[step]) for step in (0, 0, 1, 1, 2)]
        return repeated, [await keeper.act("b", None, packet) for packet in sent]

    repeated, once = asyncio.run(play())
    assert repeated == [once[0], once[0], once[1], once[1], once[2]]
    assert [said["value"] for _, said in once] == values
    assert len(set(values)) == 3


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_what_imitation_wrote_is_served_as_it_is_played(graph_export, tmp_path, temperature):
    """Its draws are those of evaluate's player, at the one temperature that it has."""
    checkpoint = replace(load_strategic(graph_export), play_temperature=temperature, taught=Taught(risk=True))
    checkpoint.save(tmp_path / POLICY)
    interface, decider = _opened(tmp_path, ServiceConfig())
    described = interface.described()
    assert described["iteration"] is None
    assert described["taught"] == {"risk": True, "methods": False, "windows": False}
    assert described["never_seen"] == _opened(graph_export, ServiceConfig())[0].described()["never_seen"]
    for task in TASKS:
        host, episode = Host(tmp_path, task, 5, False), decider.start(5, greedy=False)
        for _ in range(8):
            (said,) = decider.decide_all([(episode, host.packet)])
            assert said["action"] == host.step()
            assert sum(said["risk"].values()) == pytest.approx(1.0, abs=1e-5)


def test_clients_are_told_the_numbers_that_they_are_meant_to_be(saying_all):
    """Risks by a softmax of their logits; of each seed the most probable method, and its window."""
    checkpoint = saying_all._checkpoint
    packet = state(seeds=(seed(), seed("r0c1", allowed_blending_methods=("cosine", "sigmoid", "warmup_hold"))))
    (said,) = saying_all.decide_all([(saying_all.start(0, greedy=False), packet)])
    result = StrategicPolicy(checkpoint).open_run("run").read(packet).result
    assert said["risk"] == pytest.approx(
        dict(zip(RISK_CLASSES, result.risk_logits.softmax(-1)[0].tolist(), strict=True))
    )
    assert said["value"] == checkpoint.return_scale * float(result.scaled_value)
    assert list(said["blending"]) == ["r0c0", "r0c1"]
    for at, of in enumerate(said["blending"].values()):
        assert of["method"] == BLENDING_METHODS[result.blending_method_logits[0, at].argmax()]
        assert [of["start"], of["end"]] == result.schedule[0, at].tolist()
        assert 0.0 < of["start"] < of["end"] < 1.0


def test_an_export_says_nothing_that_rewards_do_not_teach(decider):
    (said,) = decider.decide_all([(decider.start(0, greedy=False), state())])
    assert said["risk"] is None
    plainly = {"method": "linear", "start": 0.0, "end": 1.0}
    assert said["blending"] == {"r0c0": plainly, "r0c1": plainly}


@pytest.mark.parametrize("device", DEVICES)
def test_a_replica_has_its_network_on_the_device_that_was_asked_for(graph_export, device):
    _, decider = _opened(graph_export, ServiceConfig(device=device, reduced_precision=device == "cuda"))
    there = pickle.loads(pickle.dumps(decider))
    there.prepare()
    assert next(there._policy._network.parameters()).device.type == device
    (said,) = there.decide_all([(there.start(0, greedy=True), state())])
    assert said["choices"]["op"]


def test_a_device_that_cannot_be_is_refused_in_one_line(graph_export, export):
    refused = (export, "reads Obs V3, and is served by the CPU")
    path, says = refused if torch.cuda.is_available() else (graph_export, "sees no GPU here: leave out --device")
    with pytest.raises(UserError, match=says):
        _opened(path, ServiceConfig(device="cuda"))


def test_a_packet_of_another_run_is_refused_and_moves_nothing(keeper):
    async def play():
        await keeper.open("a", 1, False)
        await keeper.act("a", 0, state())
        return await keeper.act("a", 1, changed(state(), run_id="other")), await keeper.act("a", 1, state())

    refused, (step, _) = asyncio.run(play())
    assert isinstance(refused, Refusal)
    assert refused.status == 422
    assert "packet.run_id is 'other', and this session reads the run 'run'" in refused.reason
    assert step == 1


@settings(max_examples=30, deadline=None)
@given(packets())
def test_whatever_a_packet_says_it_is_answered_in_its_own_slots(saying_all, packet):
    _, read = INTERFACE.read(body(packet))
    assert read == packet
    (said,) = saying_all.decide_all([(saying_all.start(0, greedy=False), read)])
    answer = json.loads(json.dumps(INTERFACE.answer(0, said), allow_nan=False))
    names = [seed.slot for seed in packet.seeds]
    assert list(answer["blending"]) == names
    assert answer["choices"].get("slot") in [None, *names]
    assert all(0 <= of["start"] < of["end"] <= 1.0 + 1e-6 for of in answer["blending"].values())
    assert answer["coverage"] in ("OK", "WARNING", "CRITICAL")


def test_choices_have_the_slots_own_names(decider):
    named = state(seeds=(seed("stem", stage=SeedStage.TRAINING), seed("body.2", stage=SeedStage.HOLDING)))
    answers = [decider.decide_all([(decider.start(at, False), named)])[0] for at in range(20)]
    slots = {answer["choices"]["slot"] for answer in answers if "slot" in answer["choices"]}
    assert slots == {"stem", "body.2"}


# ------------------------------------------------------------------ what it refuses
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"graph": {"layers": {"name": ["a"], "depth": [7.0]}, "layer_count": 1}}, "packet.graph.layers.depth.0"),
        ({"epoch": -1}, "packet.epoch: Input should be greater than or equal to 0"),
        ({"observation": [0.0]}, "packet: observation must have 91 numbers for 2 slots, got 1"),
        ({"colour": 1}, "packet.colour: Extra inputs are not permitted"),
        ({"declared": ["run.observation"]}, "is sent but not declared"),
        ({"action_mask": [0] * 50}, "packet.action_mask admits no op"),
        ({"action_mask": [0, 1] + [0] * 48}, "packet.action_mask admits the op GERMINATE, but no slot"),
    ],
)
def test_what_is_no_packet_is_refused_by_place(change, says):
    content = state().model_dump(mode="json") | change
    with pytest.raises(RefusedError) as error:
        INTERFACE.read(json.dumps({"packet": content}).encode())
    assert error.value.refusal.status == 422
    assert says in error.value.refusal.reason


# ------------------------------------------------------------------ the real service
@pytest.mark.cluster
def test_the_service_reads_packets(graph_export):
    hosts = [Host(graph_export, task, 5, False) for task in TASKS]
    largest = SlotConfig.for_row(128, internal_levels=True)
    large = state(chain(128, 2), tuple(seed(slot) for slot in largest.slot_ids), largest)
    with running(graph_export, ServiceConfig(port=free_port())) as url, PolicyClient(url) as client:
        policy = client.policy()
        assert (policy["reads"], policy["task"]) == ("packet", "digits, digits_scale")
        assert "seed.risk" in policy["never_seen"]["inputs"]
        sessions = [client.open(5) for _ in hosts]
        for _ in range(3):
            for session, host in zip(sessions, hosts, strict=True):
                packet = host.packet
                decision = session.act_on(packet.model_dump(mode="json"))
                assert decision.action == host.step()
                assert decision.value is not None
                assert decision.coverage == Coverage.of(packet).level.name
        with client.open(1) as session:
            assert session.act_on(large.model_dump(mode="json")).step == 0
            with pytest.raises(ServiceError, match="packet: Field required") as error:
                session.act({"obs": [0.0], "blueprint_indices": [-1], "action_mask": [1]})
            assert error.value.status == 422
            assert session.act_on({**large.model_dump(mode="json"), "packet_id": "2"}).step == 1
