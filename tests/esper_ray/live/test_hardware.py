"""The machine is measured, and what cannot be is left out."""

import math
import time

import psutil
import pytest
import torch

from esper_ray.live import hardware
from esper_ray.live.hardware import HardwareMeter, memory_limit

CPU = torch.device("cpu")


def _burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_processors_that_compute_are_seen_to():
    meter = HardwareMeter()
    _burn(0.2)
    used = meter.measure(CPU)["cpu_util_percent"]
    one_of_all = 100.0 / psutil.cpu_count()
    assert 0.2 * one_of_all < used <= 100.0, "one was busy for at least a part of the time"


def test_each_measurement_counts_from_the_one_before(monkeypatch):
    times = psutil.cpu_times()
    meter = HardwareMeter()

    def after(busy, idle):
        nonlocal times
        times = times._replace(user=times.user + busy, idle=times.idle + idle)
        return meter.measure(CPU)["cpu_util_percent"]

    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    meter.measure(CPU)
    assert [after(1.0, 3.0), after(3.0, 1.0), after(0.0, 2.0)] == pytest.approx([25.0, 75.0, 0.0])
    assert math.isnan(after(0.0, 0.0)), "where no time has passed nothing is known"


def test_memory_is_that_of_this_process():
    meter = HardwareMeter()
    before = meter.measure(CPU)["process_memory_share"]
    held = torch.ones(2**26)
    grown = meter.measure(CPU)["process_memory_share"] - before
    assert grown * memory_limit() == pytest.approx(held.numel() * 4, rel=0.1)


def test_a_container_that_may_have_less_is_what_counts(tmp_path, monkeypatch):
    path, total = tmp_path / "memory.max", psutil.virtual_memory().total
    monkeypatch.setattr(hardware, "_LIMITS", (path,))
    limits = {"max\n": total, "": total, f"{2 * total}\n": total, "9223372036854771712\n": total, "1000000000\n": 10**9}
    assert memory_limit() == total, "no such file"
    for text, limit in limits.items():
        path.write_text(text)
        assert memory_limit() == limit
    packet = HardwareMeter().describe(CPU)
    assert (packet.memory_gb, packet.device, packet.devices) == (1.0, "cpu", None)
