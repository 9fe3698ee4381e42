"""``esper-ray control``: a host under a controller, and what can be asked and said of it afterwards."""

import pytest

from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.terminal import output


def said(capsys, *words):
    parse(["control", *map(str, words)]).run(output())
    return capsys.readouterr().out


def test_a_host_is_trained_and_every_decision_can_be_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = ("--directory", tmp_path / "state")
    trained = said(capsys, "--max-epochs", 12, *given)
    run_id = "digits_impaired-0-1"
    assert f"run {run_id} by heuristic" in trained
    assert [f"epoch {at}/12: " in trained for at in range(13)] == [True] * 13
    explained = said(capsys, "--explain", run_id, *given)
    assert [f" {at:>5}  " in explained for at in range(12)] == [True] * 12
    assert "from its next decision on" in said(capsys, "pause", run_id, *given)
    assert "paused" in said(capsys, "status", *given)
    assert "from its next decision on" in said(capsys, "release", run_id, *given)
    assert "paused, to be released" in said(capsys, "status", *given)
    said(capsys, "resume", run_id, *given)
    assert "paused" not in said(capsys, "status", *given)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("pause",), "pause which run?"),
        (("resume", "x"), "holds no decisions"),
        (("--explain", "x"), "holds no decisions"),
        (("train", "x"), "a new run has a name of its own"),
        (("--policy", "nobody"), "no policy 'nobody'"),
        (("--max-epochs", "3"), "max_epochs"),
    ],
)
def test_what_cannot_be_done_is_a_line(tmp_path, capsys, words, why):
    with pytest.raises(UserError, match=why) as refused:
        said(capsys, *words, "--directory", tmp_path / "state")
    assert "\n" not in str(refused.value)
