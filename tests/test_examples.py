"""Every example runs, small."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.places import ROOT

SMALL = {
    "digits_cnn": ["--images", "200"],
    "text_transformer": ["--characters", "4000", "--batches", "2"],
    "lightning_module": ["--images", "200"],
}


def test_every_example_is_tested_here():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("policy", [[], ["--policy", "random_valid"]], ids=["shipped", "random_valid"])
def test_it_prints_every_decision_and_what_grew_and_draws_the_run(name, policy, tmp_path):
    if name == "lightning_module" and find_spec("lightning") is None:
        pytest.skip("the example needs Lightning: pip install -e '.[lightning]'")
    options = ["--epochs", "15", *policy, "--picture", "run.png"]
    script = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *SMALL[name], *options]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    for epoch in range(16):
        assert f"epoch {epoch}/15: accuracy" in said
    assert "parameters grown on" in said
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]
