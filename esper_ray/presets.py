"""Settings to start from."""

from __future__ import annotations

import dataclasses

from esper_ray.config import PLAY_TEMPERATURE, RARE_PRUNING, EnvConfig, LearnerConfig, RunConfig, TrainConfig
from policies.network_config import NetworkConfig

QUICKSTART = TrainConfig(
    run=RunConfig(iterations=36, num_env_runners=2, hosts_per_runner=16, replay_interval=5),
    env=EnvConfig(task="digits_impaired", max_epochs=60),
    network=NetworkConfig(
        feature_dim=128,
        hidden_dim=128,
        head_dim=64,
        op_bias=RARE_PRUNING,
        play_temperature=PLAY_TEMPERATURE,
        sage_width=64,
        gat_width=32,
    ),
    learner=LearnerConfig(
        lr=1e-3,
        lr_final=0.05,
        num_epochs=10,
        kl_stop=0.1,
        value_loss_coeff=1.25,
        entropy_coeff=0.0075,
        entropy_final=0.1,
    ),
)
"""What `make train` runs: shorter episodes and a smaller network, for two cores and ten minutes."""

THOROUGH = dataclasses.replace(
    QUICKSTART, run=dataclasses.replace(QUICKSTART.run, iterations=120, hosts_per_runner=32, replay_interval=10)
)
"""The quickstart for half an hour to an hour on two cores: twice the hosts, over three times the iterations."""

DEBUG = TrainConfig(
    run=RunConfig(iterations=2, num_env_runners=0, hosts_per_runner=4, replay_interval=2),
    env=EnvConfig(max_epochs=12),
    network=NetworkConfig(
        feature_dim=32,
        hidden_dim=32,
        head_dim=16,
        op_bias=RARE_PRUNING,
        play_temperature=PLAY_TEMPERATURE,
        sage_width=16,
        gat_width=8,
    ),
    learner=LearnerConfig(minibatches=2),
)
"""Small and in one process, so that breakpoints work."""

PRESETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    "quickstart": QUICKSTART,
    "thorough": THOROUGH,
    "debug": DEBUG,
}
