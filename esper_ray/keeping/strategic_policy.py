"""A strategic policy, wherever it was trained: what imitation wrote, or the export of a run."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from esper_ray.errors import UserError
from esper_ray.keeping.export import CARD_FILE, Card, load_export
from policies.bundle import PolicyBundle
from policies.network_config import NetworkConfig
from policies.strategic.actor_critic import GraphActorCritic
from policies.strategic.checkpoint import MANIFEST_FILE, Checkpoint
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.taught import NOTHING
from policies.weights import Weights

POLICY = "policy"
"""Where in the directory of an imitation its policy is."""


def checkpoint_in(path: Path) -> Path | None:
    """Where in a directory the checkpoint of a strategic policy is: there itself, or where imitation has put it."""
    return next((place for place in (path, path / POLICY) if (place / MANIFEST_FILE).is_file()), None)


def load_strategic(path: Path) -> Checkpoint:
    """The strategic policy in a directory: a checkpoint, that of an imitation, or the export of a run.

    Raises:
        UserError: there is none, it reads no graphs, or it cannot be used.
    """
    if (place := checkpoint_in(path)) is not None:
        try:
            return Checkpoint.load(place)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
    if not (path / CARD_FILE).is_file():
        raise UserError(
            f"{path} holds no strategic policy: give what esper-ray strategic imitate wrote, or an export of a run "
            "with --network.kind graph"
        )
    card, policy = load_export(path)
    if not policy.reads_graphs:
        raise UserError(f"the policy in {path} reads Obs V3: give one that was trained with --network.kind graph")
    return exported(card, policy)


def network_of(policy: Checkpoint) -> NetworkConfig:
    """The network of an actor and critic with a checkpoint's weights, played as the checkpoint says."""
    config = policy.config
    return NetworkConfig(
        kind="graph",
        sage_width=config.sage_width,
        gat_width=config.gat_width,
        attention_heads=config.attention_heads,
        op_bias=config.op_bias,
        play_temperature=policy.play_temperature,
    )


def weights_of(policy: Checkpoint, path: Path) -> Weights:
    """A checkpoint's weights as an actor and critic's.

    Args:
        policy: The checkpoint.
        path: Where it was.
    """
    returns = torch.tensor([1.0, 0.0, policy.return_scale**2])  # one, around 0, that is as far from it as most
    state = {f"graphs.{name}": tensor for name, tensor in policy.weights.items()} | {"return_scale.moments": returns}
    return Weights(path, safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()}))


def exported(card: Card, policy: PolicyBundle) -> Checkpoint:
    """What an export's policy is without its world, by the names on its card.

    Its values stay in units of its first world's returns: of several scales an export keeps that one, and no return of
    another host was ever measured. It has been taught nothing beside its action and values: rewards do not, and what
    imitation taught the weights that they began with was of encoders that rewards have moved since.

    Args:
        card: Of the export.
        policy: Its policy, which reads graphs.
    """
    network = policy.network
    assert isinstance(network, GraphActorCritic)
    return Checkpoint(
        config=network.graphs.config,
        weights=network.graphs.state_dict(),
        registries=card.registries,
        normaliser=MetricNormaliser(),
        seen=network.graphs.scale.seen,
        tasks=card.env.task_names,
        min_epochs=card.env.horizons[0],
        max_epochs=card.env.horizons[-1],
        commit=card.git_commit,
        return_scale=float(network.return_scale.value),
        taught=NOTHING,
        play_temperature=card.network.play_temperature,
    )
