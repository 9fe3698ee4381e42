"""Layers that run for many members in one call.

Activations of image-shaped members are ``[B, H, W, M, C]``, contiguous: batch, height, width, member, channel.
Seen as ``[B, M·C, H, W]`` that is the channels_last memory format, so a grouped convolution, batch norm and
pooling over the merged channel axis need no copy. Weights lead with the member axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_WIDTH = 4
"""Channels in a normalisation group; a member with fewer than 4 channels is one group (see ``num_groups``)."""

NORM_EPS = 1e-5

MATRIX_ROWS = 256
"""Pixels in a batch up to which a 1×1 convolution is faster as a matrix product: what a oneDNN call costs before it
starts outweighs the product's poor use of few channels (docs/performance.md)."""


def merged(x: Tensor) -> Tensor:
    """``[B, H, W, M, C]`` as a channels_last ``[B, M·C, H, W]`` view."""
    return x.flatten(3).permute(0, 3, 1, 2)


def unmerged(x: Tensor, members: int) -> Tensor:
    """The inverse of :func:`merged`; copies only if ``x`` is not channels_last."""
    x = x.permute(0, 2, 3, 1)
    return x.reshape(*x.shape[:3], members, -1)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """One convolution per member, stride 1, same size.

    Args:
        x: ``[B, H, W, M, C_in]``.
        weight: ``[M, C_out, C_in, k, k]`` with odd k; for a depthwise one ``[M, C_in, 1, k, k]``.
        bias: ``[M, C_out]`` or None.
        relu: Whether a ReLU follows, as in the norms below. It is done here, since in place on what is returned, a
            view, it would make autograd copy the gradient.

    Returns:
        ``[B, H, W, M, C_out]``.
    """
    kernel, members = weight.shape[-1], x.shape[3]
    depthwise = weight.shape[2] != x.shape[4]
    if x.shape[1:3] == (1, 1) and kernel > 1:
        weight, kernel = weight[..., kernel // 2, kernel // 2, None, None], 1  # the rest of the kernel sees padding
    if kernel == 1 and not depthwise and x.shape[:3].numel() <= MATRIX_ROWS:
        return _pointwise(x, weight.flatten(2), bias, relu)
    out = F.conv2d(
        merged(x),
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        padding=kernel // 2,
        groups=members * x.shape[4] if depthwise else members,
    )
    return unmerged(out.relu_() if relu else out, members)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """A 1×1 convolution, weight ``[M, C_out, C_in]``, as one matrix product per member."""
    members, c_out, c_in = weight.shape
    rows, matrix = x.reshape(-1, members, c_in).transpose(0, 1), weight.transpose(1, 2)
    out = torch.bmm(rows, matrix) if bias is None else torch.baddbmm(bias[:, None], rows, matrix)
    return (out.relu_() if relu else out).transpose(0, 1).reshape(*x.shape[:4], c_out)


def conv_of_shared_input(x: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """Every member's convolution of the same images: one matrix product, no copy of the input per member.

    Args:
        x: ``[B, H, W, C_in]``.
        weight: ``[M, C_out, C_in, k, k]`` with odd k.
        bias: ``[M, C_out]``.
        relu: Whether a ReLU follows.

    Returns:
        ``[B, H, W, M, C_out]``.
    """
    kernel = weight.shape[-1]
    patches = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=kernel // 2).transpose(1, 2)
    out = F.linear(patches, weight.flatten(2).flatten(0, 1), bias.flatten())
    return (out.relu_() if relu else out).view(*x.shape[:3], *bias.shape)


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
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, relu: bool = False, momentum: float = 0.3
) -> Tensor:
    """Batch norm per member and channel, in training mode (for inference see :func:`fold_batch_norm`).

    Args:
        x: ``[B, H, W, M, C]``.
        weight: ``[M, C]``.
        bias: ``[M, C]``.
        mean: Running mean ``[M, C]``, contiguous, updated in place.
        var: Running variance ``[M, C]``, likewise.
        relu: Whether a ReLU follows.
        momentum: Weight of the newest batch in the running statistics. They are read after every epoch of a few
            batches: at torch's 0.1 they would still hold half of the epoch before, and a host into which a seed is
            being blended would look collapsed to the governor.
    """
    out = F.batch_norm(
        merged(x), mean.view(-1), var.view(-1), weight.flatten(), bias.flatten(), True, momentum, NORM_EPS
    )
    return unmerged(out.relu_() if relu else out, x.shape[3])


def num_groups(channels: int) -> int:
    """Normalisation groups of a member with this many channels.

    Groups have 4 channels, so that a group on a 1×1 map still has something to normalise; fewer channels are one
    group.

    Raises:
        ValueError: more than 3 channels that do not divide into groups of 4.
    """
    if channels < GROUP_WIDTH:
        return 1
    if channels % GROUP_WIDTH:
        raise ValueError(f"a width must be 1 to 3 or a multiple of {GROUP_WIDTH}, got {channels}")
    return channels // GROUP_WIDTH


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, present: Tensor | None, relu: bool = False) -> Tensor:
    """Group norm per member.

    Args:
        x: ``[B, H, W, M, C]``.
        weight: ``[M, C]``.
        bias: ``[M, C]``.
        present: ``[M, C]`` 1 where a channel exists in that member and 0 where it only pads a wider population,
            or None where all exist. Absent channels take no part in the statistics and stay 0.
        relu: Whether a ReLU follows.
    """
    members, channels = x.shape[3:]
    groups = num_groups(channels)
    if present is None:
        # On CPU torch 2.13 crashes in the channels_last backward if weight and bias want gradients and x does not.
        # Here x always does: it depends on the host's parameters, whose gradient is always asked for.
        out = F.group_norm(merged(x), members * groups, weight.flatten(), bias.flatten(), NORM_EPS)
        return unmerged(out.relu_() if relu else out, members)
    grouped = x.view(*x.shape[:4], groups, -1)
    mask = present.view(members, groups, -1)
    count = (mask.sum(2, keepdim=True) * x.shape[1] * x.shape[2]).clamp(min=1)
    centred = (grouped - (grouped * mask).sum((1, 2, 5), keepdim=True) / count) * mask
    var = centred.square().sum((1, 2, 5), keepdim=True) / count
    out = (centred * torch.rsqrt(var + NORM_EPS)).flatten(4) * weight + bias
    return out.relu_() if relu else out


def global_average_pool(x: Tensor) -> Tensor:
    """``[B, H, W, M, C]`` → ``[B, M, C]``."""
    return x.mean((1, 2))


def average_pool(x: Tensor) -> Tensor:
    """2×2 average pooling of ``[B, H, W, M, C]`` where the map has at least 2×2 cells, else ``x``."""
    if min(x.shape[1:3]) < 2:
        return x
    return unmerged(F.avg_pool2d(merged(x), 2), x.shape[3])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One affine map per member: ``[B, M, D_in]`` × ``[M, D_out, D_in]`` + ``[M, D_out]`` → ``[B, M, D_out]``."""
    return torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
