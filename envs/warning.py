"""Warnings name the line of the user's that they are about."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

_OURS = tuple(f"{Path(__file__).parents[1] / package}/" for package in ("esper_ray", "envs", "policies"))


def warn_user(message: str) -> None:
    """Warn of what the user's own code, the nearest on the stack that is not ours, has asked for."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
