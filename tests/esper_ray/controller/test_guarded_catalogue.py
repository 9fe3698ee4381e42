"""A catalogue that cannot be read, or not in time, is no reason to wait, nor to go on failing, nor not to end."""

import os
import subprocess
import sys

from esper_ray.controller.breakers import BreakerConfig, CircuitBreaker, RetryConfig
from esper_ray.controller.catalogue import CatalogueCache
from esper_ray.controller.commands import Reason
from esper_ray.controller.guarded_catalogue import GuardedCatalogue
from esper_ray.errors import UserError
from tests.esper_ray.bus.patience import wait_for
from tests.places import ROOT


def test_whatever_reading_raises_the_catalogue_before_stays_until_one_can_be_read():
    found = ["first", UserError("no JSON"), RecursionError("too deep"), OSError("gone"), "second"]

    def read():
        now = found.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    breaker = CircuitBreaker("catalogue", BreakerConfig(failures=1000))
    guarded = GuardedCatalogue(CatalogueCache(read, ttl=0.0), breaker, RetryConfig(attempts=1), 100.0)
    assert guarded.look()[0] == "first"
    wait_for(lambda: guarded.look() == ("second", frozenset()) or not found)
    found += ["second"] * 3
    wait_for(lambda: guarded.look() == ("second", frozenset()))
    guarded.close()


SCRIPT = """
import os
from esper_ray.controller.breakers import CircuitBreaker, RetryConfig
from esper_ray.controller.catalogue import CatalogueCache
from esper_ray.controller.guarded_catalogue import GuardedCatalogue

os.mkfifo("blueprints.json")
catalogues = [lambda: "first", lambda: open("blueprints.json").read()]  # nobody ever writes there
cache = CatalogueCache(lambda: catalogues.pop(0)(), ttl=0.0)
guarded = GuardedCatalogue(cache, CircuitBreaker("catalogue"), RetryConfig(), 0.0)
held, faults = guarded.look()
print(held, *faults)
"""


def test_a_script_ends_though_the_disk_of_its_catalogue_never_answers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120.0,
    )
    assert done.stdout.split() == ["first", Reason.TIMEOUT_CATALOGUE], done.stderr
