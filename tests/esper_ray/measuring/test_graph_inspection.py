"""`esper-ray inspect TASK --graph` shows all that is measured of a host, and draws it."""

import io

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from envs.graph.layout import BLUEPRINTS, OBSERVATION
from envs.tasks import make_task
from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.measuring.graph_inspection import UNKNOWN_CELL, MeasuredGraph, graph_sections
from esper_ray.measuring.inspection import COLUMNS


def output_of(*arguments):
    out = io.StringIO()
    parse(["inspect", *arguments]).run(Console(file=out, width=200))
    return out.getvalue()


@pytest.mark.parametrize("task", ["digits_mixed", "digits_scale", "tabular", "text"])
def test_tables_fit_the_terminal_and_the_picture_is_drawn(task, tmp_path):
    picture = tmp_path / "of" / f"{task}.png"
    text = output_of(task, "--graph", "--output", str(picture))
    assert max(map(len, text.splitlines()[:-1])) <= COLUMNS
    assert "…" not in text
    assert text.endswith(f"written: {picture}\n")
    assert imread(picture).std() > 0.05, "it is not blank"


def test_every_number_and_name_is_shown_once():
    graph = MeasuredGraph.after_an_epoch(make_task("digits_mixed"), 10)
    shown = {}
    for section in graph_sections(graph):
        kind = section.title.removesuffix(", continued").lower()
        for heading, cells in zip(section.columns, zip(*section.rows, strict=True), strict=True):
            key = f"{kind}.{heading.removeprefix('>').replace(' ', '_')}"
            assert shown.setdefault(key, cells) is cells or key.endswith((".name", ".source", ".target"))
    structure = graph.layout.structure
    for key, values in graph.numbers.items():
        if key not in (OBSERVATION, BLUEPRINTS):
            cells = [np.nan if cell == UNKNOWN_CELL else float(cell.replace(",", "")) for cell in shown[key]]
            np.testing.assert_allclose(cells, values, rtol=1e-3)
    for key, names in structure.names.items():
        assert [None if cell == UNKNOWN_CELL else cell for cell in shown[key]] == list(names)
    for relation in ("connects", "feeds", "influences", "tunes", "monitors"):
        assert list(zip(shown[f"{relation}.source"], shown[f"{relation}.target"], strict=True)) == graph.ends(relation)


def test_the_picture_is_where_it_should_be_or_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output_of("tabular", "--graph", "--markdown")
    assert [path.name for path in tmp_path.iterdir()] == ["graph_tabular.png"]
    with pytest.raises(UserError, match="add --graph"):
        output_of("tabular", "--output", "picture.png")
    with pytest.raises(UserError, match="names no picture"):
        output_of("tabular", "--graph", "--output", "picture.json")
    (tmp_path / "of.png").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        output_of("tabular", "--graph", "--output", "of.png")
