"""docs/strategic.md: its code runs, and its links lead somewhere."""

import re
from pathlib import Path

import torch

from policies.strategic.builder import vocabulary
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.measured import Measured
from policies.strategic.messages import SystemState
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Registries
from policies.strategic.seen import BLUEPRINTS, INPUTS, OPS, Seen
from tests.esper_ray.live.test_grow_page import users
from tests.places import ROOT

torch.set_num_threads(1)

PAGE = ROOT / "docs" / "strategic.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def block(with_):
    (code,) = (code for code in BLOCKS if with_ in code)
    return code


def test_the_probe_and_what_reads_its_packets(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = users()
    names |= {"validation_images": names["images"]}
    before = list(names["model"].state_dict())
    exec(block("import Probe").replace("60", "3"), names)
    packets = [SystemState.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [packet.epoch for packet in packets] == [1, 2, 3]
    assert packets[-1] == names["packet"]
    assert list(names["model"].state_dict()) == before

    registries = Registries(tmp_path / "registries.json").register(vocabulary(Measured.of(packets[0])))
    seen = Seen(frozenset(INPUTS), frozenset(OPS), frozenset(BLUEPRINTS))
    weights = GraphPolicyNetwork(SMALL).state_dict()
    Checkpoint(SMALL, weights, registries, MetricNormaliser(), seen, ("none",), 15, 150, None).save(tmp_path / "policy")
    exec(block("import StrategicPolicy"), names | {"Path": Path})
    assert capsys.readouterr().out.startswith("OK None")


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
