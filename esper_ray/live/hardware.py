"""What a run computes on, and how much of it is in use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from policies.strategic.messages import Hardware

GB = 1e9
DECLARED = ("metrics.cpu_util_percent", "metrics.process_memory_share")
"""What can be measured on every machine."""
DECLARED_ON_CUDA = ("metrics.gpu_mem_free_gb",)
UTILISATION = "metrics.gpu_util_percent"
"""What can be measured where NVIDIA's library says it."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may have."""


def memory_limit() -> int:
    """Bytes that this process may have: the machine's, or its container's where that is less."""
    limits = [psutil.virtual_memory().total]
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # there is no such file, or no limit: "max"
            limits.append(int(path.read_text()))
    return min(limits)


class HardwareMeter:
    """Measures the machine from one call to the next; the first one counts from here."""

    def __init__(self) -> None:
        self._process, self._limit = psutil.Process(), memory_limit()
        self._busy, self._time = _processors()

    def describe(self, device: torch.device) -> Hardware:
        """What there is."""
        cuda = device.type == "cuda"
        return Hardware(
            device=device.type,
            devices=torch.cuda.device_count() if cuda else None,
            device_memory_gb=torch.cuda.get_device_properties(device).total_memory / GB if cuda else None,
            cpu_cores=os.cpu_count(),
            memory_gb=self._limit / GB,
        )

    def measure(self, device: torch.device) -> dict[str, float]:
        """Metrics of a packet; NaN where too little time has passed.

        The processors' are of the whole machine, whoever uses them; the system counts in hundredths of seconds.
        """
        busy, time = _processors()
        share = (busy - self._busy) / (time - self._time) if time > self._time else math.nan
        self._busy, self._time = busy, time
        metrics = {
            "cpu_util_percent": 100.0 * min(max(share, 0.0), 1.0) if math.isfinite(share) else math.nan,
            "process_memory_share": min(self._process.memory_info().rss / self._limit, 1.0),
        }
        if device.type == "cuda":
            metrics["gpu_mem_free_gb"] = torch.cuda.mem_get_info(device)[0] / GB
            with suppress(Exception):  # no library, or a device of which it does not say: NVML's errors are its own
                metrics["gpu_util_percent"] = float(torch.cuda.utilization(device))
        return metrics


def _processors() -> tuple[float, float]:
    """Seconds that all processors together have computed, and have existed, since the machine began."""
    times = psutil.cpu_times()._asdict()
    idle = times["idle"] + times.get("iowait", 0.0)
    guests = times.get("guest", 0.0) + times.get("guest_nice", 0.0)  # which user and nice have already
    total = sum(times.values()) - guests
    return total - idle, total
