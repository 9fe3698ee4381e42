"""A trained strategic policy in a directory: weights as safetensors, and a JSON manifest of all that they depend on.

Weights mean nothing beside other names, other inputs or another scale. Whatever in the manifest does not fit is refused
under its own name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import safetensors.torch
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from envs.ranges import LARGEST
from policies.network_config import COLDEST
from policies.replacing import replacing
from policies.strategic.builder import GraphBuilder
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.packet_values import Message, Name
from policies.strategic.registries import Capacities, RegistryViews
from policies.strategic.schema import CONTEXT, FORWARD_RELATIONS, NODE_TYPES
from policies.strategic.seen import Seen
from policies.strategic.taught import NOTHING, Taught
from policies.weights import differences

ARCHITECTURE = "gnn_v1"
MANIFEST_FILE = "manifest.json"
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


T = TypeVar("T")


class NeverSeen(Message):
    """What training never showed: in play it is unknown, or not admitted."""

    inputs: tuple[Name, ...]
    """As KIND.NAME."""
    ops: tuple[Name, ...]
    """Names of ops."""
    blueprints: tuple[Name, ...]
    """Names of blueprints."""


class Manifest(Message):
    """What weights depend on."""

    architecture_version: Name
    """Of the network's form."""
    network: dict[str, Any]
    """Widths and the like."""
    schema_inputs: dict[str, tuple[Name, ...]]
    """What the network reads of each kind of node and edge, in order."""
    shapes: dict[str, tuple[int, ...]]
    """Of every tensor."""
    weights_sha256: Digest
    """Of the file of weights, whose name begins with it."""
    capacities: dict[str, int]
    """Names that each registry has room for."""
    registries: dict[str, tuple[str, ...]]
    """Names of each registry, in the order of their numbers."""
    registry_digests: dict[str, Digest]
    """SHA-256 of each registry."""
    normaliser: dict[str, dict[str, float]]
    """Mean and variance of each metric."""
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)]
    """What it was trained on."""
    min_epochs: Annotated[int, Field(ge=1)]
    """Of the shortest episode that it was trained over."""
    max_epochs: Annotated[int, Field(ge=1)]
    """Of the longest one."""
    commit: Annotated[str, Field(pattern="^[0-9a-f]{7,40}(-dirty)?$")] | None
    """Of the code that trained it; null outside a checkout."""
    never_seen: NeverSeen
    """What training never showed."""
    taught: Taught
    """What it taught beside the action and its values."""
    play_temperature: Annotated[float, Field(ge=COLDEST, le=LARGEST)]
    """At which actions are drawn."""
    return_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Reward units per unit of the network's values."""
    manifest_sha256: Digest | None = None
    """Of all the others, as canonical JSON."""

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Of a manifest's file. That it fits this program and its weights is for others to check.

        Raises:
            ValueError: it is none; the message names the first field at fault.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or MANIFEST_FILE
            raise ValueError(f"{where}: {first['msg']}") from error

    @property
    def own_digest(self) -> str:
        """What ``manifest_sha256`` has to be."""
        content = self.model_dump(mode="json", exclude={"manifest_sha256"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def weights_file(self) -> str:
        """Name of the file of weights. Another content has another name, so that none replaces one still in use."""
        return f"{self.weights_sha256[:16]}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A trained policy.

    Attributes:
        config: Of its network.
        weights: The network's state dict, on the CPU.
        registries: Numbers of the names that it knows.
        normaliser: Scale of the metrics.
        seen: What training showed.
        tasks: What it was trained on.
        min_epochs: Of the shortest episode that it was trained over.
        max_epochs: Of the longest one.
        commit: Of the code that trained it; None outside a checkout.
        return_scale: Reward units per unit of the network's values; 1 before any return was seen.
        taught: What it was taught beside its action and values.
        play_temperature: At which it draws its actions, wherever it is used.
    """

    config: GraphNetworkConfig
    weights: Mapping[str, Tensor]
    registries: RegistryViews
    normaliser: MetricNormaliser
    seen: Seen
    tasks: tuple[str, ...]
    min_epochs: int
    max_epochs: int
    commit: str | None
    return_scale: float = 1.0
    taught: Taught = NOTHING
    play_temperature: float = 1.0

    def network(self) -> GraphPolicyNetwork:
        """A network with these weights; torch's randomness is as it was before."""
        with torch.random.fork_rng(devices=()):
            network = GraphPolicyNetwork(self.config)
        network.load_state_dict(self.weights)
        return network

    def weights_for(self, registries: RegistryViews) -> dict[str, Tensor]:
        """The weights of a network whose names have other numbers; names that are new to it begin as unknown ones.

        Args:
            registries: The numbers that names have there, of the same capacities.

        Returns:
            A state dict of the same names and shapes: tables of embeddings ``[capacity + 1, width]`` have their rows in
            the order of ``registries``, the others are these weights themselves.
        """
        weights = dict(self.weights)
        for kind, node_type in NODE_TYPES.items():
            tables = {f"embeddings.{code.name}": code.name for of in node_type.embeddings for code in of.codes}
            if node_type.fallback is not None:
                tables["fallback"] = node_type.fallback.name
            for table, family in tables.items():
                if family in registries.views:
                    name = f"encoders.{kind}.{table}.weight"
                    numbers = [self.registries[family].index(known) for known in registries[family].names]
                    weights[name] = weights[name].clone()
                    weights[name][1 : len(numbers) + 1] = self.weights[name][numbers]
        return weights

    def save(self, directory: Path) -> None:
        """Write it into a directory, which is made; a checkpoint that is there is replaced whole or not at all.

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.weights.items()})
        manifest = self._manifest(hashlib.sha256(content).hexdigest())
        directory.mkdir(parents=True, exist_ok=True)
        before = _weights_before(directory)
        with replacing(directory / manifest.weights_file) as unfinished:
            unfinished.write_bytes(content)
        with replacing(directory / MANIFEST_FILE) as unfinished:
            unfinished.write_text(manifest.model_dump_json(indent=1) + "\n")
        if before is not None and before.name != manifest.weights_file:
            with suppress(OSError):  # it is only in the way
                before.unlink()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read one.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: something in it does not fit; the message names the field.
        """
        content = (directory / MANIFEST_FILE).read_bytes()
        try:
            return cls._checked(Manifest.read(content), directory)
        except ValueError as error:
            raise ValueError(f"{directory} holds no policy that can be used: {error}") from error

    def _manifest(self, weights_sha256: str) -> Manifest:
        manifest = Manifest(
            architecture_version=ARCHITECTURE,
            network=asdict(self.config),
            schema_inputs=schema_inputs(),
            shapes={name: tuple(tensor.shape) for name, tensor in sorted(self.weights.items())},
            weights_sha256=weights_sha256,
            capacities={family: view.capacity for family, view in self.registries.views.items()},
            registries=self.registries.names,
            registry_digests=self.registries.digests,
            normaliser=self.normaliser.to_json(),
            tasks=self.tasks,
            min_epochs=self.min_epochs,
            max_epochs=self.max_epochs,
            commit=self.commit,
            never_seen=NeverSeen(**self.seen.never),
            taught=self.taught,
            play_temperature=self.play_temperature,
            return_scale=self.return_scale,
        )
        return manifest.model_copy(update={"manifest_sha256": manifest.own_digest})

    @classmethod
    def _checked(cls, manifest: Manifest, directory: Path) -> Self:
        """A checkpoint of what fits, field by field.

        Raises:
            ValueError: the first that does not fit.
        """
        if manifest.architecture_version != ARCHITECTURE:
            raise ValueError(
                f"architecture_version: it is {manifest.architecture_version!r}, this program has {ARCHITECTURE!r}"
            )
        if manifest.schema_inputs != schema_inputs():
            raise ValueError("schema_inputs: the network of this program reads other inputs")
        config = _named("network", lambda: GraphNetworkConfig(**manifest.network))
        weights = _checked_weights(manifest, config, directory)
        capacities = _named("capacities", lambda: Capacities(**manifest.capacities))
        registries = _named("registries", lambda: RegistryViews.of(manifest.registries, capacities))
        _named("registry_digests", lambda: registries.check_digests(manifest.registry_digests))
        normaliser = MetricNormaliser()
        _named("normaliser", lambda: normaliser.load_json(manifest.normaliser))
        _named("capacities", lambda: GraphBuilder(registries, normaliser))
        seen = _named("never_seen", lambda: Seen.all_but(dict(manifest.never_seen)))
        if manifest.manifest_sha256 != manifest.own_digest:
            raise ValueError("manifest_sha256: the manifest was edited, it is not what training wrote")
        return cls(
            config=config,
            weights=weights,
            registries=registries,
            normaliser=normaliser,
            seen=seen,
            tasks=manifest.tasks,
            min_epochs=manifest.min_epochs,
            max_epochs=manifest.max_epochs,
            commit=manifest.commit,
            return_scale=manifest.return_scale,
            taught=manifest.taught,
            play_temperature=manifest.play_temperature,
        )


def _weights_before(directory: Path) -> Path | None:
    """The file of weights of the checkpoint that a directory holds; None where there is none that can be read."""
    try:
        return directory / Manifest.read((directory / MANIFEST_FILE).read_bytes()).weights_file
    except (OSError, ValueError):
        return None


def _named(field: str, made: Callable[[], T]) -> T:
    """What is made of a field.

    Raises:
        ValueError: it cannot be; the message names the field.
    """
    try:
        return made()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field}: {error}") from error


def schema_inputs() -> dict[str, tuple[str, ...]]:
    """What the network of this program reads of each kind of node and edge, in order."""
    nodes = {
        name: (*kind.columns.names, *(f"code {code.name} of {code.capacity}" for code in kind.codes))
        for name, kind in NODE_TYPES.items()
    }
    edges = {relation.name: relation.attributes.names for relation in FORWARD_RELATIONS}
    return nodes | edges | {"context": CONTEXT.names}


def _checked_weights(manifest: Manifest, config: GraphNetworkConfig, directory: Path) -> dict[str, Tensor]:
    """The tensors of the file of weights.

    Raises:
        ValueError: they are not those that the manifest and the network's widths say.
    """
    expected = layout(config)
    if manifest.shapes != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
        raise ValueError("shapes: they are not those of a network of these widths")
    try:
        content = (directory / manifest.weights_file).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"weights_sha256: there is no file {manifest.weights_file}") from error
    if hashlib.sha256(content).hexdigest() != manifest.weights_sha256:
        raise ValueError(f"weights_sha256: {manifest.weights_file} has other content, was it damaged?")
    return read_tensors(content, expected, manifest.weights_file)


def layout(config: GraphNetworkConfig) -> dict[str, Tensor]:
    """Names, shapes and types of the tensors of a network, without their content (on the meta device)."""
    with torch.device("meta"):
        return GraphPolicyNetwork(config).state_dict()


def read_tensors(content: bytes, expected: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors in a safetensors file, of which nothing is ever executed.

    Args:
        content: Of the file.
        expected: Names, shapes and types that it must have.
        name: Of the file, for messages.

    Raises:
        ValueError: it is no such file, or has other tensors.
    """
    try:
        weights = safetensors.torch.load(content)
    except (SafetensorError, KeyError) as error:  # the latter for a type that torch lacks
        raise ValueError(f"{name}: it is no readable safetensors file ({error})") from error
    if problems := differences(expected, weights):
        raise ValueError(f"{name}: {problems}")
    return weights
