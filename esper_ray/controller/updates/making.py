"""An update of what lies in a directory."""

from __future__ import annotations

from pathlib import Path

from esper_ray.controller.updates.policy_update import PolicyUpdate, UpdateHead
from esper_ray.errors import UserError
from esper_ray.keeping.strategic_policy import checkpoint_in
from policies.strategic.checkpoint import MANIFEST_FILE, Checkpoint, Manifest


def update_of(directory: Path, version: int, trained_on: str = "") -> PolicyUpdate:
    """The checkpoint of a graph policy as an update, its manifest and weights byte by byte.

    Args:
        directory: Of a checkpoint, or of the imitation that wrote it.
        version: Number of the update, above all that the service has accepted.
        trained_on: What its last training was, in words.

    Raises:
        UserError: there is no checkpoint, or one that cannot be used.
    """
    place = checkpoint_in(directory)
    if place is None:
        raise UserError(f"{directory} holds no checkpoint of a graph policy ({MANIFEST_FILE})")
    try:
        Checkpoint.load(place)  # what cannot be used here cannot be there
        manifest = (place / MANIFEST_FILE).read_bytes().decode()
        weights = (place / Manifest.read(manifest.encode()).weights_file).read_bytes()
        return PolicyUpdate(head=UpdateHead(version=version, manifest=manifest, trained_on=trained_on), weights=weights)
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be an update: {error}") from error
