"""Exports of policies that read hosts as graphs, as if they had been trained: they have seen a few hosts."""

import numpy as np
import torch

from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.config import with_settings
from esper_ray.keeping.export import write_export
from esper_ray.keeping.policy_settings import policy_settings, trained_names
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.presets import DEBUG
from policies.factory import build_policy
from policies.weights import save_weights
from tests.policies.strategic.test_both_ways_in import MAX_EPOCHS, packet_of

PLANT = [1, 1, 3, 0, 0, 0, 0, 0]


def make_export(path, *tasks):
    """Write one, whose weights make draws and nodes matter."""
    config = with_settings(DEBUG, {"max_epochs": MAX_EPOCHS, "tasks": list(tasks), "network.kind": "graph"})
    settings = policy_settings(config.env, config.network, trained_names(config.env, config.network))
    torch.manual_seed(2)
    policy = build_policy("learned", settings)
    network = policy.network
    network.only_seen = False  # as in training
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
        network.return_scale.moments.copy_(torch.tensor([10.0, 0.0, 40.0]))
    for _, observation in hosts(tasks[0], 2, MAX_EPOCHS - 1):
        obs = {name: torch.from_numpy(leaf).unsqueeze(1) for name, leaf in observation.items()}
        real = torch.ones(2, 1, dtype=torch.bool)
        network.normalisers.observations.update(network.normalisers.observed(obs, real), decay=1.0)
    run = RunDirectory.create(path / "run", config)
    run.save(1, 0.5, lambda directory: save_weights(policy.state_dict(), directory / POLICY_FILE))
    write_export(run, "best", path / "export")
    return path / "export"


def hosts(task, number, steps, seed=0):
    """An env of hosts that observe a seed's life in their second slots, and each of its observations."""
    env = MorphogenesisVectorEnv(number, task=task, max_epochs=MAX_EPOCHS, graph=True)
    observation, _ = env.reset(seed=seed)
    yield env, observation
    for _ in range(steps):
        observation, *_ = env.step(np.tile(PLANT, (number, 1)))
        yield env, observation


def packets(task, steps, seed=0):
    """A host's observations, ``[1, ...]``, and the packets that say the same of it."""
    for env, observation in hosts(task, 1, steps, seed):
        yield observation, packet_now(env, observation)


def packet_now(env, observation):
    """What an env's first host is known to be, as a packet."""
    layout = env.graph.layout
    vectors, mask = (torch.from_numpy(observation[name]) for name in ("graph", "action_mask"))
    return packet_of(layout, layout.views(vectors), mask, env.lifecycle.stage[0], 0)
