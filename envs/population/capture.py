"""The same step again and again: on a GPU recorded once as a CUDA graph and replayed, elsewhere simply called."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property

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

    @cached_property
    def _beside(self) -> torch.cuda.Stream:
        """The stream that is recorded on: one for good, since libraries and allocator keep memory for each."""
        return torch.cuda.Stream(self._device)

    def repeat(self, step: Callable[[], None], times: int) -> None:
        """Take a step a number of times."""
        if not (self.capture and self._device.type == "cuda" and times > 2):
            for _ in range(times):
                step()
            return
        self._warm_up(step)
        graph = self._recorded(step)
        for _ in range(times - 1):
            if graph is None:
                step()
            else:
                graph.replay()

    def _warm_up(self, step: Callable[[], None]) -> None:
        """Take the first step where the next one is recorded, so that libraries set themselves up there."""
        here = torch.cuda.current_stream(self._device)
        self._beside.wait_stream(here)
        with torch.cuda.stream(self._beside):
            step()
        here.wait_stream(self._beside)

    def _recorded(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The step as a graph; None, said once, where something in it cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(self._device)
        # Where recording fails, torch leaves its own context without going back to the stream before. Other threads,
        # such as a learner's, may use the device meanwhile.
        mode = "thread_local"
        try:
            with torch.cuda.stream(here), torch.cuda.graph(graph, stream=self._beside, capture_error_mode=mode):
                step()
        except RuntimeError as error:
            self.capture = False
            reason = error.__context__ or error  # what ends a recording only says that something failed before
            logger.warning("mini-batches run one kernel at a time, a CUDA graph cannot be recorded: %s", reason)
            return None
        return graph
