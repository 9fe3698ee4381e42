"""Who listens gets everything, and what fails comes again."""

from threading import Lock

import pytest

from esper_ray.bus.listening import Listener
from esper_ray.bus.streams import Stream
from tests.esper_ray.bus.patience import wait_for

RESULTS = Stream.RESULTS


class Hearer:
    """Fails at some payloads as often as is said."""

    def __init__(self, **failures):
        self.heard, self.failures, self._guard = [], {name.encode(): times for name, times in failures.items()}, Lock()

    def __call__(self, delivery):
        with self._guard:
            if self.failures.get(delivery.payload, 0) > 0:
                self.failures[delivery.payload] -= 1
                raise RuntimeError("not today")
            self.heard.append(delivery.payload)


@pytest.mark.parametrize("threads", [1, 3])
def test_everything_is_handled_and_acknowledged_whatever_was_sent_before(bus, threads):
    sent = [b"%d" % number for number in range(20)]
    for payload in sent[:5]:
        bus.send(RESULTS, payload)
    listener = Listener(bus, RESULTS, "service", hearer := Hearer(), name="c", threads=threads)
    for payload in sent[5:]:
        bus.send(RESULTS, payload)
    wait_for(lambda: len(hearer.heard) == len(sent))
    listener.close()
    assert sorted(hearer.heard) == sorted(sent)
    assert threads > 1 or hearer.heard == sent
    assert bus.state(RESULTS).groups["service"].pending == 0


def test_what_fails_comes_again_and_holds_nothing_up(bus):
    listener = Listener(bus, RESULTS, "service", hearer := Hearer(bad=2), name="c")
    for payload in (b"bad", b"good"):
        bus.send(RESULTS, payload)
    wait_for(lambda: set(hearer.heard) == {b"bad", b"good"})
    listener.close()
    assert hearer.heard == [b"good", b"bad"]


def test_a_bus_that_ends_ends_nobody(bus):
    listener = Listener(bus, RESULTS, "service", hearer := Hearer(), name="c")
    bus.close()
    listener.close()
    assert hearer.heard == []
