"""Growth in a real Lightning trainer."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("lightning", reason="GrowCallback needs Lightning: pip install -e '.[lightning]'")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from envs.slots import SlotConfig
from envs.tasks import make_task
from envs.vocabulary import Blueprint, GerminationStyle, Tempo
from esper_ray.live import LiveError, rebuild
from esper_ray.live.lightning import GrowCallback
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*isinstance.treespec.*")

EPOCHS = 14
SLOTS = ["net.1", "net.4"]
OUT_OF_ORDER = (
    GrowthPlan(slot=1, blueprint=Blueprint.DEPTHWISE, epoch=0, tempo=Tempo.FAST),
    GrowthPlan(slot=0, blueprint=Blueprint.NORM, epoch=4, style=GerminationStyle.GATED_GATE, tempo=Tempo.FAST),
)
NEVER_BLENDED = (GrowthPlan(slot=0, blueprint=Blueprint.CONV_LIGHT, epoch=0, training_epochs=99),)


def loader(split, number):
    data = make_task("digits").splits[split]
    return DataLoader(TensorDataset(data.x.permute(0, 3, 1, 2).contiguous()[:number], data.y[:number]), 32)


class Digits(LightningModule):
    """A plain CNN; all of Lightning's habits that matter here."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        stem, body = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        pool = [nn.AvgPool2d(2), nn.Flatten()]
        self.net = nn.Sequential(stem, nn.ReLU(), nn.AvgPool2d(2), body, nn.ReLU(), *pool, nn.Linear(32, 10))
        self.example_input_array = torch.zeros(2, 1, 8, 8)
        self.clipped = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]

    def configure_gradient_clipping(self, optimizer, *args, **kwargs):
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.clipped.append({"number": len(gradients), "norm": float(nn.utils.get_total_norm(gradients))})

    def train_dataloader(self):
        return loader("train", 128)

    def val_dataloader(self):
        return loader("validation", 64)


def score(module, batch):
    logits = module(batch[0])
    return F.cross_entropy(logits, batch[1], reduction="sum"), (logits.argmax(1) == batch[1]).sum(), len(batch[1])


def callback(plans=OUT_OF_ORDER, **options):
    policy = FixedSchedule(SlotConfig.for_row(len(SLOTS)), EPOCHS, GrowthSchedule(plans))
    return GrowCallback(SLOTS, **{"score": score, "policy": policy} | options)


def trainer(*callbacks, **options):
    usual = {"accelerator": "cpu", "max_epochs": EPOCHS, "enable_progress_bar": False, "enable_model_summary": False}
    quiet = {"logger": False, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    return Trainer(callbacks=list(callbacks), **usual | quiet | options)


def every_epoch(folder, **options):
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, enable_version_counter=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts: the folder of its checkpoints, the committed module, the callback, the trainer."""
    folder, module, grows = tmp_path_factory.mktemp("whole"), Digits(), callback()
    best = every_epoch(folder, monitor="grow/val_accuracy", mode="max")
    fit = trainer(grows, best, logger=CSVLogger(folder))
    fit.fit(module)
    return folder, module, grows, fit


def same(a, b):
    """Whether two nested states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype
        return alike and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_it_grows_commits_and_logs_every_decision(whole):
    folder, module, grows, fit = whole
    assert [kept.seed.place.name for kept in grows.report.kept] == SLOTS
    assert grows.report.epochs == EPOCHS
    assert fit.callback_metrics["grow/val_accuracy"] == pytest.approx(grows.grower.decision.accuracy)
    (header, *rows) = (folder / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = header.split(",")
    ops = [row.split(",")[columns.index("grow/op")] for row in rows]
    assert sum(op != "" for op in ops) == EPOCHS
    assert len(set(ops) - {""}) > 1
    best = max(float(row.split(",")[columns.index("grow/val_accuracy")] or 0) for row in rows)
    assert fit.checkpoint_callback.best_model_score == pytest.approx(best)
    (result,) = trainer().validate(module, verbose=False)
    assert result["val_loss"] == pytest.approx(grows.report.loss, rel=1e-5)


@pytest.mark.parametrize("stopped_after", [0, 2, 5, 9, EPOCHS - 1])
def test_to_stop_and_resume_equals_not_to_stop(whole, stopped_after, tmp_path):
    folder, module, grows, _ = whole
    resumed, again = Digits(), callback()
    fit = trainer(again, every_epoch(tmp_path))
    fit.fit(resumed, ckpt_path=folder / f"epoch={stopped_after}.ckpt")
    assert same(resumed.state_dict(), module.state_dict())
    assert (str(again.report), again.report.card) == (str(grows.report), grows.report.card)
    for epoch in range(stopped_after + 1, EPOCHS):
        ours, theirs = (torch.load(place / f"epoch={epoch}.ckpt") for place in (tmp_path, folder))
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert same(ours[part], theirs[part]), (epoch, part)
        assert same(ours["callbacks"]["GrowCallback"], theirs["callbacks"]["GrowCallback"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_gradient_clipping_the_host_trains_as_without_seeds(accumulate):
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": accumulate}
    alone, host, grows = Digits(), Digits(), callback(NEVER_BLENDED)
    trainer(**options).fit(alone)
    trainer(grows, **options).fit(host)
    assert grows.report.removed == ("net.1",)
    assert same(host.state_dict(), alone.state_dict())


def test_seeds_are_clipped_one_by_one_and_never_with_the_host():
    clipped, module, grows = Digits(), Digits(), callback()
    trainer(grows, gradient_clip_val=0.05).fit(clipped)
    assert {entry["number"] for entry in clipped.clipped} == {6}
    assert max(entry["norm"] for entry in clipped.clipped) == pytest.approx(0.05, rel=1e-3)
    assert len(grows.report.kept) == len(SLOTS)
    trainer(callback(), gradient_clip_val=1e9).fit(module)
    unclipped = Digits()
    trainer(callback()).fit(unclipped)
    assert same(module.state_dict(), unclipped.state_dict())


def test_evaluations_run_under_the_trainers_precision():
    seen = set()

    def watched(module, batch):
        seen.add((module(batch[0]).dtype, module.training, torch.is_grad_enabled(), module.trainer.validating))
        return score(module, batch)

    grows = callback(score=watched)
    trainer(grows, precision="bf16-mixed").fit(Digits())
    assert seen == {(torch.bfloat16, False, False, True)}
    assert len(grows.report.kept) == len(SLOTS)


def test_a_checkpoint_of_before_growth_loads(tmp_path):
    trainer(every_epoch(tmp_path), max_epochs=2).fit(Digits())
    module, grows = Digits(), callback()
    trainer(grows, max_epochs=EPOCHS + 2).fit(module, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert (grows.report.epochs, grows.grower.max_epochs) == (EPOCHS, EPOCHS)
    assert len(grows.report.kept) == len(SLOTS)


def test_checkpoints_of_every_epoch_can_be_tested_and_rebuilt(whole):
    folder, _, _, _ = whole
    tested = Digits()  # one module for all, so that it changes from seeds to others and back
    for epoch in (9, 2, 12, 0):
        path = folder / f"epoch={epoch}.ckpt"
        (result,) = trainer(callback()).validate(tested, ckpt_path=path, verbose=False)
        saved = torch.load(path)
        fresh = rebuild(Digits(), saved["callbacks"]["GrowCallback"]["card"])
        fresh.load_state_dict(saved["state_dict"])
        assert same(fresh.state_dict(), tested.state_dict())
        (rebuilt,) = trainer().validate(fresh, verbose=False)
        assert rebuilt == result


class Manual(Digits):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class NoExample(Digits):
    def __init__(self):
        super().__init__()
        self.example_input_array = None


class NoValidation(Digits):
    val_dataloader = LightningModule.val_dataloader


@pytest.mark.parametrize(
    ("module", "options", "others", "message"),
    [
        (Manual, {}, [], "optimizes manually"),
        (NoExample, {}, [], "pass example="),
        (NoValidation, {}, [], "give the trainer validation loaders"),
        (lambda: torch.compile(Digits()), {}, [], "compiled before it grew"),
        (Digits, {}, [StochasticWeightAveraging(1e-2)], "StochasticWeightAveraging averages"),
        (Digits, {"score": lambda module, batch: (0.0, 1.0)}, [], "must return three numbers"),
        (Digits, {"score": lambda module, batch: (0.0, 0.0, 0)}, [], "hold no samples"),
        (Digits, {"max_epochs": 3}, [], "at least 12, got 3"),
    ],
)
def test_what_cannot_grow_is_refused_and_left_as_it_was(module, options, others, message):
    given = module()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    with pytest.raises(LiveError, match=message):
        trainer(callback(**options), *others).fit(given)
    assert same(dict(given.state_dict()), before)


def test_several_devices_are_refused():
    several = Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    grows, module = callback(), Digits()
    grows.setup(several, module, "fit")
    with pytest.raises(LiveError, match="in one process, on one device"):
        grows.on_fit_start(several, module)


def test_a_trainer_without_max_epochs_needs_to_be_told(whole):
    with pytest.raises(LiveError, match="has no max_epochs"):
        trainer(callback(), max_epochs=-1, max_steps=5).fit(Digits())
    grows = callback(max_epochs=EPOCHS)
    trainer(grows, max_epochs=-1, max_steps=9).fit(Digits())
    assert grows.grower.max_epochs == EPOCHS
    assert grows.report.epochs == 3


def test_checkpoints_that_cannot_be_resumed_say_so(whole, tmp_path):
    _, _, grows, fit = whole
    fit.save_checkpoint(tmp_path / "committed.ckpt")
    with pytest.raises(LiveError, match="a committed run"):
        trainer(callback(), max_epochs=EPOCHS + 1).fit(Digits(), ckpt_path=tmp_path / "committed.ckpt")
    fit.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(LiveError, match="not the state of a GrowCallback"):
        trainer(callback()).fit(Digits(), ckpt_path=tmp_path / "weights.ckpt")
    (result,) = trainer(callback()).validate(Digits(), ckpt_path=tmp_path / "weights.ckpt", verbose=False)
    assert result["val_loss"] == pytest.approx(grows.report.loss, rel=1e-5)


@pytest.mark.parametrize("options", [{"polcy": "heuristic"}, {"evaluate": score}, {"writer": None}])
def test_keywords_that_grow_does_not_take_from_here_are_refused_at_once(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        GrowCallback(SLOTS, score=score, **options)


def test_importing_the_live_package_imports_neither_lightning_nor_ray():
    code = "import sys, esper_ray.live; sys.exit(bool({'lightning', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
