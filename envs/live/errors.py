"""What growing in somebody's own training says no to."""


class LiveError(ValueError):
    """A network, an optimiser or an argument that nothing can be grown with; the message says why and what to do."""
