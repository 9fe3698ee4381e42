"""What nothing can be grown with, or measured, and what to do instead: a sentence each, before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from envs.live.errors import LiveError

_ALONE = "grow the module in one process, and wrap or copy it to others when it is committed"
_NOT_GROWN: dict[type, str] = {
    nn.DataParallel: f"nn.DataParallel copies the model for every batch, and its copies cannot grow: {_ALONE}",
    DistributedDataParallel: (
        f"DistributedDataParallel fixes its gradient buckets when it is made, and knows no new parameters: {_ALONE}"
    ),
    FullyShardedDataParallel: f"FullyShardedDataParallel has split the parameters, and knows no new ones: {_ALONE}",
    FSDPModule: f"fully_shard has split the parameters, and knows no new ones: {_ALONE}",
    torch.jit.ScriptModule: "a ScriptModule calls no hooks: grow the plain module, and export it when it is committed",
}
_INSIDE = "give the probe the module inside, its .module, which has the same parameters"
_NOT_MEASURED: dict[type, str] = {
    nn.DataParallel: f"nn.DataParallel copies the model for every batch, and nobody sees what the copies do: {_INSIDE}",
    DistributedDataParallel: f"DistributedDataParallel waits in every forward for the other processes: {_INSIDE}",
    FullyShardedDataParallel: "FullyShardedDataParallel has split the parameters, and a probe reads whole ones",
    FSDPModule: "fully_shard has split the parameters, and a probe reads whole ones",
    torch.jit.ScriptModule: "a ScriptModule calls no hooks: train the plain module with a probe, and export it later",
}


def refuse_model(model: nn.Module) -> None:
    """Refuse what cannot be grown.

    Raises:
        LiveError: no module, a wrapper, or a compiled model.
    """
    _refuse(
        model,
        "cannot grow",
        _NOT_GROWN,
        "what was compiled does not see a slot: grow the plain module first, then torch.compile it",
    )


def refuse_to_measure(model: nn.Module) -> None:
    """Refuse what a probe cannot measure.

    Raises:
        LiveError: no module, a wrapper, a compiled model, or complex parameters.
    """
    _refuse(
        model,
        "cannot be measured",
        _NOT_MEASURED,
        "hooks do not see into what was compiled: make the probe first, then torch.compile it",
    )
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise LiveError(
                f"the parameter {name!r} is {parameter.dtype}, and a probe measures real numbers only: give it the "
                "part of the model that has no complex parameters"
            )


def _refuse(model: nn.Module, verdict: str, wrappers: Mapping[type, str], compiled: str) -> None:
    if not isinstance(model, nn.Module):
        raise LiveError(f"the model must be a torch.nn.Module, got a {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LiveError(
                f"the parameter {name!r} has no shape yet: run the model once, so that lazy modules get theirs"
            )
    for name, module in model.named_modules():
        where = f"the module {name!r}" if name else "the model"
        for wrapper, reason in wrappers.items():
            if isinstance(module, wrapper):
                raise LiveError(f"{where} {verdict}: {reason}")
        if isinstance(module, torch._dynamo.OptimizedModule) or compiled_in_place(module):
            raise LiveError(f"{where} is compiled already, and {compiled}")


def compiled_in_place(module: nn.Module) -> bool:
    """Whether the module's own ``compile`` was called, after which it is the module that it was."""
    return module._compiled_call_impl is not None


def refuse_processes() -> None:
    """Refuse to change structure in one of several processes that train together.

    Raises:
        LiveError: the default process group has more than one member.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = torch.distributed.get_world_size()
        if size > 1:
            raise LiveError(
                f"this process is one of {size} that train together, and only its own model would change: {_ALONE}"
            )


def refuse_stranger(wanted: str, given: object, *members: str) -> None:
    """Refuse an object that lacks what will be used of it.

    Args:
        wanted: What the argument must be, for the message.
        given: The object.
        members: What will be used of it, by name.

    Raises:
        LiveError: a class in place of its object, or an object that has not all of them.
    """
    if isinstance(given, type):
        raise LiveError(f"{wanted}, got the class {given.__name__} itself")
    for name in members:
        if not hasattr(given, name):
            raise LiveError(f"{wanted}, got a value of type {type(given).__name__}, which has no {name}")
