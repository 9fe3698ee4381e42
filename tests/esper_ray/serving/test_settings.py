"""Nobody but this machine is answered without a token, and a token that others can read is none."""

import os

import pytest

from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.serving.settings import ServiceConfig, read_token


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_a_loopback_address_needs_no_token(host):
    assert ServiceConfig(host=host).token() is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org", "localhost.example.org", ""])
def test_any_other_address_is_refused_without_a_token(host, tmp_path):
    with pytest.raises(UserError, match="give --token-file"):
        parse(["serve", "export", "--host", host])
    assert ServiceConfig(host=host, token_file=tmp_path / "token").host == host


def test_a_cpu_has_no_other_precision():
    with pytest.raises(UserError, match="leave out --reduced-precision, or give --device cuda"):
        parse(["serve", "export", "--reduced-precision"])
    assert ServiceConfig(device="cuda", reduced_precision=True).reduced_precision


def token_file(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"x" * 40, 0o640, "mode 0640.*chmod 600"),
        (b"x" * 40, 0o604, "mode 0604"),
        (b"", 0o600, "holds no token"),
        (b"short", 0o600, "at least 16"),
        (b"two words of enough length", 0o600, "one word"),
        (b"\xff" * 40, 0o600, "printable ASCII"),
        (b"x" * 10**5, 0o600, "cannot be a token file"),
    ],
)
def test_a_file_that_is_no_secret_token_is_refused(tmp_path, content, mode, says):
    with pytest.raises(UserError, match=says) as error:
        read_token(token_file(tmp_path / "token", content, mode))
    assert "\n" not in str(error.value)


def test_a_token_is_read_without_its_line_end(tmp_path):
    assert read_token(token_file(tmp_path / "token", b"x" * 40 + b"\n")) == "x" * 40
    with pytest.raises(UserError, match=r"there is no token file.*umask 077"):
        read_token(tmp_path / "missing")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UserError, match=r"the token file .* is no file"):
        read_token(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--port", "0", "port must be a whole number from 1 to 65,535, got 0"),
        ("--replicas", "0", "replicas must be a whole number from 1"),
        ("--session-seconds", "0", "above 0"),
        ("--session-seconds", "nan", "above 0"),
        ("--batch-wait-seconds", "-1", "from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(flag, value, says):
    with pytest.raises(UserError, match=says):
        parse(["serve", "export", flag, value])
