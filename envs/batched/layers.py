"""Layers that run for many members in one call.

Activations of image-shaped members are ``[M, B, H, W, C]``, contiguous: member, batch, height, width, channel. Weights
lead with the member axis too. On a CPU the compiled kernels compute (``envs.batched.kernels``); elsewhere, and where
there is no compiler, the same is written with torch's own operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.activations import stack
from envs.batched.groups import group_size, group_sizes
from envs.batched.kernels.differentiable import BatchNorm, Conv, ConvRelu, Depthwise, GroupNorm
from envs.batched.kernels.operators import compiled

NORM_EPS = 1e-5
NORM_MOMENTUM = 0.3
"""Weight of the newest batch in the running statistics of batch norm.

They are read after every epoch of a few batches: at torch's 0.1 they would still hold half of the epoch before, and a
host into which a seed is being blended would look collapsed to the governor.
"""


def conv_of_inference(x: Tensor, weight: Tensor, bias: Tensor, pool: bool, relu: bool = True) -> Tensor:
    """A convolution, a ReLU if ``relu`` and, if ``pool``, :func:`average_pool`, without a gradient.

    Args:
        x: ``[M, B, H, W, C_in]``, or ``[B, H, W, C_in]``, images that all members share.
        weight: ``[M, C_out, C_in, k, k]`` with odd k.
        bias: ``[M, C_out]``.
        pool: Whether the pooling follows.
        relu: Whether the ReLU follows.

    Returns:
        ``[M, B, H, W, C_out]``, of half the height and width if ``pool`` and the map allows.
    """
    pool = pool and min(x.shape[-3:-1]) >= 2
    if compiled(x):
        return torch.ops.esper.conv(x.contiguous(), weight, bias, relu, pool)
    out = _conv_by_patches(x, weight, bias)
    out = out.relu_() if relu else out
    return average_pool(out) if pool else out


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """One convolution per member, stride 1, same size.

    Args:
        x: ``[M, B, H, W, C_in]``.
        weight: ``[M, C_out, C_in, k, k]`` with odd k; for a depthwise one ``[M, C_in, 1, k, k]``.
        bias: ``[M, C_out]`` or None.
        relu: Whether a ReLU follows.

    Returns:
        ``[M, B, H, W, C_out]``.
    """
    if weight.shape[2] != x.shape[-1]:
        return _depthwise(x, weight)
    if compiled(x):
        if relu and bias is not None:
            return ConvRelu.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        out = Conv.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    elif len(weight) == 1:
        out = _conv_of_one(x, weight, bias)
    else:
        out = _conv_by_patches(x, weight, bias)
    return out.relu() if relu else out


def _conv_of_one(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """A convolution of a single member, whose images may lie in memory channels first."""
    images = x.squeeze(0).permute(0, 3, 1, 2)
    own_bias = None if bias is None else bias.squeeze(0)
    out = F.conv2d(images, weight.squeeze(0), own_bias, padding=weight.shape[-1] // 2, groups=groups)
    return out.permute(0, 2, 3, 1).unsqueeze(0)


def _conv_by_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution as one matrix product per member, over what each pixel's kernel sees."""
    members, outputs, _, k, _ = weight.shape
    if x.shape[-3:-1] == (1, 1):
        weight, k = weight[..., k // 2, k // 2, None, None], 1  # the rest of the kernel sees padding
    patches = x if k == 1 else _Patches.apply(x, k)  # type: ignore[no-untyped-call]
    matrix = weight.permute(0, 3, 4, 2, 1).reshape(members, -1, outputs)
    rows = patches.reshape(-1, patches.shape[-1]) if x.dim() == 4 else patches.flatten(1, 3)
    out = torch.matmul(rows, matrix) if bias is None else torch.matmul(rows, matrix) + bias[:, None]
    return out.view(members, *x.shape[-4:-1], outputs)


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    if compiled(x):
        return Depthwise.apply(x, weight)  # type: ignore[no-untyped-call]
    if len(weight) == 1:
        return _conv_of_one(x, weight, None, groups=x.shape[-1])
    k, channels = weight.shape[-1], x.shape[-1]
    taps = weight.flatten(2).transpose(1, 2)  # [M, k·k, C]
    patches = _Patches.apply(x, k).unflatten(-1, (k * k, channels))  # type: ignore[no-untyped-call]
    return (patches * taps[:, None, None, None]).sum(-2)


class _Patches(torch.autograd.Function):
    """What a k×k kernel sees at each pixel, ``[..., H, W, C]`` → ``[..., H, W, k·k·C]``; beyond the edge zeros.

    By hand, because autograd would write and add a padded copy of the gradient for each of the kernel's taps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        ctx.k, ctx.shape = k, x.shape
        padded = F.pad(x, (0, 0, k // 2, k // 2, k // 2, k // 2))
        return torch.cat([_shifted(padded, tap, x.shape, k) for tap in range(k * k)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        k, shape = ctx.k, ctx.shape
        padded = grads[0].new_zeros(*shape[:-3], shape[-3] + k - 1, shape[-2] + k - 1, shape[-1])
        for tap, gradient in enumerate(grads[0].split(shape[-1], dim=-1)):
            _shifted(padded, tap, shape, k).add_(gradient)
        return padded[..., k // 2 : k // 2 + shape[-3], k // 2 : k // 2 + shape[-2], :], None


def _shifted(padded: Tensor, tap: int, shape: torch.Size, k: int) -> Tensor:
    row, column = divmod(tap, k)
    return padded[..., row : row + shape[-3], column : column + shape[-2], :]


def fold_batch_norm(kernel: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals this one followed by batch norm in inference mode.

    Args:
        kernel: ``[M, C_out, C_in, k, k]``.
        weight: Of the norm, ``[M, C_out]``, like its ``bias`` and its running ``mean`` and ``var``.
        bias: See ``weight``.
        mean: See ``weight``.
        var: See ``weight``.
    """
    scale = weight * torch.rsqrt(var + NORM_EPS)
    return kernel * scale[..., None, None, None], torch.addcmul(bias, mean, scale, value=-1.0)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    relu: bool = False,
    pool: bool = False,
    momentum: float = NORM_MOMENTUM,
) -> Tensor:
    """Batch norm per member and channel, in training mode (for inference see :func:`fold_batch_norm`).

    Args:
        x: ``[M, B, H, W, C]``.
        weight: ``[M, C]``.
        bias: ``[M, C]``.
        mean: Running mean ``[M, C]``, contiguous, updated in place.
        var: Running variance ``[M, C]``, likewise.
        relu: Whether a ReLU follows.
        pool: Whether :func:`average_pool` follows.
        momentum: Weight of the newest batch in the running statistics.
    """
    pool = pool and min(x.shape[2:4]) >= 2
    if compiled(x):
        return BatchNorm.apply(x, weight, bias, mean, var, relu, pool, momentum, NORM_EPS)  # type: ignore[no-untyped-call]
    batch_var, batch_mean = torch.var_mean(x, (1, 2, 3), correction=0)
    with torch.no_grad():
        count = x.shape[1:4].numel()
        mean.lerp_(batch_mean, momentum)
        var.lerp_(batch_var * (count / max(1, count - 1)), momentum)
    scale = weight * torch.rsqrt(batch_var + NORM_EPS)
    shift = torch.addcmul(bias, batch_mean, scale, value=-1.0)
    out = torch.addcmul(_beside(shift), x, _beside(scale))
    out = out.relu_() if relu else out
    return average_pool(out) if pool else out


def _beside(values: Tensor) -> Tensor:
    """``[M, C]`` in the shape that broadcasts against images."""
    return values[:, None, None, None]


def group_norm(
    x: Tensor | Sequence[Tensor], weight: Tensor, bias: Tensor, present: Tensor | None, relu: bool = False
) -> Tensor:
    """Group norm per member, in groups of :func:`envs.batched.groups.group_size`.

    Args:
        x: ``[M, B, H, W, C]``, or some members' images and others'.
        weight: ``[M, C]``.
        bias: ``[M, C]``.
        present: int64 ``[M]``, how many channels exist in that member, or None where all do. The others only pad a
            wider population: 0 in what is given, they take no part in the statistics and stay 0.
        relu: Whether a ReLU follows.
    """
    pieces = [x] if isinstance(x, Tensor) else list(x)
    if compiled(pieces[0]):
        return GroupNorm.apply(weight, bias, present, relu, NORM_EPS, *pieces)  # type: ignore[no-untyped-call]
    images = stack(pieces)
    normal = _normal_in_groups(images) if present is None else _normal_in_own_groups(images, present)
    # Not by torch's own group norm: on a CPU it crashes where weight or bias want a gradient and the input does not.
    out = torch.addcmul(_beside(bias), normal, _beside(weight))
    return out.relu_() if relu else out


def _normal_in_groups(images: Tensor) -> Tensor:
    maps, channels = images.flatten(0, 1).movedim(-1, 1), images.shape[-1]
    return torch.group_norm(maps, channels // group_size(channels), eps=NORM_EPS).movedim(1, -1).view_as(images)


def _normal_in_own_groups(images: Tensor, present: Tensor) -> Tensor:
    """The same where members have different widths, and so different groups, which are means by a matrix here."""
    channels = images.shape[-1]
    size = group_sizes(channels, images.device)[present][:, None]
    channel = torch.arange(channels, device=images.device)
    group = torch.where(channel < present[:, None], channel // size, -1)
    together = (group[:, :, None] == group[:, None]) & (group[:, None] >= 0)
    average = together.to(images.dtype) / size[:, None]
    centred = images - (images.mean((2, 3)) @ average)[:, :, None, None]
    var = centred.square().mean((2, 3)) @ average
    return centred * torch.rsqrt(var + NORM_EPS)[:, :, None, None]


def global_average_pool(x: Tensor) -> Tensor:
    """``[M, B, H, W, C]`` → ``[M, B, C]``."""
    return x[:, :, 0, 0] if x.shape[2:4] == (1, 1) else x.mean((2, 3))


def average_pool(x: Tensor) -> Tensor:
    """2×2 average pooling of ``[M, B, H, W, C]`` where the map has at least 2×2 cells, else ``x``."""
    if min(x.shape[2:4]) < 2:
        return x
    pooled = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2)
    return pooled.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One affine map per member: ``[M, B, D_in]`` × ``[M, D_out, D_in]`` + ``[M, D_out]`` → ``[M, B, D_out]``."""
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
