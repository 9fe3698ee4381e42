"""What can go wrong on a bus. Whoever sends keeps what it could not send."""

from esper_ray.errors import UserError


class BusError(UserError):
    """The bus cannot do what was asked."""


class BusUnavailable(BusError):
    """The bus does not answer, or is closed. Of something that was being sent it is not known whether it arrived."""


class NotSent(BusError):
    """The bus is there and refused: nothing was sent, and nothing that it holds was dropped for it."""


class StreamFull(NotSent):
    """The stream holds as much as it may, and none of it can go yet."""


class MemoryFull(NotSent):
    """The server's memory is full. What is there can still be read and acknowledged."""


class GroupMissing(BusError):
    """There is no such group; who receives makes it."""
