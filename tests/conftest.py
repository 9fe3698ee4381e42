"""Settings that every test shares."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # as where hosts are trained (esper_ray.process.settle)

settings.register_profile(
    "default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
