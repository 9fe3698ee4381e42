"""docs/grow.md: its code runs."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from envs.slots import SlotConfig
from esper_ray.controller.records import Records
from esper_ray.live import grow
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule
from tests.places import ROOT

torch.set_num_threads(1)

PAGE = ROOT / "docs" / "grow.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def block(with_):
    """The page's only block that has this in it; a policy that is no file lets it run in any checkout."""
    (code,) = (code for code in BLOCKS if with_ in code)
    return code.replace("max_epochs=60)", 'max_epochs=60, policy="heuristic")')


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).mean((2, 3)))


def users():
    """What a reader has."""
    torch.manual_seed(0)
    images, labels, model = torch.randn(16, 1, 6, 6), torch.arange(16) % 3, Network()

    def evaluate():
        logits = model(images)
        return F.cross_entropy(logits, labels).item(), 100 * (logits.argmax(1) == labels).float().mean().item()

    return {
        "torch": torch,
        "F": F,
        "images": images,
        "Network": Network,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loader": DataLoader(TensorDataset(images, labels), 8),
        "evaluate": evaluate,
    }


def growing(epochs=9):
    """What a reader has after some epochs."""
    names = users()
    policy = FixedSchedule(SlotConfig.for_row(3), 12, GrowthSchedule((GrowthPlan(epoch=0), GrowthPlan(slot=2))))
    handed = {name: names[name] for name in ("model", "optimizer", "evaluate")}
    names["grower"] = grow(
        **handed, slots=["stem", "body.*"], example=names["images"][:2], max_epochs=12, policy=policy
    )
    for _ in range(epochs):
        for x, y in names["loader"]:
            names["optimizer"].zero_grad()
            F.cross_entropy(names["model"](x), y).backward()
            names["optimizer"].step()
        names["grower"].end_epoch()
    return names


def committed():
    names = growing(12)
    return names | {"report": names["grower"].commit()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_loop(tmp_path):
    names = users()
    exec(block("report = grower.commit()"), names)
    assert names["report"].epochs == 60
    assert (tmp_path / "growth.png").is_file()


def test_candidates(capsys):
    exec(block("import candidates"), users())
    assert "stem  an image of width 4" in capsys.readouterr().out


def test_compiling():
    names = growing(0)
    with torch._dynamo.config.patch(recompile_limit=8):
        exec(block("torch.compile(model)"), names)
        assert torch._dynamo.config.recompile_limit == 64
    assert names["compiled"]._orig_mod is names["model"]


def test_saving_and_resuming():
    names = growing(9)
    exec(block('torch.save(state, "run.pt")'), names)
    resumed = users()
    code = block("grower.load_state_dict").replace('max_epochs=60, policy="heuristic"', "max_epochs=12, policy=policy")
    policy = FixedSchedule(SlotConfig.for_row(3), 12, GrowthSchedule((GrowthPlan(epoch=0), GrowthPlan(slot=2))))
    exec(code, resumed | {"policy": policy})
    ours, theirs = (which["model"].state_dict() for which in (resumed, names))
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("growth.") for key in ours)
    assert all(map(torch.equal, ours.values(), theirs.values()))


def test_rebuilding():
    names = committed()
    exec(block("rebuild(Network()"), names)
    again, model, images = names["again"].eval(), names["model"].eval(), names["images"]
    assert torch.equal(again(images), model(images))


def test_exporting():
    names = committed()
    exec(block("torch.export.export"), names)
    torch.testing.assert_close(names["logits"], names["model"](names["images"][:7]))


def test_averaged_copies():
    names = growing(9)
    exec(block("AveragedModel(model"), names)
    assert names["average"].module.state_dict().keys() == names["model"].state_dict().keys()


def test_lightning(capsys):
    lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install -e '.[lightning]'")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, index):
            pass

        def train_dataloader(self):
            return names["loader"]

        val_dataloader = train_dataloader

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    names = users()
    quiet = ", logger=False, enable_checkpointing=False, enable_progress_bar=False"
    code = block("GrowCallback(").replace("example=images[:2])", 'example=images[:2], policy="heuristic")')
    code = code.replace("Trainer(max_epochs=60", f"Trainer(max_epochs=12{quiet}")
    exec(code, names | {"module": Module()})
    assert "parameters grown on" in capsys.readouterr().out


def test_who_decides():
    names = users()
    exec(block("FixedSchedule("), names)
    assert names["grower"].slots == ("stem", "body.0", "body.1")


def test_under_a_controller(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = users()

    def train():
        names["optimizer"].zero_grad()
        loss = F.cross_entropy(names["model"](names["images"]), torch.arange(16) % 3)
        loss.backward()
        names["optimizer"].step()
        return loss.item()

    given = names | {"train": train, "train_set": range(16)}
    exec(block("Controller(").replace("60", "12"), given)
    given["controller"].close()
    assert "epoch 12/12" in capsys.readouterr().out
    with Records.open(Path("var/controller")) as records:
        (run_id,) = records.runs()
        assert len(list(records.records(run_id))) == 12


def test_every_block_is_run_here_and_every_link_leads_somewhere():
    assert len(BLOCKS) == 11
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
