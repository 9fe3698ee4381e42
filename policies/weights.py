"""Weights of a policy in a file: safetensors, so that reading one never runs code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from policies.bundle import PolicyBundle

SHOWN_DIFFERENCES = 3


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def load_weights(policy: PolicyBundle, path: Path) -> None:
    """Give a policy the weights of a file. Names and shapes are compared before any tensor is read.

    Raises:
        ValueError: the file is not safetensors, or does not hold a policy of these sizes.
    """
    expected = policy.state_dict()
    slots = policy.slot_config.num_slots
    try:
        with safe_open(path, framework="pt", device=str(policy.device)) as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            problems = _differences({name: tuple(tensor.shape) for name, tensor in expected.items()}, shapes)
            if not problems:
                state = {name: file.get_tensor(name) for name in shapes}
                problems = _differences(_types(expected), _types(state))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} does not hold a policy for {slots} slots: it is not a readable safetensors file ({error})"
        ) from error
    if problems:
        more = f", and {len(problems) - SHOWN_DIFFERENCES} more" if len(problems) > SHOWN_DIFFERENCES else ""
        raise ValueError(
            f"{path} does not hold a policy for {slots} slots of the widths in its config: "
            f"{', '.join(problems[:SHOWN_DIFFERENCES])}{more}"
        )
    policy.load_state_dict(state)


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
