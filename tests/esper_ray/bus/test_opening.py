"""How a bus is come by, and what is said of addresses where there is none."""

import socket
import subprocess
import sys

import pytest

from benchmarks.nodes import free_port
from esper_ray.bus.errors import BusUnavailable
from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.opening import open_bus
from esper_ray.errors import UserError

WITHOUT = """
import sys

class NotInstalled:
    def find_spec(self, name, path, target=None):
        if name == "redis":
            raise ModuleNotFoundError("No module named 'redis'", name="redis")

sys.meta_path.insert(0, NotInstalled())
from esper_ray.bus.opening import open_bus
from esper_ray.errors import UserError
open_bus().close()
try:
    open_bus("redis://127.0.0.1:1/0")
except UserError as error:
    print(error)
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    return done.stdout.strip()


def test_without_an_address_it_is_this_process_own():
    with open_bus() as one, open_bus() as two:
        assert isinstance(one, InProcessBus)
        assert one is not two


def test_redis_is_not_imported_before_it_is_asked_for():
    assert (
        run("import sys, esper_ray.bus.opening; print('redis' in sys.modules, 'torch' in sys.modules)") == "False False"
    )


def test_without_redis_py_a_bus_on_redis_says_what_to_install():
    assert run(WITHOUT) == "a bus on Redis needs redis-py: pip install 'esper-ray[redis]'"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "redis://HOST:PORT/DB"),
        ("http://:secret@127.0.0.1:6379", "no address of a Redis server"),
        (":secret@127.0.0.1:6379/0", "no address of a Redis server"),
        ("redis://:secret@/0", "no address of a Redis server"),
        ("redis://:secret/xyz@127.0.0.1:6379/0", "%2F"),
        ("redis://:1234/secret@127.0.0.1:6379/0", "%2F"),
        ("redis://user:secret#er@127.0.0.1:6379/0", "%23"),
        ("redis://:secret@127.0.0.1:port/0", "no address of a Redis server"),
        ("redis://:secret@127.0.0.1:6379/zero", "with DB a number"),
        ("redis://:secret@127.0.0.1:6379/0?socket_timeout=1000", "no option 'socket_timeout'"),
        ("redis://:secret@127.0.0.1:6379/0?ssl_check=1", "no address of a Redis server"),
        ("rediss://:secret@127.0.0.1:6379/0?ssl_check=1", "no address of a Redis server"),
    ],
)
def test_what_is_no_address_is_refused(url, said):
    pytest.importorskip("redis")
    with pytest.raises(UserError) as refused:
        open_bus(url)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_where_no_server_is():
    pytest.importorskip("redis")
    with pytest.raises(BusUnavailable, match=r"cannot be reached.*is it running") as refused:
        open_bus(f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert "secret" not in str(refused.value)


def test_who_does_not_answer_is_asked_once():
    pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(BusUnavailable, match=r"did not answer within 1.1 s"):
            open_bus(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_s=1.1)
        silent.settimeout(0.0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_timeout_that_a_waiting_reader_would_meet_is_refused():
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match=r"timeout_s must be above 1, for which a reader waits; got 0.5"):
        open_bus("redis://127.0.0.1:6379/0", timeout_s=0.5)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_claims_take_time(seconds):
    with pytest.raises(ValueError, match=r"claim_after_s must be at least 0.001"):
        open_bus(claim_after_s=seconds)
