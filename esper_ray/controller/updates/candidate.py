"""Whether an update's weights can be trusted to be loaded: all that can be said of them without running them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from esper_ray.controller.updates.policy_update import PolicyUpdate
from esper_ray.controller.updates.verdicts import UpdateReason, UpdateRejected
from policies.strategic.checkpoint import ARCHITECTURE, Manifest, layout, read_tensors, schema_inputs
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Capacities, RegistryViews
from policies.strategic.seen import Seen

MOST_WEIGHT_BYTES = 64 << 20
MOST_HEADER_BYTES = 1 << 20
"""Of a safetensors file's header, which is JSON; that of any of our networks has a hundredth."""
_LENGTH_BYTES = 8


def read_update(payload: bytes) -> tuple[PolicyUpdate, Manifest]:
    """What an envelope holds, taken apart and not believed.

    Raises:
        UpdateRejected: it is no update, or its manifest none that training writes.
    """
    try:
        update = PolicyUpdate.of(payload)
        manifest = Manifest.read(update.head.manifest.encode())
        if manifest.manifest_sha256 != manifest.own_digest:
            raise ValueError("manifest_sha256: the manifest was edited, it is not what training wrote")
        MetricNormaliser().load_json(manifest.normaliser)
        Seen.all_but(dict(manifest.never_seen))
    except (ValueError, TypeError, RecursionError) as error:
        raise UpdateRejected(UpdateReason.MALFORMED, str(error)) from error
    return update, manifest


def check_weights(update: PolicyUpdate, manifest: Manifest, live: Manifest) -> None:
    """Hold an update's weights to its manifest and to the live policy's.

    Args:
        update: To check.
        manifest: Its own, read.
        live: Of the policy that decides.

    Raises:
        UpdateRejected: the first that does not fit.
    """
    if len(update.weights) > MOST_WEIGHT_BYTES:
        detail = f"its weights have {len(update.weights):,} bytes, and may have {MOST_WEIGHT_BYTES:,}"
        raise UpdateRejected(UpdateReason.TOO_LARGE, detail)
    _check_architecture(manifest, live)
    found = hashlib.sha256(update.weights).hexdigest()
    if found != manifest.weights_sha256:
        detail = f"its weights' SHA-256 is {found[:16]}…, its manifest says {manifest.weights_sha256[:16]}…"
        raise UpdateRejected(UpdateReason.WEIGHTS_SHA256, detail)
    _check_registries(manifest, live)
    weights = _tensors(update.weights, manifest)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise UpdateRejected(UpdateReason.NOT_FINITE, f"{name} is not finite")


def _check_architecture(manifest: Manifest, live: Manifest) -> None:
    if manifest.architecture_version != ARCHITECTURE:
        detail = f"it is {manifest.architecture_version!r}, this program has {ARCHITECTURE!r}"
        raise UpdateRejected(UpdateReason.ARCHITECTURE, detail)
    if manifest.schema_inputs != schema_inputs():
        raise UpdateRejected(UpdateReason.ARCHITECTURE, "the network of this program reads other inputs")
    if manifest.network != live.network:
        detail = f"its network is {manifest.network}, that of the live policy {live.network}"
        raise UpdateRejected(UpdateReason.ARCHITECTURE, detail)


def _check_registries(manifest: Manifest, live: Manifest) -> None:
    """A name keeps its number for good, so that the live policy's come first; new ones may follow."""
    try:
        if manifest.capacities != live.capacities:
            raise ValueError(f"there is room for {manifest.capacities}, in the live policy for {live.capacities}")
        registries = RegistryViews.of(manifest.registries, Capacities(**manifest.capacities))
        registries.check_digests(manifest.registry_digests)
        for family, names in live.registries.items():
            if registries[family].names[: len(names)] != names:
                raise ValueError(f"{family} has other names than in the live policy, or in another order")
    except (ValueError, TypeError, KeyError) as error:
        raise UpdateRejected(UpdateReason.REGISTRIES, str(error)) from error


def _tensors(content: bytes, manifest: Manifest) -> Mapping[str, Tensor]:
    """An update's tensors. A file of another size than the network's is not even parsed.

    Raises:
        UpdateRejected: they are not those of its network.
    """
    try:
        expected = layout(GraphNetworkConfig(**manifest.network))
        if manifest.shapes != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
            raise ValueError("the shapes in the manifest are not those of a network of these widths")
        header = int.from_bytes(content[:_LENGTH_BYTES], "little")
        if header > MOST_HEADER_BYTES:
            raise ValueError(
                f"the header of its weights would have {header:,} bytes, and may have {MOST_HEADER_BYTES:,}"
            )
        size = _LENGTH_BYTES + header + sum(tensor.nbytes for tensor in expected.values())
        if len(content) != size:
            raise ValueError(f"its weights have {len(content):,} bytes, those of its network would have {size:,}")
        return read_tensors(content, expected, "its weights")
    except Exception as error:  # of bytes that anybody with a key may have written
        raise UpdateRejected(UpdateReason.SHAPES, str(error)) from error
