"""Sessions by a clock that the test turns: what is held is what was used within the time, and no more than fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_ray.serving.sessions import EndedError, FullError, SessionNames, Sessions

SECONDS, CAPACITY = 10.0, 3
COMMANDS = st.one_of(
    st.tuples(st.sampled_from(["open", "use", "close"]), st.sampled_from("abcde")),
    st.tuples(st.just("wait"), st.floats(0, 2 * SECONDS)),
)


@given(st.lists(COMMANDS, max_size=60))
def test_a_session_is_held_as_long_as_it_is_used(commands):
    now, last_use = 0.0, {}
    sessions = Sessions(SECONDS, CAPACITY, lambda: now)
    for command, argument in commands:
        if command == "wait":
            now += argument
        held = {name for name, at in last_use.items() if now - at < SECONDS}
        last_use = {name: last_use[name] for name in held}
        if command == "open" and argument not in held:
            if len(held) == CAPACITY:
                with pytest.raises(FullError):
                    sessions.open(argument, argument)
            else:
                sessions.open(argument, argument)
                last_use[argument] = now
        elif command in ("use", "close"):
            method = getattr(sessions, command)
            if argument in held:
                assert method(argument) == argument
                last_use[argument] = now
            else:
                with pytest.raises(EndedError):
                    method(argument)
            if command == "close":
                last_use.pop(argument, None)
        assert len(sessions) == len(last_use)


@given(st.integers(0, 100))
def test_a_name_leads_to_its_replica_and_to_no_other_service(replica):
    names = SessionNames(b"key")
    name = names.new(replica)
    assert names.replica(name) == replica
    assert names.new(replica) != name
    with pytest.raises(ValueError, match=name):
        SessionNames(b"another key").replica(name)


@given(st.data())
def test_a_name_that_was_not_given_is_known_as_such(data):
    names = SessionNames(b"key")
    name = names.new(1)
    place = data.draw(st.integers(0, len(name) - 1))
    forged = (
        name[:place] + data.draw(st.characters(codec="utf-8").filter(lambda c: c != name[place])) + name[place + 1 :]
    )
    for other in (forged, data.draw(st.text())):
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the name
            names.replica(other)
