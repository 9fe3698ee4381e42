"""Checks that several commands make."""

from __future__ import annotations

from esper_ray.errors import UserError


def at_least(flag: str, value: int, least: int) -> None:
    """Refuse a flag's value below ``least``."""
    if value < least:
        raise UserError(f"{flag} must be at least {least}, got {value}")
