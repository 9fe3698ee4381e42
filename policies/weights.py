"""Weights of a policy in a file: safetensors, so that reading one never runs code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from policies.bundle import PolicyBundle

SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Weights:
    """A file of weights, read whole: whatever becomes of the file, and in whichever process it is used.

    Attributes:
        path: Where it was, for messages.
        content: Its bytes.
    """

    path: Path
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            OSError: it cannot be read.
        """
        return cls(path, path.read_bytes())

    @cached_property
    def sha256(self) -> str:
        """Of the content, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict.

    Raises:
        OSError: it cannot be written.
    """
    path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()}))


def load_weights(policy: PolicyBundle, weights: Weights) -> None:
    """Give a policy the weights of a file. Names, shapes and types are compared before any of them is changed.

    Raises:
        ValueError: the file is not safetensors, or does not hold a policy of these sizes.
    """
    expected = policy.state_dict()
    slots = policy.slot_config.num_slots
    try:
        state = safetensors.torch.load(weights.content)
    except (SafetensorError, KeyError) as error:  # the latter for a type that torch lacks
        raise ValueError(
            f"{weights.path} does not hold a policy for {slots} slots: it is not a readable safetensors file ({error})"
        ) from error
    if problems := differences(expected, state):
        raise ValueError(
            f"{weights.path} does not hold a policy for {slots} slots of the widths in its config: {problems}"
        )
    policy.load_state_dict(state)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """How names, shapes or types of tensors differ, in words; empty if they do not."""
    problems = _differences(_shapes(expected), _shapes(found)) or _differences(_types(expected), _types(found))
    more = f", and {len(problems) - SHOWN_DIFFERENCES} more" if len(problems) > SHOWN_DIFFERENCES else ""
    return ", ".join(problems[:SHOWN_DIFFERENCES]) + more


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _types(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(tensor.dtype) for name, tensor in state.items()}


def _differences(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    missing = [f"no tensor {name}" for name in expected if name not in found]
    unknown = [f"unknown tensor {name}" for name in found if name not in expected]
    other = [
        f"{name} is {found[name]} instead of {wanted}"
        for name, wanted in expected.items()
        if name in found and found[name] != wanted
    ]
    return missing + unknown + other
