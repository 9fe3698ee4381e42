"""Settings that every test shares."""

import os
import sys
from pathlib import Path

# pytest puts this folder on the import path, where tests/envs would shadow the package envs: the root goes first.
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
