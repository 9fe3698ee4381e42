"""What the program writes, and where it may be written from."""

import io
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import esper_ray
from esper_ray import terminal

SOURCES = sorted(Path(esper_ray.__file__).parent.rglob("*.py"))


def printed(file, what):
    console = terminal.output()
    console.file = file
    console.print(what)
    return file.getvalue()


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=300))
def test_text_appears_as_it_is(text):
    assert printed(io.StringIO(), text) == text + "\n"


@given(st.text(st.sampled_from("[]/bred a:\\"), min_size=1, max_size=20))
def test_cells_titles_and_headings_appear_as_they_are(text):
    text = text.strip() or "x"
    table = Table(text, title=text, caption=text, box=None)
    table.add_row(text)
    assert [line.strip() for line in printed(io.StringIO(), table).splitlines()] == [text] * 4


def test_there_is_one_place_that_makes_consoles_and_nobody_writes_markup():
    """Otherwise a user's brackets would be markup again somewhere."""
    for path in SOURCES:
        if path.name != "terminal.py":
            assert not re.search(r"\bConsole\(|from_markup|markup=True|\.status\(|\[/\]", path.read_text()), path


def test_what_the_program_cites_is_there():
    for path in SOURCES:
        for page in re.findall(r"\b(?:docs/(?:[\w-]+/)*)?[\w-]+\.md\b", path.read_text()):
            made = {"study.md", "tune.md", "comparison.md", "results.md"}
            root = Path(esper_ray.__file__).parents[1]
            # Who writes a page is told where.
            told = [root / "docs", root / "studies" / "results"] if path.stem.endswith("_page") else []
            places = [root, *told]
            assert page in made or any((place / page).is_file() for place in places), (path, page)


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), max_size=3))
def test_a_command_can_be_pasted(words):
    assert shlex.split(terminal.command(*words)) == ["esper-ray", *words]


def test_a_wait_is_told_into_a_pipe_again_and_again(monkeypatch):
    monkeypatch.setattr(terminal, "HEARTBEAT_SECONDS", 0.01)
    file = io.StringIO()
    console = terminal.output()
    console.file = file
    with terminal.under_way(console, "first [one]") as now:
        wait_for("0:00 first [one]\n", file)
        now("then another")
        wait_for("0:00 then another\n0:00 then another\n", file)
    said = file.getvalue()
    time.sleep(0.05)
    assert file.getvalue() == said


def wait_for(text, file):
    for _ in range(1000):
        if text in file.getvalue():
            return
        time.sleep(0.01)
    pytest.fail(f"{text!r} is not in {file.getvalue()!r}")


def test_a_run_beside_modules_with_our_names_in_a_directory_of_any_name(tmp_path):
    """Ray and ``python -m`` put the current directory first on Python's path; an address that is empty is none."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()
    (tmp_path / "policies.py").touch()
    name = "lr[a] [/b] " + "x" * 150
    small = ["--debug", "--iterations", "1", "--max-epochs", "2", "--hosts-per-runner", "2", "--num-env-runners", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "esper_ray", "train", *small, "--run-dir", name],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RAY_ADDRESS": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    path = str((tmp_path / name).resolve())
    lines = result.stdout.splitlines()
    assert f"digits_impaired: 1 iterations, run directory {path}" in lines
    assert lines[-1] == f"watch: tensorboard --logdir '{path}'    compare: esper-ray evaluate '{path}'"
