"""A thread for what nobody who decides waits for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from esper_ray.controller.records import StoreFailed

logger = logging.getLogger(__name__)


class Errands:
    """Does one thing after another, in the order in which they are given.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)

    def later(self, do: Callable[[], Any]) -> None:
        """Do something after what was given before, and wait for nobody; what it raises is told in the log."""

        def told() -> None:
            try:
                do()
            except StoreFailed as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("something failed after a decision")

        try:
            self._thread.submit(told)
        except RuntimeError:  # closed
            logger.warning("a controller that is closed was told something")

    def close(self) -> None:
        """Finish what was given."""
        self._thread.shutdown()
