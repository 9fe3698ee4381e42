"""A bus of either kind, with small streams."""

import itertools

import pytest

from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import RULES, Stream, StreamRules
from tests.esper_ray.bus.servers import Server, needs_redis

SMALL = {
    **RULES,
    Stream.COMMANDS: StreamRules(("executor",), capacity=8),
    Stream.REPORTS: StreamRules(("learner", "service"), capacity=8, payload_bytes=1000),
    Stream.TELEMETRY: StreamRules(capacity=8, keeps_all=False),
}
CLAIM_AFTER_S = 0.4


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One that nobody harms."""
    with Server(tmp_path_factory.mktemp("redis"), appendonly="no") as running:
        yield running


@pytest.fixture
def events():
    return []


def _in_process(request, events):
    bus = InProcessBus(rules=SMALL, claim_after_s=CLAIM_AFTER_S, on_event=events.append)
    return bus


_names = itertools.count()


def _on_redis(request, events):
    from esper_ray.bus.redis_bus import RedisBus

    return RedisBus(
        request.getfixturevalue("server").url,
        name=f"test{next(_names)}",
        rules=SMALL,
        claim_after_s=CLAIM_AFTER_S,
        on_event=events.append,
    )


@pytest.fixture(
    params=[pytest.param(_in_process, id="in_process"), pytest.param(_on_redis, id="redis", marks=needs_redis)]
)
def bus(request, events):
    with request.param(request, events) as opened:
        yield opened
