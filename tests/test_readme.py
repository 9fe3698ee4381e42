"""What the README shows must run."""

import re
import subprocess
import sys

from tests.places import ROOT

README = ROOT / "README.md"


def test_the_readmes_example_runs_in_a_process_of_its_own(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code + "\nassert terminated"], cwd=tmp_path, check=False)
    assert result.returncode == 0


def test_the_readmes_links_and_pictures_exist():
    text = README.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
