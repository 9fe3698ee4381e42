"""A small export, and a host whose episode it plays."""

import dataclasses

import pytest
import torch

from envs.morphogenesis import MorphogenesisVectorEnv
from esper_ray.keeping.export import write_export
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.presets import DEBUG
from policies.bundle import PolicySettings
from policies.factory import build_policy
from policies.network_config import NetworkConfig
from policies.weights import save_weights

EPOCHS = 8
CONFIG = dataclasses.replace(
    DEBUG,
    env=dataclasses.replace(DEBUG.env, max_epochs=EPOCHS),
    network=NetworkConfig(feature_dim=8, hidden_dim=6, head_dim=4, play_temperature=0.5),
)


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """Weights so large that state and draws matter."""
    path = tmp_path_factory.mktemp("service")
    run = RunDirectory.create(path / "run", CONFIG)
    torch.manual_seed(1)
    policy = build_policy("learned", PolicySettings(CONFIG.env.make_task().slots, EPOCHS, CONFIG.network))
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter += 0.5 * torch.randn(parameter.shape)
    run.save(1, 0.5, lambda directory: save_weights(policy.state_dict(), directory / POLICY_FILE))
    write_export(run, "best", path / "export")
    return path / "export"


@pytest.fixture
def world():
    """Makes a host at the start of an episode, and its first observation; always the same one."""

    def make():
        env = MorphogenesisVectorEnv(1, **CONFIG.env.keywords())
        return env, env.reset(seed=3)[0]

    return make
