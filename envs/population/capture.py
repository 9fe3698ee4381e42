"""The same step again and again: on a GPU recorded once as a CUDA graph and replayed, elsewhere simply called."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


class Repeater:
    """Repeats steps, each of which must be a function of tensors that live longer than it.

    A step of tiny hosts launches hundreds of kernels, each of which a GPU computes sooner than Python can ask for the
    next one; a graph asks for all of them at once. It is recorded anew for every series of steps, since hosts grow in
    between, and costs about what one step does.

    Args:
        device: Where the steps compute.

    Attributes:
        capture: Whether to record on a GPU; where that turns out to be impossible, it is set to False.
    """

    def __init__(self, device: torch.device) -> None:
        self.capture = True
        self._device = device
        self._pool: Any = None

    def repeat(self, step: Callable[[], None], times: int) -> None:
        """Take a step a number of times."""
        taken = 0
        if self.capture and self._device.type == "cuda" and times > 2:
            taken = self._warm_up(step)
            graph = self._recorded(step)
            if graph is not None:
                for _ in range(times - taken):
                    graph.replay()
                return
        for _ in range(times - taken):
            step()

    def _warm_up(self, step: Callable[[], None]) -> int:
        """Take the first step on a stream of its own, as recording asks for, so that libraries set themselves up."""
        beside = torch.cuda.Stream(self._device)
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            step()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        return 1

    def _recorded(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The step as a graph; None, said once, where something in it cannot be recorded."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                step()
        except RuntimeError as error:
            self.capture = False
            logger.warning("mini-batches run one kernel at a time, a CUDA graph cannot be recorded: %s", error)
            return None
        return graph
