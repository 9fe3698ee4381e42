import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from esper_ray.process import TRAINER_NICENESS, step_back

SLEEPER = """
import os, time
from esper_ray.process import host_processes
if __name__ == "__main__":
    with host_processes(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_who_steps_back_does_so_once_and_alone():
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1) as threads:
        for _ in range(2):
            threads.submit(step_back).result()
        assert threads.submit(os.getpriority, os.PRIO_PROCESS, 0).result() == max(niceness, TRAINER_NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
        try:
            parent.communicate(timeout=60)  # at its end once nobody holds the pipe any more, the worker included
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("the worker computes on for nobody")
