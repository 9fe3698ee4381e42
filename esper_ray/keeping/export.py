"""A trained policy to hand on: its weights, and a card that says what they are.

An export is a directory with ``policy.safetensors`` and ``card.json``. Reading one never runs code that came with it.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter

from envs.slots import SlotConfig
from esper_ray.config import EnvConfig, TrainConfig
from esper_ray.errors import UserError
from esper_ray.keeping.policy_settings import policy_settings, trained_names
from esper_ray.keeping.run_directory import POLICY_FILE, Checkpoint, RunDirectory, Which
from esper_ray.keeping.writing import make_directories, remove_empty, replace_bytes, replace_text, writing
from esper_ray.reading import checked, read_json
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.network_config import NetworkConfig
from policies.replacing import UNFINISHED
from policies.strategic.registries import Capacities, RegistryViews
from policies.weights import Weights, load_weights

CARD_FILE = "card.json"
LONGEST_REASON = 200


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Score(_Strict):
    """How a run did in one iteration.

    Attributes:
        iteration: Iterations done.
        score: Mean committed validation score of that iteration's episodes; None if none ended.
        max_epochs: Epochs of these episodes; None on a card of before they were drawn.
    """

    iteration: int
    score: float | None
    max_epochs: int | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainConfig) -> Self:
        """That of a checkpoint of a run with this config."""
        score = checkpoint.score if math.isfinite(checkpoint.score) else None
        played = config.env_in(checkpoint.iteration - 1)
        return cls(iteration=checkpoint.iteration, score=score, max_epochs=played.longest)


class Sizes(_Strict):
    """What must be the same where the policy is used.

    Attributes:
        features: Measured numbers of an observation.
        heads: Choices of every head, in the order of the outputs.
        parameters: Numbers in the network.
    """

    features: int
    heads: dict[str, tuple[str, ...]]
    parameters: int

    @classmethod
    def of(cls, policy: PolicyBundle) -> Self:
        """Those of a policy."""
        weights = policy.network.parameters() if policy.network is not None else ()
        heads = {head.name: head.choices for head in policy.slot_config.heads}
        return cls(features=policy.feature_dim, heads=heads, parameters=sum(weight.numel() for weight in weights))

    def described(self) -> dict[str, object]:
        """Every size by its name, for messages."""
        heads = {f"head {name}": ", ".join(choices) for name, choices in self.heads.items()}
        order = ", ".join(self.heads)
        return {
            "number of features": self.features,
            "order of heads": order,
            **heads,
            "number of parameters": self.parameters,
        }


class Card(_Strict):
    """What an export says about itself.

    Attributes:
        format: Of card and weights.
        env: Task and world of the training, but for where this machine keeps the task's data. ``max_epochs`` is an
            interval if the training drew how long episodes are.
        slots: Slots of the task's hosts.
        network: What it is, its widths, and how it is played.
        names: Registry family → the names that a policy that reads graphs knows; empty if it does not.
        registry_digests: Registry family → the digest of its names, as they were when the card was written.
        sizes: What follows from the ones above in the code that wrote the card.
        git_commit: Of the code that trained; None if it was no checkout.
        iteration: Iterations that these weights were trained for.
        latest: The run's last iteration when it was exported.
        best: The run's best iteration.
        weights_sha256: Of the weights' file, hexadecimal.
    """

    format: Literal["esper-ray policy 1"] = "esper-ray policy 1"
    env: EnvConfig
    slots: SlotConfig
    network: NetworkConfig
    names: dict[str, tuple[str, ...]] = {}
    registry_digests: dict[str, str] = {}
    sizes: Sizes
    git_commit: str | None
    iteration: int
    latest: Score
    best: Score
    weights_sha256: str

    @property
    def topologies(self) -> tuple[str, ...]:
        """Of the hosts of the training."""
        return tuple(sorted({world.make_task().host.topology for world in self.env.worlds}))

    @property
    def registries(self) -> RegistryViews:
        """Numbers of the names.

        Raises:
            ValueError: they are no names that registries have, as those of a policy that reads no graphs.
        """
        return RegistryViews.of(self.names, Capacities())

    @property
    def settings(self) -> PolicySettings:
        """What the policy is built from, in the first world of its training."""
        return policy_settings(self.env, self.network, self.names)


def write_export(run: RunDirectory, which: Which, out: Path) -> Card:
    """Write a checkpoint's policy into a new or empty directory, and then its card, which makes it an export.

    Args:
        run: Whose checkpoint.
        which: Of its checkpoints.
        out: The directory; what is there already must be empty.

    Returns:
        The card.

    Raises:
        UserError: no usable checkpoint, or ``out`` holds something or cannot be written.
    """
    config = run.config()
    index, weights = run.policy(which)
    settings = policy_settings(config.env, config.network, trained_names(config.env, config.network))
    policy = load_policy(settings, weights)
    card = Card(
        env=dataclasses.replace(config.env, data_dir=None),
        slots=settings.slots,
        network=settings.network,
        names=dict(settings.names),
        registry_digests=RegistryViews.of(settings.names, Capacities()).digests if settings.names else {},
        sizes=Sizes.of(policy),
        git_commit=index[which].git_commit,
        iteration=index[which].iteration,
        latest=Score.of(index["latest"], config),
        best=Score.of(index["best"], config),
        weights_sha256=weights.sha256,
    )
    made = make_directories(out)
    try:
        with writing(out):
            empty = all(path.name.endswith(UNFINISHED) for path in out.iterdir())
        if not empty:
            raise UserError(f"{out} exists and is not empty: choose another directory for the export")
        _write_files(out, weights, card)
    finally:
        remove_empty(made)
    return card


def _write_files(out: Path, weights: Weights, card: Card) -> None:
    """Both or neither."""
    replace_bytes(out / POLICY_FILE, weights.content)
    try:
        replace_text(out / CARD_FILE, card.model_dump_json(indent=2) + "\n")
    except BaseException:
        (out / POLICY_FILE).unlink()
        raise


def load_export(path: Path) -> tuple[Card, PolicyBundle]:
    """The policy that :func:`write_export` wrote, here or elsewhere, and its card.

    Raises:
        UserError: as :func:`read_export`, or the weights are not of this policy's sizes.
    """
    card, weights = read_export(path)
    return card, load_policy(card.settings, weights)


def read_export(path: Path) -> tuple[Card, Weights]:
    """Read what :func:`write_export` wrote, here or elsewhere.

    Raises:
        UserError: a file is missing, damaged or not of this kind, or the policy does not fit the task as it is here.
    """
    card = _read_card(path / CARD_FILE)
    settings = card.settings
    if settings.slots != card.slots:
        raise UserError(f"{path} was trained for {card.slots}, but task {card.env.task!r} has {settings.slots} here")
    try:
        # On the meta device widths cost no memory, however wrong they are.
        sizes = Sizes.of(build_policy(LEARNED, settings, device="meta"))
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path / CARD_FILE} is of no network that can be built: {_one_line(error)[:LONGEST_REASON]}"
        ) from error
    here, there = sizes.described(), card.sizes.described()
    for name in (*here, *there):
        if here.get(name) != there.get(name):
            raise UserError(
                f"{path} does not fit this version: {name} is {there.get(name)} in its card, {here.get(name)} here"
            )
    if card.names:
        try:
            card.registries.check_digests(card.registry_digests)
        except ValueError as error:
            raise UserError(
                f"{path / CARD_FILE} does not fit its weights: {error}; copy or write the export again"
            ) from error
    try:
        weights = Weights.read(path / POLICY_FILE)
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): copy the export again") from error
    if weights.sha256 != card.weights_sha256:
        raise UserError(
            f"{weights.path} is not the file that {CARD_FILE} describes: its SHA-256 differs, copy it again"
        )
    return card, weights


def load_policy(settings: PolicySettings, weights: Weights) -> PolicyBundle:
    """The trained policy with its weights; torch's randomness is as it was before.

    Raises:
        UserError: they are not of these sizes.
    """
    with torch.random.fork_rng(devices=()):  # initial weights are drawn before these take their place
        policy = build_policy(LEARNED, settings)
    try:
        load_weights(policy, weights)
    except ValueError as error:
        raise UserError(f"{error}; use the config it was trained with, or train anew") from error
    return policy


def _read_card(path: Path) -> Card:
    if not path.is_file():
        raise UserError(f"{path.parent} is no export: it has no {CARD_FILE}")
    return checked(read_json(path), TypeAdapter(Card), f"{path} is not a card of this version")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
