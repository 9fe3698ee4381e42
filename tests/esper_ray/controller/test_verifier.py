"""Each reason to refuse a message, their order, and that nothing has its effect twice, whatever happens between."""

import itertools
import sqlite3
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_ray.bus.interface import CLAIM_AFTER_S
from esper_ray.bus.streams import Stream
from esper_ray.controller.keys import Key, KeyRing, KeyState
from esper_ray.controller.message_ages import FUTURE_NS, LONGEST_AGE_NS, MOST_AGE_NS, SECOND_NS
from esper_ray.controller.nonces import Entry, NonceLedger
from esper_ray.controller.verifier import EnvelopeRefused, Redelivered, Untrusted
from tests.esper_ray.controller.sealing import DAY, NOW, OTHER_SECRET, SECOND, SECRET, Place, sealed

NONCE = b"0123456789abcdef"
UNTIMELY = (Untrusted.FUTURE, Untrusted.STALE)
FAULTS = {
    Untrusted.MISSING_SIGNATURE: {"signature": b""},
    Untrusted.UNKNOWN_KEY: {"key_id": b"0123456789abcdef"},
    Untrusted.BAD_SIGNATURE: {"signature": bytes(32)},
    Untrusted.WRONG_TYPE: {"type": b"results"},
    Untrusted.WRONG_AUDIENCE: {"audience": b"another"},
    Untrusted.FUTURE: {"timestamp": struct.pack(">Q", NOW + 6 * SECOND)},
    Untrusted.STALE: {"timestamp": struct.pack(">Q", NOW - 61 * SECOND)},
    Untrusted.REPLAYED_NONCE: {"nonce": NONCE},
}
"""What is wrong with an envelope that is refused for each reason; it comes to a place that knows that nonce."""


def at(timestamp_ns, **given):
    return sealed(timestamp=struct.pack(">Q", timestamp_ns), **given)


def reason_of(place, content, **given):
    with pytest.raises(EnvelopeRefused) as caught:
        place.take(content, **given)
    assert str(caught.value).isprintable()
    return caught.value.reason


def place_that_knows_the_nonce():
    place = Place()
    place.take(sealed(nonce=NONCE, payload=b"the first"))
    return place


def test_reasons_are_these_in_this_order():
    assert [*FAULTS] == [*Untrusted]


@pytest.mark.parametrize("reason", FAULTS, ids=str)
def test_each_reason_is_found_and_nothing_happens(reason):
    place = place_that_knows_the_nonce()
    assert reason_of(place, sealed(**FAULTS[reason])) is reason
    assert (place.effects, place.nonces) == ([b"the first"], 1)


def test_of_several_reasons_the_first_is_given():
    place, tried = place_that_knows_the_nonce(), 0
    for chosen in itertools.product((False, True), repeat=len(FAULTS)):
        reasons = list(itertools.compress(FAULTS, chosen))
        if not reasons or {Untrusted.FUTURE, Untrusted.STALE} <= {*reasons}:
            continue  # nothing is both
        given = {}
        for reason in reversed(reasons):
            given |= FAULTS[reason]
        assert reason_of(place, sealed(**given)) is reasons[0], reasons
        tried += 1
    assert tried == 191
    assert place.effects == [b"the first"]


def test_an_envelope_comes_with_a_refusal_only_if_it_is_authentic():
    place = place_that_knows_the_nonce()
    for number, (reason, fields) in enumerate(FAULTS.items()):
        with pytest.raises(EnvelopeRefused) as caught:
            place.take(sealed(**fields))
        assert (caught.value.envelope is not None) == (number >= 3), reason


def test_whoever_lacks_the_key_is_a_stranger_and_who_says_its_id_is_found_out():
    place = Place()
    assert reason_of(place, sealed(OTHER_SECRET)) is Untrusted.UNKNOWN_KEY
    forged = sealed(OTHER_SECRET, key_id=place.ring.signing.key_id.encode())
    assert reason_of(place, forged) is Untrusted.BAD_SIGNATURE


@pytest.mark.parametrize("kind", Stream, ids=str)
def test_every_type_is_taken_up_to_its_age_and_from_clocks_that_are_a_little_ahead(kind):
    for age, reason in (
        (MOST_AGE_NS[kind], None),
        (MOST_AGE_NS[kind] + 1, Untrusted.STALE),
        (-FUTURE_NS, None),
        (-FUTURE_NS - 1, Untrusted.FUTURE),
    ):
        content = at(NOW - age, type=kind.encode())
        if reason is None:
            assert Place().take(content, kind).type == kind
        else:
            assert reason_of(Place(), content, kind=kind) is reason


def test_no_type_is_taken_for_another():
    for sent, awaited in itertools.permutations(Stream, 2):
        assert reason_of(Place(), sealed(type=sent.encode()), kind=awaited) is Untrusted.WRONG_TYPE
    assert reason_of(Place(), sealed(type=b"no such type")) is Untrusted.WRONG_TYPE


def test_where_any_run_is_served_the_envelope_says_which():
    assert Place().take(sealed(audience=b"another"), audience=None).audience == "another"
    assert reason_of(Place(), sealed(audience=b""), audience="run") is Untrusted.WRONG_AUDIENCE


# ------------------------------------------------------------------ once
def test_a_message_is_carried_out_once_also_after_a_restart(tmp_path):
    place, content = Place(tmp_path / "state.sqlite"), sealed()
    place.take(content)
    for again in (lambda: None, place.restart, lambda: None):
        again()
        with pytest.raises(Redelivered) as caught:
            place.take(content)
        assert caught.value.reason is Untrusted.REPLAYED_NONCE
        assert caught.value.envelope.payload == b"payload"
    assert place.effects == [b"payload"]


def test_what_was_not_committed_is_carried_out_when_it_is_delivered_again(tmp_path):
    place, content = Place(tmp_path / "state.sqlite"), sealed()
    place.take(content, fail=True)
    place.connection.execute("BEGIN IMMEDIATE")
    place.verifier.accept(place.connection, content, Stream.COMMANDS, "run")
    place.restart()  # in the middle of it
    assert (place.effects, place.nonces) == ([], 0)
    place.take(content)
    assert place.effects == [b"payload"]


def test_another_message_with_a_nonce_that_was_used_is_no_redelivery():
    place = place_that_knows_the_nonce()
    with pytest.raises(EnvelopeRefused) as caught:
        place.take(sealed(nonce=NONCE, payload=b"the second"))
    assert not isinstance(caught.value, Redelivered)
    assert caught.value.reason is Untrusted.REPLAYED_NONCE


def test_a_redelivery_is_told_apart_also_when_it_has_become_stale():
    place, content = Place(), sealed()
    place.take(content)
    place.now += 61 * SECOND
    with pytest.raises(Redelivered) as caught:
        place.take(content)
    assert caught.value.reason is Untrusted.STALE
    with pytest.raises(EnvelopeRefused) as caught:
        place.take(sealed(nonce=NONCE))
    assert not isinstance(caught.value, Redelivered)


def test_what_was_verified_in_time_may_have_its_effect_later_and_once():
    place = Place()
    envelope = place.verifier.verify(sealed(), Stream.COMMANDS, "run")
    place.now += DAY
    with pytest.raises(RuntimeError, match="begin one"):
        place.verifier.enter(place.connection, envelope)
    place.connection.execute("BEGIN IMMEDIATE")
    place.verifier.enter(place.connection, envelope)
    with pytest.raises(Redelivered):
        place.verifier.enter(place.connection, envelope)
    place.connection.execute("COMMIT")
    assert place.nonces == 1


def test_consumers_who_share_a_file_have_a_message_once_each():
    place, learner = Place(), NonceLedger("learner")
    envelope = place.take(sealed())
    assert place.ledger.look(place.connection, envelope) is Entry.COMMITTED
    assert learner.look(place.connection, envelope) is Entry.UNKNOWN


# ------------------------------------------------------------------ forgetting
def forget(place):
    place.connection.execute("BEGIN IMMEDIATE")
    dropped = place.ledger.forget(place.connection, place.now)
    place.connection.execute("COMMIT")
    return dropped


def test_the_ledger_forgets_what_is_too_old_to_come_again_and_nothing_else():
    place, content = Place(), sealed()
    place.take(content)
    place.now += LONGEST_AGE_NS
    assert forget(place) == 0
    place.take(at(place.now, nonce=NONCE))
    place.now += 1
    assert forget(place) == 1
    assert place.nonces == 1
    assert reason_of(place, content) is Untrusted.STALE


def test_the_ledger_does_not_grow_for_ever():
    place = Place()
    for number in range(30):
        place.now = NOW + number * DAY
        place.take(at(place.now, nonce=bytes([number]) * 16))
        assert place.nonces == min(number + 1, 8)
    assert len(place.effects) == 30


def test_a_clock_that_goes_back_lets_nothing_forgotten_come_again(tmp_path):
    place, content = Place(tmp_path / "state.sqlite"), sealed()
    place.take(content)
    place.now += LONGEST_AGE_NS + 1
    assert forget(place) == 1
    place.now = NOW
    place.restart()
    assert reason_of(place, content) is Untrusted.STALE
    place.now += 1
    place.take(at(NOW + 1, payload=b"younger than all that is forgotten"))
    assert place.effects == [b"payload", b"younger than all that is forgotten"]


STEPS = st.one_of(
    st.tuples(st.just("deliver"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(
        st.just("clock"), st.sampled_from([-8 * DAY, -DAY, -SECOND, 1, SECOND, 30 * SECOND, 61 * SECOND, DAY, 8 * DAY])
    ),
    st.tuples(st.just("forget"), st.none()),
    st.tuples(st.just("restart"), st.none()),
)


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=20))
def test_whatever_happens_no_message_has_its_effect_twice(tmp_path_factory, steps):
    directory = tmp_path_factory.mktemp("ledger")
    place, sent = Place(directory / "state.sqlite"), {}
    for step, value in steps:
        if step == "clock":
            place.now += value
        elif step == "forget":
            forget(place)
        elif step == "restart":
            place.restart()
        else:
            payload = bytes([value])
            kind = Stream.COMMANDS if value % 2 else Stream.REPORTS
            content = sent.setdefault(value, at(place.now, payload=payload, type=kind.encode(), nonce=payload * 16))
            before = place.effects.count(payload)
            try:
                place.take(content, kind, fail=step == "fail")
                found = "taken"
            except Redelivered:
                found = "redelivered"
            except EnvelopeRefused as refused:
                found = refused.reason
            after = place.effects.count(payload)
            assert after - before == (found == "taken" and step == "deliver")
            assert found in {0: ("taken", *UNTIMELY), 1: ("redelivered", *UNTIMELY)}[before]
    place.connection.close()


def test_what_was_carried_out_is_told_apart_when_the_clock_has_gone_back():
    place = Place()
    content = sealed()
    place.take(content)
    place.now -= 2 * FUTURE_NS
    with pytest.raises(Redelivered) as again:
        place.take(content)
    assert again.value.reason is Untrusted.FUTURE
    with pytest.raises(EnvelopeRefused) as refused:
        place.take(sealed(nonce=b"another" + bytes(9)))
    assert (refused.value.reason, type(refused.value)) == (Untrusted.FUTURE, EnvelopeRefused)


def test_what_is_acted_on_can_be_delivered_again_before_it_is_too_old():
    assert min(MOST_AGE_NS.values()) > 2 * CLAIM_AFTER_S * SECOND_NS


def test_two_processes_that_have_the_same_message_at_once_carry_it_out_once(tmp_path):
    one, other = (Place(tmp_path / "state.sqlite") for _ in range(2))
    other.connection.execute("PRAGMA busy_timeout = 0")
    one.connection.execute("BEGIN IMMEDIATE")
    one.verifier.accept(one.connection, sealed(), Stream.COMMANDS, "run")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.take(sealed())
    one.connection.execute("COMMIT")
    with pytest.raises(Redelivered):
        other.take(sealed())


# ------------------------------------------------------------------ rotation
def rings():
    """Of a process before a rotation, and after each of its steps."""
    old, new = SECRET, OTHER_SECRET
    yield KeyRing((Key(old, KeyState.SIGNING),))
    yield KeyRing((Key(old, KeyState.SIGNING), Key(new, KeyState.NEW)))
    yield KeyRing((Key(old, KeyState.RETIRED), Key(new, KeyState.SIGNING)))
    yield KeyRing((Key(new, KeyState.SIGNING),))


def test_a_rotation_in_order_stops_nobody_and_one_out_of_order_is_refused_as_an_unknown_key():
    stopped = []
    for (sends, sender), (receives, receiver) in itertools.product(enumerate(rings()), repeat=2):
        content = sealed(sender.signing.secret)
        try:
            Place(ring=receiver).take(content)
        except EnvelopeRefused as refused:
            stopped.append((sends, receives, refused.reason))
    # Who is a step ahead or behind understands the others. The new key must not sign before all have it, and the old
    # one must not go before it signs nowhere.
    assert stopped == [(*pair, Untrusted.UNKNOWN_KEY) for pair in ((0, 3), (1, 3), (2, 0), (3, 0))]


def test_keys_are_looked_up_as_they_are_when_a_message_comes():
    place, (*_, last) = Place(), rings()
    place.take(sealed())
    place.ring = last
    assert reason_of(place, sealed(nonce=NONCE)) is Untrusted.UNKNOWN_KEY
    place.take(sealed(OTHER_SECRET, nonce=NONCE))
