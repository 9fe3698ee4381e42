"""A learner at its end of a bus: reports in, updates out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from esper_ray.bus.errors import BusError
from esper_ray.bus.interface import Bus
from esper_ray.bus.streams import Stream
from esper_ray.controller.envelope import seal
from esper_ray.controller.keys import KeyRing
from esper_ray.controller.learner.learner import Learner, Learnt
from esper_ray.controller.updates.policy_update import AUDIENCE

logger = logging.getLogger(__name__)

LOOK_EVERY = 64
"""Reports after which it is looked whether there is enough for an update, where they come without a pause."""


class LearnerAtBus:
    """Takes reports as they come, learns once there is enough, and sends what was learnt.

    Args:
        learner: Learns; is not closed.
        bus: Updates are sent on it; is not closed.
        keys: Gives the keys to sign with, as they are now.
        take_next: Waits for so many seconds for the next report, and has the learner take it in; says whether one came.
        time_ns: Nanoseconds since 1970.
    """

    def __init__(
        self,
        learner: Learner,
        bus: Bus,
        keys: Callable[[], KeyRing],
        take_next: Callable[[float], bool],
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._learner, self._bus, self._keys = learner, bus, keys
        self._take_next, self._time_ns = take_next, time_ns
        self._unseen = 1  # what was taken before a restart was not looked at either
        self._stuck = ""

    def step(self, wait_s: float) -> Learnt | None:
        """Send what is still to be sent, take the next report, and learn if there is enough.

        Args:
            wait_s: Seconds to wait for a report.

        Returns:
            The update that was made, if one was.

        Raises:
            BusError: no report could be received; all goes on with the next step.
            UserError: what :meth:`esper_ray.controller.learner.learner.Learner.learn_once` raises.
        """
        self._send()
        came = self._take_next(wait_s)
        self._unseen += came
        if not self._unseen or (came and self._unseen < LOOK_EVERY):
            return None
        self._unseen = 0
        if self._learner.lacking():
            return None
        learnt = self._learner.learn_once()
        self._send()
        return learnt

    def _send(self) -> None:
        """Send the latest update if it was not; what the bus does not take now is sent with a later step."""
        update = self._learner.unsent()
        if update is None:
            return
        sealed = seal(self._keys().signing, Stream.UPDATES, AUDIENCE, update.framed(), self._time_ns())
        try:
            self._bus.send(Stream.UPDATES, sealed.content)
        except BusError as error:
            if str(error) != self._stuck:
                logger.warning("update %d is not sent yet: %s", update.head.version, error)
            self._stuck = str(error)
            return
        self._stuck = ""
        self._learner.mark_sent(update)
