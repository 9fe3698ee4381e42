"""What a host must offer, whatever its topology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from envs.batched.activations import ActivationLayout
from envs.batched.parameters import ParameterSpecs
from envs.hosts.structure import HostLayer

VariantT = TypeVar("VariantT")

Grow = Callable[[int, Tensor], Tensor]
"""Called after each segment with the slot's index and the activation; returns what the next segment sees."""

Observe = Callable[[str, Tensor], None]
"""Called with the name of a layer and what its activation function is about to read, ``[M, B, ..., C]``."""


class Host(Protocol, Generic[VariantT]):
    """A base network for many members at once; a *variant* says how large one member is.

    A variant's class has ``widest(variants)``: the smallest that holds them all, or a ValueError where none can.
    """

    topology: str
    activations: ActivationLayout
    widest: VariantT

    @property
    def num_slots(self) -> int:
        """Slots, one after each segment."""
        ...

    def parameters(self, variant: VariantT) -> ParameterSpecs:
        """Parameters of one member."""
        ...

    def buffers(self, variant: VariantT) -> ParameterSpecs:
        """State of one member that is not trained (running statistics)."""
        ...

    def slot_width(self, variant: VariantT, slot: int) -> int:
        """Channels of a member at a slot."""
        ...

    def places(self, sample_shape: tuple[int, ...], slot: int) -> int:
        """Pixels or tokens of one sample at a slot; 1 for vectors.

        Args:
            sample_shape: Axes of one input.
            slot: Index of the slot.
        """
        ...

    def segment_flops(self, variant: VariantT, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """FLOPs of one sample's forward through each segment of one member, and last through its head.

        What counts is said at ``SeedModule.flops``.
        """
        ...

    def layers(self, variant: VariantT) -> tuple[HostLayer, ...]:
        """The layers of one member, in the order in which data pass them; all variants of a host have the same."""
        ...

    def layer_places(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels or tokens of one sample at which each layer is applied; 1 for vectors.

        Args:
            sample_shape: Axes of one input.
        """
        ...

    def segment(
        self,
        slot: int,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        training: bool,
        observe: Observe | None = None,
    ) -> Tensor:
        """What the host computes before a slot, from the slot before it on.

        Args:
            slot: Index of the slot that follows.
            parameters: Name → ``[M, *shape]``.
            buffers: Name → ``[M, *shape]``, updated in place when training.
            x: What the slot before gave; to the first segment one batch of samples per member in the topology's
                layout, or without the member axis one batch that all members share.
            training: Use and record batch statistics.
            observe: Is shown what activation functions read; not in training.
        """
        ...

    def head(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits ``[M, B, classes]``, or per token ``[M, B, L, classes]``, from what the last slot gave."""
        ...


def forward(
    host: Host[Any], parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, grow: Grow, training: bool
) -> Tensor:
    """Logits of whole hosts, segment by segment (see :class:`Host`); ``grow`` says what happens in the slots."""
    for slot in range(host.num_slots):
        x = grow(slot, host.segment(slot, parameters, buffers, x, training))
    return host.head(parameters, x)
