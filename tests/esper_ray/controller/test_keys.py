"""Keys are their owner's alone, take each other's place in three steps, and never show."""

import base64
import json
import logging
import os
import re
import shlex
import stat
import threading
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.full_disk import files_of_at_most
from esper_ray.bus.streams import Stream
from esper_ray.cli import parse
from esper_ray.controller import key_file
from esper_ray.controller.key_file import (
    KEY_FILE,
    KEY_VARIABLE,
    CurrentKeys,
    change_key_file,
    read_keys,
    write_key_file,
)
from esper_ray.controller.keys import Key, KeyRing, KeyState
from esper_ray.controller.message_ages import LONGEST_AGE_NS
from esper_ray.controller.operating_page import field_docs
from esper_ray.controller.verifier import Untrusted
from esper_ray.errors import UserError
from esper_ray.terminal import output
from tests.esper_ray.controller.sealing import DAY, NOW, OTHER_SECRET, SECRET
from tests.esper_ray.keeping.places import mounted, read_only
from tests.places import ROOT

NOWHERE = {}
"""An environment without variables."""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def refusal(act, *args):
    with pytest.raises(UserError) as caught:
        act(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def text_of(secret):
    return base64.urlsafe_b64encode(secret).decode()


def states(ring):
    return [str(key.state) for key in ring.keys]


def shows(said, secret):
    """Whether a text has any eight characters of one of the forms that a secret may be written in."""
    forms = (text_of(secret), base64.b64encode(secret).decode(), secret.hex(), repr(secret), str([*secret]))
    return any(form[at : at + 8] in said for form in forms for at in range(len(form) - 7))


# ------------------------------------------------------------------ rings
def test_a_key_has_32_bytes_or_more():
    assert "at least 32 bytes, this one has 31" in refusal(Key, bytes(31), KeyState.SIGNING)
    assert Key(SECRET, KeyState.SIGNING).key_id != Key(SECRET + b"!", KeyState.SIGNING).key_id


def test_a_ring_is_made_of_random_keys_whose_ids_are_the_same_everywhere():
    first, second = KeyRing.first(NOW), KeyRing.first(NOW)
    assert first.signing.secret != second.signing.secret
    assert len(first.signing.secret) == 32
    assert Key(first.signing.secret, KeyState.RETIRED).key_id == first.signing.key_id
    assert re.fullmatch("[0-9a-f]{16}", first.signing.key_id)


def test_a_rotation_has_three_steps():
    ring = KeyRing.first(NOW)
    old = ring.signing
    ring = ring.with_new_key(NOW + 1)
    new = ring.keys[1]
    assert (states(ring), ring.signing) == (["signing", "new"], old)
    ring = ring.rotated(NOW + 2)
    assert (states(ring), ring.signing.secret) == (["retired", "signing"], new.secret)
    assert [key.since_ns for key in ring.keys] == [NOW + 2] * 2
    assert [key.created_at_ns for key in ring.keys] == [NOW, NOW + 1]
    ring = ring.rotated(NOW + 2 + LONGEST_AGE_NS + 1)
    assert (states(ring), ring.signing.secret) == (["signing"], new.secret)


def test_no_step_of_a_rotation_is_taken_before_its_turn():
    first = KeyRing.first(NOW)
    assert "keys new" in refusal(first.rotated, NOW)
    begun = first.with_new_key(NOW)
    assert "a rotation is under way" in refusal(begun.with_new_key, NOW)
    assert "no key is retired" in refusal(begun.rotated, NOW, True)
    half = begun.rotated(NOW)
    assert "a rotation is under way" in refusal(half.with_new_key, NOW)
    for now in (NOW, NOW + LONGEST_AGE_NS, NOW - DAY):
        assert "what it signed counts for 7" in refusal(half.rotated, now)
    assert states(half.rotated(NOW, True)) == states(half.rotated(NOW + 8 * DAY)) == ["signing"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([], "one must sign, here 0 do"),
        ([(SECRET, KeyState.NEW)], "one must sign, here 0 do"),
        ([(SECRET, KeyState.SIGNING), (OTHER_SECRET, KeyState.SIGNING)], "one must sign, here 2 do"),
        ([(bytes([at]) * 32, state) for at, state in enumerate(KeyState)], "in a rotation two; here are 3"),
        ([(SECRET, KeyState.SIGNING), (SECRET, KeyState.NEW)], "is in the ring twice"),
    ],
)
def test_a_ring_that_is_none_is_refused(keys, why):
    assert why in refusal(KeyRing, tuple(Key(*key) for key in keys))


# ------------------------------------------------------------------ the file
def written(path, ring=None):
    write_key_file(path, ring or KeyRing.first(NOW).with_new_key(NOW))
    return path


def test_a_file_is_read_as_it_was_written_and_its_owners_alone(tmp_path):
    ring, path = KeyRing.first(NOW).with_new_key(NOW + 1), tmp_path / "keys.json"
    before = os.umask(0)
    try:
        write_key_file(path, ring)
    finally:
        os.umask(before)
    assert read_keys(path, NOWHERE) == ring
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [path] == [*tmp_path.iterdir()]


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o666, 0o777])
def test_a_file_that_others_may_use_is_refused(tmp_path, mode):
    path = written(tmp_path / "keys.json")
    path.chmod(mode)
    assert f"others may use the key file {path} (mode {mode:04o})" in refusal(read_keys, path, NOWHERE)
    path.chmod(0o400)
    assert read_keys(path, NOWHERE)


def test_a_file_of_somebody_elses_is_refused(tmp_path):
    if os.geteuid():
        pytest.skip("only root can give a file away")
    path = written(tmp_path / "keys.json")
    os.chown(path, 54321, -1)
    assert "belongs to user 54321, and you are user 0" in refusal(read_keys, path, NOWHERE)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is no file" in refusal(read_keys, tmp_path / "pipe", NOWHERE)
    tmp_path.chmod(0o700)
    assert "is no file" in refusal(read_keys, tmp_path, NOWHERE)
    (tmp_path / "large").touch(0o600)
    os.truncate(tmp_path / "large", 2**40)
    assert "cannot be a key file" in refusal(read_keys, tmp_path / "large", NOWHERE)
    assert "keys new" in refusal(read_keys, tmp_path / "none", NOWHERE)
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot read the key file" in refusal(read_keys, tmp_path / "loop", NOWHERE)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path, others = written(tmp_path / "keys.json"), KeyRing.first(NOW)
    before = path.read_bytes()
    with files_of_at_most(len(before) // 2):
        assert "cannot write" in refusal(write_key_file, path, others)
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (before, [path])
    with mounted(tmp_path / "full", "size=4k") as full:
        (full / "filler").write_bytes(bytes(4096))
        assert "No space left" in refusal(write_key_file, full / "keys.json", others)
        assert [path.name for path in full.iterdir()] == ["filler"]


def test_where_nothing_can_be_written_nothing_is_left(tmp_path):
    with read_only(tmp_path / "fixed") as place:
        for path in (place / "keys.json", place / "deep" / "keys.json"):
            assert "cannot write" in refusal(change_key_file, path, lambda _: KeyRing.first(NOW))
    assert "no key file" in refusal(parse(["keys", "rotate", "--file", str(tmp_path / "new" / "k")]).run, output())
    assert not (tmp_path / "new").exists()


def test_of_two_who_change_a_file_at_once_one_does(tmp_path):
    path, inside, told = tmp_path / "keys.json", threading.Event(), threading.Event()

    def slow(ring):
        inside.set()
        assert told.wait(60)
        return KeyRing.first(NOW)

    thread = threading.Thread(target=change_key_file, args=(path, slow))
    thread.start()
    assert inside.wait(60)
    try:
        assert "is in use by process" in refusal(change_key_file, path, lambda _: KeyRing.first(NOW))
    finally:
        told.set()
        thread.join()
    assert read_keys(path, NOWHERE).signing
    assert [*tmp_path.iterdir()] == [path]


def test_keys_of_the_environment_are_not_written(tmp_path):
    ring = read_keys(tmp_path / "none", {KEY_VARIABLE: text_of(SECRET)})
    assert "make new ones" in refusal(write_key_file, tmp_path / "keys.json", ring)
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------ the environment
@pytest.mark.parametrize("text", [text_of(SECRET), text_of(SECRET).rstrip("="), f" {text_of(SECRET)}\n"])
def test_a_key_may_be_in_the_environment(tmp_path, text):
    ring = read_keys(tmp_path / "none", {KEY_VARIABLE: text})
    assert ring.signing.secret == SECRET
    assert states(ring) == ["signing"]


@pytest.mark.parametrize("text", ["", " ", "secret", text_of(SECRET)[:42], "ä" * 50, "!" * 64, text_of(SECRET) + " x"])
def test_what_is_no_key_in_the_environment_is_refused_and_not_shown(tmp_path, text):
    said = refusal(read_keys, tmp_path / "none", {KEY_VARIABLE: text})
    assert f"{KEY_VARIABLE} holds no key" in said
    assert len(text.strip()) < 8 or text[:8] not in said
    assert not shows(said, SECRET)


def test_two_places_with_keys_are_refused_as_it_is_not_clear_which_count(tmp_path):
    path = written(tmp_path / "keys.json")
    environment = {KEY_VARIABLE: text_of(SECRET)}
    assert "so that it is clear which count" in refusal(read_keys, path, environment)


# ------------------------------------------------------------------ while somebody is at work
def test_a_file_that_is_replaced_is_read_and_one_that_cannot_be_is_told_of_once(tmp_path, caplog):
    path = written(tmp_path / "keys.json", first := KeyRing.first(NOW))
    keys = CurrentKeys(path, NOWHERE)
    assert keys() == first
    begun = change_key_file(path, lambda ring: ring.with_new_key(NOW))
    assert keys() == begun
    with caplog.at_level(logging.WARNING):
        path.chmod(0o644)
        assert keys() == keys() == begun
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "going on with the signing keys as they were: others may use" in caplog.text
        path.unlink()
        assert keys() == keys() == begun
        assert len(caplog.records) == 2
    assert not any(shows(caplog.text, key.secret) for key in begun.keys)
    written(path, half := begun.rotated(NOW))
    assert keys() == half


def test_a_file_that_could_not_be_read_for_a_moment_is_read_the_next_time(tmp_path, monkeypatch):
    path = written(tmp_path / "keys.json", KeyRing.first(NOW))
    keys = CurrentKeys(path, NOWHERE)
    first = keys()
    begun = change_key_file(path, lambda ring: ring.with_new_key(NOW))

    def short_of_files(path):
        raise UserError(f"cannot read {path}: Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(key_file, "read_key_file", short_of_files)
        assert keys() == first
    assert keys() == begun


def test_without_keys_nobody_begins(tmp_path):
    assert "there is no signing key" in refusal(CurrentKeys, tmp_path / "none", NOWHERE)
    keys = CurrentKeys(tmp_path / "none", {KEY_VARIABLE: text_of(SECRET)})
    written(tmp_path / "none")
    assert keys().signing.secret == SECRET


# ------------------------------------------------------------------ the command
def said(capsys, *words):
    parse(["keys", *map(str, words)]).run(output())
    return capsys.readouterr().out


def test_the_command_goes_through_a_rotation_and_shows_no_key(tmp_path, capsys, caplog):
    path = tmp_path / "new" / "keys.json"
    given = ("--file", path)
    with caplog.at_level(logging.DEBUG):
        told = [said(capsys, "new", *given), said(capsys, "new", *given)]
        ring = read_keys(path, NOWHERE)
        told += [said(capsys, "list", *given), said(capsys, "rotate", *given)]
        told += [refusal(parse(["keys", "rotate", *map(str, given)]).run, output())]
        told += [said(capsys, "rotate", "--at-once", *given), said(capsys, "list", *given)]
    old, new = ring.keys
    assert states(ring) == ["signing", "new"]
    assert all(key.key_id in told[2] for key in ring.keys)
    assert [f"{key.state} " in told[2] for key in ring.keys] == [True, True]
    assert "0 h 0 min ago" in told[2]
    assert "retired" in told[3]
    assert "counts for 7" in told[4]
    assert (old.key_id in told[6], new.key_id in told[6]) == (False, True)
    assert read_keys(path, NOWHERE).signing.secret == new.secret
    everything = "".join(told) + caplog.text
    assert not any(shows(everything, key.secret) for key in ring.keys)
    assert path.read_text().count(text_of(new.secret)) == 1, "while it would be found where it is"
    assert shows(path.read_text(), new.secret)


def test_ages_are_shown_in_days_and_hours(tmp_path, capsys, monkeypatch):
    path = written(tmp_path / "keys.json", KeyRing.first(NOW))
    monkeypatch.setattr("esper_ray.commands.keys.time.time_ns", lambda: NOW + 9 * DAY + 5 * DAY // 24)
    assert "9 d 5 h ago" in said(capsys, "list", "--file", path)


def test_keys_of_the_environment_are_listed_and_a_file_beside_them_is_not_changed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, text_of(SECRET))
    told = said(capsys, "list", "--file", tmp_path / "none")
    assert Key(SECRET, KeyState.SIGNING).key_id in told
    assert "unknown" in told
    assert not shows(told, SECRET)
    for word in ("new", "rotate"):
        command = parse(["keys", word, "--file", str(tmp_path / "none")])
        assert f"{KEY_VARIABLE} is set" in refusal(command.run, output())
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("word", ["new", "list"])
def test_at_once_is_for_rotations(tmp_path, word):
    command = parse(["keys", word, "--at-once", "--file", str(tmp_path / "keys.json")])
    assert "--at-once is for esper-ray keys rotate" in refusal(command.run, output())


def test_the_command_takes_the_file_that_services_take_by_default():
    assert parse(["keys", "list"]).file == KEY_FILE


# ------------------------------------------------------------------ nothing shows
def test_neither_keys_nor_rings_show_their_secrets():
    ring = KeyRing((Key(SECRET, KeyState.SIGNING), Key(OTHER_SECRET, KeyState.NEW)))
    for said in (repr(ring), str(ring), f"{ring.signing}", f"{ring.keys!r}"):
        assert not shows(said, SECRET)
        assert not shows(said, OTHER_SECRET)
        assert "SIGNING" in said


def mutations(text):
    stored = json.loads(text)
    secret = stored["keys"][0]["secret"]
    places = st.integers(0, len(text))
    return st.one_of(
        places.map(lambda at: text[:at]),
        st.tuples(places, st.text(max_size=3)).map(lambda put: text[: put[0]] + put[1] + text[put[0] :]),
        st.sampled_from(
            [
                json.dumps({"keys": {secret: secret}}),
                json.dumps({secret: []}),
                json.dumps({**stored, secret: 1}),
                json.dumps({"keys": [{**stored["keys"][0], secret: 1}]}),
                json.dumps({"keys": [{**stored["keys"][0], "state": secret}]}),
                json.dumps({"keys": [{**stored["keys"][0], "since_ns": secret}]}),
                json.dumps({"keys": [{**stored["keys"][0], "secret": secret[:42]}]}),
                json.dumps({"keys": secret}),
                json.dumps({"keys": stored["keys"] * 2}),
                json.dumps({"keys": []}),
                json.dumps(secret),
                secret,
                "[" * 10_000,
                "",
            ]
        ),
    )


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "keys.json"
    write_key_file(path, KeyRing((Key(SECRET, KeyState.SIGNING, NOW, NOW),)))
    return path.read_text()


@given(data=st.data())
def test_a_damaged_file_is_refused_in_a_line_that_quotes_nothing_of_it(tmp_path_factory, whole_file, data):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.touch(0o600)
    path.write_text(data.draw(mutations(whole_file)), encoding="utf-8", errors="surrogatepass")
    told = ""
    try:
        assert read_keys(path, NOWHERE).signing  # what was inserted may be in a place of no matter
    except UserError as error:
        told = "".join(traceback.format_exception(error))
    assert not shows(told, SECRET)


# ------------------------------------------------------------------ the page
def test_the_page_says_what_each_refusal_means_and_shows_commands_that_there_are():
    page = (ROOT / "docs" / "security.md").read_text()
    *_, refusals = page.partition("## Refusals")
    cells = [line.split("|")[1].strip(" `") for line in refusals.splitlines() if line.startswith("| `")]
    assert cells == [*Untrusted]
    for name, meaning in field_docs(Untrusted).items():
        assert f"| `{Untrusted[name]}` | {meaning} |" in page
    assert all(f"`{kind}`" in page for kind in Stream)
    commands = re.findall(r"esper-ray (keys [^`#\n]+)", page)
    assert {parse(shlex.split(words)).word for words in commands} == {"new", "rotate", "list"}
    assert f"`{KEY_FILE}`" in page
    assert f"`{KEY_VARIABLE}`" in page


def test_the_pages_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "security.md").read_text(), flags=re.DOTALL)
    said(capsys, "new")
    found = {}
    exec(code, found)
    assert found["envelope"].payload == b"a command"
    assert not capsys.readouterr().out
    again = found["connection"].execute("SELECT count(*) FROM nonces").fetchone()
    assert again == (1,)
