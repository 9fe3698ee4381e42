"""Checkpoints of policies that decide or decided, each in a directory that never changes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

from esper_ray.errors import UserError
from esper_ray.keeping.strategic_policy import checkpoint_in
from esper_ray.keeping.writing import make_directories, new_directory
from policies.strategic.checkpoint import MANIFEST_FILE, Manifest

DIRECTORY = "updates"
"""Where in a state directory they are."""
_LETTERS = 16
"""Of a policy's version, in the name of its directory."""


class UpdateFiles:
    """Keeps checkpoints by the version of their policy: the SHA-256 of the manifest, in which that of the weights is.

    Args:
        directory: Of the service's state.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = (directory / DIRECTORY).absolute()

    def path_of(self, policy_version: str) -> Path:
        """Where a policy is, if it is kept."""
        return self._directory / policy_version[:_LETTERS]

    def manifest_of(self, policy_version: str) -> Manifest:
        """What a policy's weights depend on.

        Raises:
            UserError: it is not kept, or not as it was.
        """
        place = self.path_of(policy_version)
        try:
            content = (place / MANIFEST_FILE).read_bytes()
            if hashlib.sha256(content).hexdigest() != policy_version:
                raise ValueError("it was changed since it was written")
            return Manifest.read(content)
        except (OSError, ValueError) as error:
            raise UserError(f"the policy {policy_version[:_LETTERS]} in {place} cannot be used: {error}") from error

    def keep(self, manifest: bytes, weights_file: str, weights: bytes) -> Path:
        """Write a checkpoint, whole or not at all; one that is there is that very one, or is written anew.

        Raises:
            UserError: it cannot be written.
        """
        place = self.path_of(hashlib.sha256(manifest).hexdigest())
        if self._holds(place, manifest, weights_file, weights):
            return place
        shutil.rmtree(place, ignore_errors=True)
        make_directories(self._directory)
        with new_directory(place) as unfinished:
            (unfinished / weights_file).write_bytes(weights)
            (unfinished / MANIFEST_FILE).write_bytes(manifest)
        return place

    def keep_copy(self, policy: str, policy_version: str) -> bool:
        """Keep the checkpoint that somebody began with, whatever becomes of it where it is.

        Args:
            policy: Where it is.
            policy_version: That it must have.

        Returns:
            Whether it is the checkpoint of a graph policy.

        Raises:
            UserError: it cannot be read or written, or has changed.
        """
        origin = checkpoint_in(Path(policy).expanduser())
        if origin is None:
            return False
        try:
            content = (origin / MANIFEST_FILE).read_bytes()
            weights_file = Manifest.read(content).weights_file
            weights = (origin / weights_file).read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot keep the policy in {origin}: {error}") from error
        if hashlib.sha256(content).hexdigest() != policy_version:
            raise UserError(f"the policy in {origin} has changed since it was started: start again")
        self.keep(content, weights_file, weights)
        return True

    def drop(self, policy_version: str) -> None:
        """Remove a policy, if it is there."""
        shutil.rmtree(self.path_of(policy_version), ignore_errors=True)

    def tidy(self, policy_versions: Collection[str]) -> None:
        """Remove all policies but these."""
        kept = {self.path_of(version) for version in policy_versions}
        for place in self._directory.glob("*"):
            if place not in kept:
                shutil.rmtree(place, ignore_errors=True)

    @staticmethod
    def _holds(place: Path, manifest: bytes, weights_file: str, weights: bytes) -> bool:
        try:
            return (place / MANIFEST_FILE).read_bytes() == manifest and (place / weights_file).read_bytes() == weights
        except OSError:
            return False
