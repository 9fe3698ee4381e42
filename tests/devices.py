"""The devices that a test runs on: the CPU, and a GPU where there is one."""

import pytest
import torch

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
DEVICES = ["cpu", GPU]
