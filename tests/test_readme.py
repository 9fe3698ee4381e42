"""What the README shows must run."""

import re
import subprocess
import sys

from envs.observation import ObservationLayout
from envs.tasks import make_task
from esper_ray.measuring.inspection import inspect_task
from policies.learned import build_network
from policies.network_config import NetworkConfig
from tests.places import ROOT

README = ROOT / "README.md"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_readmes_example_runs_in_a_process_of_its_own(tmp_path):
    growing, code = blocks(README)
    assert growing == blocks(ROOT / "docs" / "grow.md")[0], "which a test runs"
    result = subprocess.run([sys.executable, "-c", code + "\nassert terminated"], cwd=tmp_path, check=False)
    assert result.returncode == 0


def test_the_readmes_links_and_pictures_exist():
    text = README.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (README.parent / target).exists(), target


def test_where_the_policys_input_comes_from_is_derived_and_said_alike_everywhere():
    slots = make_task("digits_impaired").slots
    measured, embedding = ObservationLayout(slots).size, NetworkConfig().embedding_dim
    read = build_network(slots, NetworkConfig()).encoder.width
    assert read == measured + slots.num_slots * embedding == 133
    sum_ = f"{measured} measured + {slots.num_slots} × {embedding} embedded"
    first_screen = " ".join("".join(README.read_text().splitlines(keepends=True)[:24]).split())
    assert f"{read} numbers ({sum_}" in first_screen
    (section,) = (
        part for part in inspect_task(make_task("digits_impaired")) if part.title == "Observation of the host"
    )
    assert f"{read} numbers: {sum_}" in section.note
