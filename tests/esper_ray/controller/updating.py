"""Checkpoints, updates of them and envelopes around those; and policies that answer in this process."""

import dataclasses
import hashlib
from functools import cache
from pathlib import Path

import torch

from esper_ray.bus.streams import Stream
from esper_ray.controller.envelope import seal
from esper_ray.controller.nonces import NonceLedger
from esper_ray.controller.proposals import Ending, Reply, Request, draw_seed
from esper_ray.controller.proposing import answer, load_proposer
from esper_ray.controller.updates.making import update_of
from esper_ray.controller.updates.policy_update import AUDIENCE
from esper_ray.controller.verifier import Verifier
from policies.strategic.checkpoint import MANIFEST_FILE
from policies.strategic.messages import SystemState
from tests.esper_ray.controller.sealing import NOW, RING
from tests.policies.strategic.states import chain, state
from tests.policies.strategic.test_inference import trained

RARE = "rare"
"""A type of layer that no packet of the past has, and that the policy knows the name of."""
RISKY = "risky"
"""Another one."""


def base():
    """A checkpoint that knows these names."""
    plain = trained()
    return dataclasses.replace(plain, registries=plain.registries.extended({"layer_type": [RARE, RISKY]}))


def learnt(checkpoint, by=0.01):
    """The same, a little further."""
    return dataclasses.replace(checkpoint, weights={name: (1.0 + by) * of for name, of in checkpoint.weights.items()})


def poisoned(checkpoint, layer_type=RARE, by=0.02):
    """The same, but that what it reads of layers of this type overflows: every weight is finite."""
    further = learnt(checkpoint, by)
    index = checkpoint.registries["layer_type"].index(layer_type)
    weights = {name: of.clone() for name, of in further.weights.items()}
    for name in weights:
        if name.endswith(("embeddings.layer_type.weight", "fallback.weight")):
            weights[name][index] = 1e38
    return dataclasses.replace(further, weights=weights)


def saved(checkpoint, directory):
    checkpoint.save(directory)
    return directory


def version_of(directory):
    return hashlib.sha256((directory / MANIFEST_FILE).read_bytes()).hexdigest()


def enveloped(payload, at_ns=NOW, kind=Stream.UPDATES, audience=AUDIENCE):
    return seal(RING.signing, kind, audience, payload, at_ns).content


def sent(directory, version, at_ns=NOW):
    """The envelope of an update."""
    return enveloped(update_of(directory, version, "a test").framed(), at_ns)


def verifier(now=NOW):
    return Verifier(lambda: RING, NonceLedger("service"), lambda: now)


def packet(epoch=1, run_id="run", layer_type=None, **fields):
    """A packet of a run; all of its layers may be of one type."""
    graph = chain()
    if layer_type is not None:
        layers = graph.layers.model_copy(update={"layer_type": (layer_type,) * graph.layer_count})
        graph = graph.model_copy(update={"layers": layers})
    plain = dict(state(graph))
    return SystemState(**plain | {"run_id": run_id, "packet_id": str(epoch), "epoch": epoch} | fields)


@cache
def _loaded(name, version):
    """A policy, which keeps nothing from question to question."""
    return load_proposer(name)


def answers(policy, packets):
    """What a policy says of packets, to the last bit."""
    replies = [
        policy.ask(Request(one.model_dump_json().encode(), draw_seed(one.run_id, one.packet_id))) for one in packets
    ]
    return [reply.proposal.model_copy(update={"inference_ms": 0.0}) for reply in replies]


class Here:
    """A policy as :class:`esper_ray.controller.isolated_policy.IsolatedPolicy` has it, but in this process."""

    def __init__(self, name, deadline_s=60.0):
        self.name, self.deadline_s, self.closed = name, deadline_s, False
        torch.set_num_threads(1)
        self._proposer, self.version = _loaded(name, version_of(Path(name)) if Path(name).is_dir() else "")

    def wait_ready(self):
        return self._proposer.hello(self.version)

    def ask(self, request, deadline_s=None):
        if self.closed:
            return Reply(Ending.ERROR, "the policy's workers are closed")
        answered = answer(self._proposer, self.version, request)
        return Reply(answered.ending, answered.reason, answered.proposal)

    @property
    def pids(self):
        return (0,)

    def close(self):
        self.closed = True
