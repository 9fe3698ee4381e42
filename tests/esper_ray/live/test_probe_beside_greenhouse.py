"""A key means one thing: of a host of the greenhouse a probe measures what the greenhouse measures."""

import numpy as np
import pytest
import torch

from envs.graph.measurements import ACTIVITY_SAMPLES
from envs.hosts.cnn import CnnVariant
from envs.hosts.mlp import MlpVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import make_task
from esper_ray.live.probe import Probe
from policies.strategic.measured import Measured
from tests.envs.graph.plain_host import PlainHost
from tests.envs.graph.test_formulas import DIFFERENCES, TOLERANCE
from tests.envs.helpers import WAIT, everyone, task_of
from tests.envs.topologies import task_of as topology_task

torch.set_num_threads(1)

EPOCHS = 5
"""After which the greenhouse watches activation functions again."""
MEMBER = 1
TASKS = {
    "digits": lambda: make_task("digits"),
    "two convolutions a block": lambda: task_of(CnnVariant((4, 6, 4), (3, 3, 3), depth=2)),
    "vectors": lambda: topology_task("mlp", (MlpVariant(4, (3, 2)), MlpVariant(4, (1, 3)))),
}
ACTIVITY = (
    *("activations.saturation_rate", "feeds.activation_frequency", "feeds.saturation_events"),
    "influences.nonlinearity_strength",
)
RELATIONS = ("connects", "feeds", "influences", "tunes")


class ClippedBehindTheProbe(PlainHost):
    """Clips in a hook of the optimiser that comes after the probe's, which then sees what the greenhouse does."""

    def clip(self):
        """Not here."""

    def clip_in_step(self):
        self.optimiser.register_step_pre_hook(lambda *_: super(ClippedBehindTheProbe, self).clip())


def arranged(measured, structure):
    """What was measured of a model, by key, its rows in a structure's order; nodes are told by their order."""
    rows = {}
    for name in RELATIONS:
        ends = [tuple(pair) for pair in measured.ends[name][0].tolist()]
        theirs = [tuple(pair) for pair in structure.edges[name].tolist()]
        assert set(ends) == set(theirs), name
        rows[name] = [ends.index(pair) for pair in theirs]
    numbers = {key: measured.number(key)[0].numpy() for key in measured.numbers}
    return {key: values[rows.get(key.partition(".")[0], slice(None))] for key, values in numbers.items()}


@pytest.mark.parametrize("name", TASKS)
def test_a_probe_measures_of_a_host_what_the_greenhouse_does(name):
    env = MorphogenesisVectorEnv(MEMBER + 1, task=TASKS[name](), max_epochs=EPOCHS + 2, graph=True)
    env.reset(seed=[31, 32])
    plain, structure = ClippedBehindTheProbe(env, MEMBER), env.graph.layout.structure
    count = len(env.task.splits["validation"].x)
    inputs, _ = plain.samples("validation", torch.linspace(0, count - 1, ACTIVITY_SAMPLES).long())
    probe = Probe(plain.net, plain.optimiser, inputs, max_epochs=EPOCHS + 2)
    plain.clip_in_step()
    for epoch in range(1, EPOCHS + 1):
        observation, *_ = env.step(everyone(env, WAIT))
        plain.train_epoch()
        plain.optimiser.param_groups[0]["lr"] = plain.rate()
        packet = probe.end_epoch(training_loss=plain.losses[-1])
        assert packet.graph.layers.layer_type == structure.names["layers.layer_type"]
        assert packet.graph.layers.activation_type == structure.names["layers.activation_type"]
        views = env.graph.layout.views(torch.from_numpy(observation["graph"]))
        greenhouse = {key: values[MEMBER].numpy() for key, values in views.items()}
        probed = arranged(Measured.of(packet), structure)
        both = {key for key in probed.keys() & greenhouse.keys() if not key.startswith(("seeds.", "monitors."))}
        assert len(both) > 25
        for key in both - ({*ACTIVITY} if epoch < EPOCHS else set()):
            tolerance = TOLERANCE | ({"atol": DIFFERENCES[key]} if key in DIFFERENCES else {})
            np.testing.assert_allclose(probed[key], greenhouse[key], **tolerance, err_msg=f"{key} in epoch {epoch}")
