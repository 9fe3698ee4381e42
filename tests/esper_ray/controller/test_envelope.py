"""What is sealed is read as it was, and nothing that was changed by a bit is ever believed."""

import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.forging import CHANGES
from esper_ray.bus.streams import Stream
from esper_ray.controller.envelope import MOST_PAYLOAD_BYTES, Envelope, seal
from esper_ray.controller.keys import Key, KeyState
from esper_ray.controller.message_ages import LONGEST_AGE_NS, MOST_AGE_NS
from esper_ray.controller.verifier import EnvelopeRefused, Untrusted
from tests.esper_ray.controller.sealing import (
    DAY,
    NOW,
    OTHER_SECRET,
    RING,
    SECOND,
    SECRET,
    Place,
    framed,
    sealed,
)

RUN_IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
MUTATED = 10_000


@given(st.sampled_from(Stream), RUN_IDS, st.binary(max_size=300), st.integers(0, 2**63 - 1))
def test_what_is_sealed_is_read_as_it_was_and_believed(kind, run_id, payload, timestamp_ns):
    envelope = seal(RING.signing, kind, run_id, payload, timestamp_ns)
    assert Envelope.read(envelope.content) == envelope
    assert (envelope.type, envelope.audience, envelope.payload) == (kind, run_id, payload)
    assert envelope.timestamp_ns == timestamp_ns
    place = Place(now=timestamp_ns)
    assert place.take(envelope.content, kind, run_id) == envelope
    assert place.effects == [payload]


def test_its_bytes_are_what_their_description_says():
    envelope = seal(RING.signing, Stream.COMMANDS, "läuft", b"do it", NOW)
    described = sealed(audience="läuft".encode(), nonce=envelope.nonce, payload=b"do it")
    assert envelope.content == described
    assert envelope.content.startswith(envelope.signed)
    assert len(envelope.content) == len(envelope.signed) + 8 + 32


def test_no_two_envelopes_have_the_same_nonce():
    nonces = {seal(RING.signing, Stream.COMMANDS, "run", b"", NOW).nonce for _ in range(1000)}
    assert len(nonces) == 1000
    assert {len(nonce) for nonce in nonces} == {16}


def test_ages_are_those_that_are_written_down():
    minutes = {kind for kind, age in MOST_AGE_NS.items() if age == 60 * SECOND}
    assert minutes == {Stream.STATES, Stream.COMMANDS}
    assert {age for kind, age in MOST_AGE_NS.items() if kind not in minutes} == {7 * DAY} == {LONGEST_AGE_NS}
    assert MOST_AGE_NS.keys() == {*Stream}


@pytest.mark.parametrize(
    "fields",
    [
        {"version": b"esper/2"},
        {"key_id": b"k" * 65},
        {"key_id": "schlüssel".encode()},
        {"type": b"t" * 33},
        {"audience": b"a" * 801},
        {"audience": b"\xff"},
        {"timestamp": b"1234567"},
        {"timestamp": b"123456789"},
        {"nonce": bytes(15)},
        {"nonce": bytes(17)},
        {"nonce": b""},
        {"signature": bytes(33)},
    ],
    ids=lambda fields: ", ".join(f"{name} of {len(value)} bytes" for name, value in fields.items()),
)
def test_what_is_well_signed_and_no_envelope_is_taken_for_unsigned(fields):
    content = sealed(**fields)
    with pytest.raises(ValueError, match=r"^it|codec"):
        Envelope.read(content)
    refused(Place(), content, Untrusted.MISSING_SIGNATURE)


def test_what_cannot_travel_is_not_sealed():
    for audience, payload in (("a" * 801, b""), ("\ud800", b""), ("run", bytes(MOST_PAYLOAD_BYTES + 1))):
        with pytest.raises(ValueError, match=r"audience|surrogates|payload"):
            seal(RING.signing, Stream.UPDATES, audience, payload, NOW)
    longest = seal(RING.signing, Stream.UPDATES, "run", bytes(MOST_PAYLOAD_BYTES), NOW)
    assert len(longest.payload) == 65 * 2**20


def test_an_envelope_shows_neither_payload_nor_signature():
    envelope = seal(RING.signing, Stream.COMMANDS, "run", b"payload", NOW)
    for hidden in (envelope.payload, envelope.signature, envelope.content, SECRET):
        assert repr(hidden)[2:-1] not in repr(envelope)


def refused(place, content, reason=None):
    with pytest.raises(EnvelopeRefused) as caught:
        place.take(content)
    assert place.effects == []
    assert place.nonces == 0
    assert str(caught.value).isprintable()
    assert reason in (None, caught.value.reason)
    return caught.value.reason


# ------------------------------------------------------------------ 10,000 that were changed
def test_ten_thousand_changed_envelopes_are_refused_and_none_raises_anything_else():
    draw, place, found, done = random.Random(24), Place(), Counter(), 0
    stranger = Key(OTHER_SECRET, KeyState.SIGNING)
    while done < MUTATED:
        payload = draw.randbytes(draw.choice((0, 1, 40, 300)))
        originals = [
            seal(key, kind, run_id, payload, NOW + shift).content
            for key, kind, run_id, shift in (
                (RING.signing, Stream.COMMANDS, "run", 0),
                draw.choice(
                    (
                        (RING.signing, Stream.COMMANDS, "another", 0),
                        (RING.signing, Stream.REPORTS, "run", -SECOND),
                        (stranger, Stream.COMMANDS, "run", 1),
                    )
                ),
            )
        ]
        for change in CHANGES:
            changed = change(draw, *originals)
            if changed not in originals:
                try:
                    place.take(changed)
                except EnvelopeRefused as refusal:
                    found[refusal.reason] += 1
                done += 1
    assert sum(found.values()) == done >= MUTATED
    assert (place.effects, place.nonces) == ([], 0)
    assert all(found[reason] > 100 for reason in (Untrusted.MISSING_SIGNATURE, Untrusted.BAD_SIGNATURE))
    assert found[Untrusted.UNKNOWN_KEY] > 100
    assert sum(found[reason] for reason in [*Untrusted][:3]) == done, "none got past its signature"
    place.take(originals[0])
    assert place.effects == [payload], "while what was not changed is believed"


@given(st.binary(max_size=200) | st.lists(st.binary(max_size=40), max_size=9).map(framed))
@example(b"")
@example(framed([b""] * 8))
@example(framed([b"esper/1", *[b""] * 7]))
def test_bytes_of_any_kind_are_refused(content):
    refused(Place(), content, Untrusted.MISSING_SIGNATURE)
