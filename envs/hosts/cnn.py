"""A small convolutional classifier with a slot after each block."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from envs.batched.activations import IMAGES
from envs.batched.layers import (
    average_pool,
    batch_norm,
    conv,
    conv_of_inference,
    fold_batch_norm,
    global_average_pool,
    linear,
)
from envs.batched.parameters import Init, ParameterSpec, ParameterSpecs, matrix_flops
from envs.hosts.base import Observe
from envs.hosts.structure import HostLayer


@dataclass(frozen=True)
class CnnVariant:
    """Size of one convolutional host.

    Attributes:
        widths: Output channels of each block.
        kernels: Kernel size of each block; 1 *impairs* the block (it cannot mix space), 3 is healthy.
        depth: Convolutions in each block, all of its width and kernel.

    Raises:
        ValueError: lengths differ, a kernel is even, a width is below 1, or no convolution.
    """

    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    depth: int = 1

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.kernels):
            raise ValueError(f"widths {self.widths} and kernels {self.kernels} must name the same one or more blocks")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"kernels must be odd and positive, got {self.kernels}")
        if min(self.widths) < 1:
            raise ValueError(f"widths must be at least 1, got {self.widths}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, got {self.depth}")

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Width and kernel size of every convolution, block by block."""
        blocks = zip(self.widths, self.kernels, strict=True)
        return [block for block in blocks for _ in range(self.depth)]

    @classmethod
    def widest(cls, variants: tuple[CnnVariant, ...]) -> CnnVariant:
        """The smallest size that holds every variant.

        Raises:
            ValueError: the variants differ in the number of blocks or in depth.
        """
        if len({(len(variant.widths), variant.depth) for variant in variants}) != 1:
            raise ValueError(
                f"the host variants of one task must have the same number of blocks and the same depth, got {variants}"
            )
        widths = tuple(max(sizes) for sizes in zip(*(variant.widths for variant in variants), strict=True))
        kernels = tuple(max(sizes) for sizes in zip(*(variant.kernels for variant in variants), strict=True))
        return cls(widths, kernels, variants[0].depth)


class CnnHost:
    """Blocks of ``depth`` times conv → batch norm → ReLU, then a 2×2 mean where the map allows; global pool; linear.

    Args:
        widest: Size that holds every member.
        in_channels: Channels of the images.
        num_classes: Outputs.
    """

    topology = "cnn"
    activations = IMAGES

    def __init__(self, widest: CnnVariant, in_channels: int, num_classes: int) -> None:
        self.widest = widest
        self.in_channels, self.num_classes = in_channels, num_classes

    @property
    def num_slots(self) -> int:
        """One slot after each block."""
        return len(self.widest.widths)

    def parameters(self, variant: CnnVariant) -> ParameterSpecs:
        """See :class:`envs.hosts.base.Host`."""
        specs: ParameterSpecs = {}
        c_in = self.in_channels
        for i, (width, kernel) in enumerate(variant.layers):
            specs[f"conv{i}"] = ParameterSpec((width, c_in, kernel, kernel), Init.HE)
            specs[f"norm{i}_weight"] = ParameterSpec((width,), Init.ONES)
            specs[f"norm{i}_bias"] = ParameterSpec((width,), Init.ZEROS)
            c_in = width
        specs["head_weight"] = ParameterSpec((self.num_classes, c_in), Init.UNIFORM)
        specs["head_bias"] = ParameterSpec((self.num_classes,), Init.ZEROS)
        return specs

    def buffers(self, variant: CnnVariant) -> ParameterSpecs:
        """See :class:`envs.hosts.base.Host`."""
        specs: ParameterSpecs = {}
        for i, (width, _) in enumerate(variant.layers):
            specs[f"mean{i}"] = ParameterSpec((width,), Init.ZEROS)
            specs[f"var{i}"] = ParameterSpec((width,), Init.ONES)
        return specs

    def slot_width(self, variant: CnnVariant, slot: int) -> int:
        """See :class:`envs.hosts.base.Host`."""
        return variant.widths[slot]

    def places(self, sample_shape: tuple[int, ...], slot: int) -> int:
        """See :class:`envs.hosts.base.Host`; images are ``[H, W, C]``."""
        return math.prod(self._map_sizes(sample_shape)[slot + 1])

    def segment_flops(self, variant: CnnVariant, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See :class:`envs.hosts.base.Host`."""
        specs, sizes, depth = self.parameters(variant), self._map_sizes(sample_shape), variant.depth
        blocks = (
            matrix_flops({name: specs[name] for name in (f"conv{slot * depth + i}" for i in range(depth))}, places)
            for slot, places in enumerate(map(math.prod, sizes[:-1]))
        )
        return (*blocks, matrix_flops({"": specs["head_weight"]}, 1))

    def _map_sizes(self, sample_shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Height and width of the map that each block sees, and behind them of the last one's output."""
        sizes = [(sample_shape[0], sample_shape[1])]
        for _ in range(self.num_slots):
            height, width = sizes[-1]
            sizes.append((height // 2, width // 2) if min(height, width) >= 2 else (height, width))
        return sizes

    def layers(self, variant: CnnVariant) -> tuple[HostLayer, ...]:
        """See :class:`envs.hosts.base.Host`."""
        layers: list[HostLayer] = []
        reads: tuple[str, ...] = ()
        for i in range(len(variant.layers)):
            block, norm = i // variant.depth, f"norm{i}"
            layers += [
                HostLayer(f"conv{i}", "conv2d", (f"conv{i}",), block, reads),
                HostLayer(norm, "batchnorm2d", (f"{norm}_weight", f"{norm}_bias"), block, (f"conv{i}",), "relu"),
            ]
            reads = (norm,)
        return (*layers, HostLayer("head", "linear", ("head_weight", "head_bias"), self.num_slots, reads))

    def layer_places(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """See :class:`envs.hosts.base.Host`; the head sees one, the mean over all."""
        of_blocks = map(math.prod, self._map_sizes(sample_shape)[:-1])
        return (*(places for places in of_blocks for _ in range(2 * self.widest.depth)), 1)

    def segment(
        self,
        slot: int,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        training: bool,
        observe: Observe | None = None,
    ) -> Tensor:
        """See :class:`envs.hosts.base.Host`; images are ``[M, B, H, W, C]``, shared ones ``[B, H, W, C]``."""
        p, h, depth = parameters, x, self.widest.depth
        for i in range(slot * depth, (slot + 1) * depth):
            kernel, mean, var = p[f"conv{i}"], buffers[f"mean{i}"], buffers[f"var{i}"]
            weight, bias, last = p[f"norm{i}_weight"], p[f"norm{i}_bias"], i == (slot + 1) * depth - 1
            if training:
                h = batch_norm(conv(h, kernel), weight, bias, mean, var, relu=True, pool=last)
                continue
            folded = fold_batch_norm(kernel, weight, bias, mean, var)
            if observe is None:
                h = conv_of_inference(h, *folded, pool=last)
            else:
                h = conv_of_inference(h, *folded, pool=False, relu=False)
                observe(f"norm{i}", h)
                h = average_pool(h.relu()) if last else h.relu()
        return h

    def head(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """See :class:`envs.hosts.base.Host`."""
        return linear(global_average_pool(x), parameters["head_weight"], parameters["head_bias"])
