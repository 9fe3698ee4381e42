"""What a grower says, who may decide, and that the same seeds give the same run."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from envs.slots import SlotConfig
from envs.vocabulary import Blueprint, Tempo
from esper_ray.keeping.export import write_export
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.live import LiveError, grow
from esper_ray.presets import DEBUG
from policies.bundle import PolicySettings
from policies.factory import build_policy
from policies.network_config import NetworkConfig
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule, RandomValid
from policies.weights import save_weights
from tests.esper_ray.live.models import LeNet, Loop, images, schedule
from tests.places import ROOT

EPOCHS = 16


class Deep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 6))
        for _ in range(30):
            self.layers.append(torch.nn.Linear(6, 6))
        self.layers.append(torch.nn.Linear(6, 4))

    def forward(self, x):
        return self.layers(x)


def run(loop=None, slots=("c1", "c2"), epochs=EPOCHS, results=None, **keywords):
    """A whole run, with the lines that it printed."""
    loop = loop or Loop(LeNet, images)
    keywords = {"policy": schedule(2, epochs=epochs)} | keywords
    grower = grow(
        loop.model,
        loop.optimizer,
        list(slots),
        example=loop.example,
        evaluate=loop.evaluate,
        max_epochs=epochs,
        **keywords,
    )
    lines = [str(grower.decision)]
    for _ in range(epochs):
        loop.epoch()
        lines.append(str(grower.end_epoch(*(results or ()))))
    return loop, grower, lines


def test_every_epoch_is_a_line_and_the_end_a_table():
    _, grower, lines = run(policy=schedule(2, Blueprint.DEPTHWISE, epochs=EPOCHS))
    assert lines[0].startswith("epoch 0/16: accuracy ")
    assert "germinate depthwise in c1 (linear add, 3 epochs to alpha 1)" in lines[1]
    assert "c1 depthwise training" in lines[3]
    assert any("c1 depthwise blending at 0.33" in line for line in lines)
    assert "commit() decides what stays" in lines[-1]
    report = grower.commit()
    text = str(report)
    assert text.startswith("16 epochs, ")
    assert f"{report.parameters - report.host_parameters:,} parameters grown on {report.host_parameters:,}" in text
    assert "  c1: depthwise (add, alpha 1), 108 parameters, worth" in text
    assert text.count("fossilized") == 2
    assert report.evaluations >= EPOCHS


def test_a_run_is_drawn_with_its_modules_names(tmp_path):
    _, grower, _ = run()
    figure = grower.commit().picture("LeNet")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert {"c1", "c2"} <= set(labels)
    assert figure.get_suptitle().startswith("LeNet\nafter 16 epochs")
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_the_picture_shows_what_commit_did():
    """One seed is finished, one unfinished though the network leans on it, and one nobody misses."""
    plans = [GrowthPlan(slot, Blueprint.NORM, epoch, tempo=Tempo.FAST) for slot, epoch in enumerate((1, 9, 12))]
    loop, names = Loop(Deep, images), ["layers.2", "layers.3", "layers.4"]

    def evaluate():
        slots = loop.model.growth.slots()
        return 0.5, 60.0 if slots[1].seed_kind is not None and slots[1].alpha > 0.0 else 50.0

    loop.evaluate = evaluate
    policy = FixedSchedule(SlotConfig.for_row(3), EPOCHS, GrowthSchedule(tuple(plans)))
    _, grower, _ = run(loop, slots=names, policy=policy)
    report = grower.commit()
    assert [(kept.seed.place.name, kept.finished) for kept in report.kept] == [("layers.2", True), ("layers.3", False)]
    assert report.removed == ("layers.4",)
    drawn = {axes.get_ylabel(): {text.get_text() for text in axes.texts} for axes in report.picture().axes}
    fates = ("fossilized", "kept\nat commit", "removed\nat commit")
    assert [drawn[name] for name in names] == [{"norm", fate} for fate in fates]


def test_tensorboard_gets_scalars(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        _, grower, _ = run(writer=writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    accuracies = [event.value for event in events.Scalars("grow/val_accuracy")]
    assert accuracies == pytest.approx(grower.commit().course.accuracy[1:])
    assert [event.step for event in events.Scalars("grow/alpha/c1")] == list(range(1, EPOCHS + 1))
    assert {"grow/val_loss", "grow/extra_parameters", "grow/stage/c2", "grow/contribution/c1"} <= set(
        events.Tags()["scalars"]
    )


def test_a_result_that_is_given_is_not_measured_again():
    _, measured, _ = run(contributions="single")
    loop = Loop(LeNet, images)
    keywords = {"example": loop.example, "evaluate": loop.evaluate, "policy": schedule(2, epochs=EPOCHS)}
    given = grow(loop.model, loop.optimizer, ["c1", "c2"], max_epochs=EPOCHS, contributions="single", **keywords)
    for _ in range(EPOCHS):
        loop.epoch()
        loop.model.eval()
        with torch.no_grad():
            result = loop.evaluate()
        loop.model.train()
        given.end_epoch(*result)
    ours, theirs = measured.commit(), given.commit()
    assert ours.course.accuracy == theirs.course.accuracy
    assert ours.evaluations == theirs.evaluations + EPOCHS


def test_pairs_cost_evaluations():
    runs = [run(contributions=kind, counterfactual_interval=1)[1].commit() for kind in ("all", "single")]
    assert runs[0].evaluations > runs[1].evaluations
    assert [kept.seed.blueprint for kept in runs[0].kept] == [kept.seed.blueprint for kept in runs[1].kept]


@pytest.mark.parametrize("policy", ["random_valid", "heuristic", RandomValid(SlotConfig.for_row(4))])
def test_the_same_seeds_give_the_same_run(policy):
    ends = []
    for _ in range(2):
        loop, grower, lines = run(policy=policy, seed=3)
        grower.commit()
        ends.append((lines, [parameter.detach().clone() for parameter in loop.model.parameters()]))
    assert ends[0][0] == ends[1][0]
    assert all(map(torch.equal, ends[0][1], ends[1][1]))
    assert run(policy="random_valid", seed=4)[2] != run(policy="random_valid", seed=5)[2]


def test_a_small_share_of_the_steps_moves_seeds_less():
    moved = []
    for scale in (1.0, 0.1):
        loop = Loop(LeNet, images)
        keywords = {"example": loop.example, "evaluate": loop.evaluate, "max_epochs": EPOCHS, "lr_scale": scale}
        grower = grow(
            loop.model, loop.optimizer, ["c1"], policy=schedule(1, Blueprint.BOTTLENECK, epochs=EPOCHS), **keywords
        )
        for _ in range(3):
            loop.epoch()
            grower.end_epoch()
        (slot,) = loop.model.growth.slots()
        before = torch.cat([parameter.detach().flatten().clone() for parameter in slot.named().values()])
        assert slot.incubating
        loop.epoch()
        after = torch.cat([parameter.detach().flatten() for parameter in slot.named().values()])
        moved.append(float((after - before).norm()))
    assert 0.0 < moved[1] < 0.5 * moved[0]


def test_budgets_are_kept():
    _, grower, _ = run(parameter_budget=60, policy=schedule(2, Blueprint.NORM, epochs=EPOCHS))
    report = grower.commit()
    assert [kept.seed.place.name for kept in report.kept] == ["c1"]
    assert report.parameters - report.host_parameters == 13
    _, grower, _ = run(max_living_seeds=1)
    assert len(grower.commit().kept) == 1


def test_kinds_can_be_left_out():
    *_, lines = run(policy="random_valid", without=["NORM", "ATTENTION", "DEPTHWISE"], epochs=30)
    assert any("germinate" in line for line in lines)
    assert not any(kind in line for line in lines for kind in ("norm", "attention", "depthwise"))


def test_accuracies_that_are_fractions_are_noticed():
    loop = Loop(LeNet, images)
    loop.evaluate = lambda: (0.5, 0.93)
    with pytest.warns(UserWarning, match="must give percent, no fraction") as warned:
        run(loop, epochs=12)
    assert warned[0].filename.startswith(str(ROOT / "tests")), "where end_epoch() is called"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(epochs=12)


def test_a_mean_of_percentages_may_round_above_a_hundred():
    _, grower, _ = run(results=(0.5, 100.00000000000001), epochs=12)
    assert grower.decision.accuracy == 100.0


def test_a_seed_that_nothing_trains_is_noticed():
    loop = Loop(LeNet, images)
    idle = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    keywords = {"example": loop.example, "evaluate": loop.evaluate, "max_epochs": EPOCHS}
    grower = grow(loop.model, idle, ["c1"], policy=schedule(1, epochs=EPOCHS), **keywords)
    notes = []
    for _ in range(6):
        loop.epoch()
        notes.append(grower.end_epoch().note)
    assert "the seed in c1 took no part in the optimizer's steps" in notes[-1]
    assert not any("no part" in line for line in run(epochs=12)[2])


def test_a_commit_that_cannot_be_counted_changes_nothing():
    loop = Loop(LeNet, images)
    loop.evaluate = lambda: (0.5, 50.0)
    _, grower, _ = run(loop)
    loop.model.double()
    with pytest.raises(RuntimeError, match="should be the same"):
        grower.commit()
    loop.model.float()
    assert grower.commit().kept


@pytest.mark.parametrize("name", ["slots", "follow", "level"])
def test_modules_may_have_any_name(name):
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.ModuleDict()
            self.body._modules[name] = torch.nn.Linear(256, 4)

        def forward(self, x):
            return self.body._modules[name](x.flatten(1))

    loop = Loop(Named, images)
    _, grower, _ = run(loop, slots=[f"body.{name}"], policy=schedule(1, epochs=EPOCHS))
    names = [parameter for parameter, _ in loop.model.named_parameters()]
    assert f"growth.slot/body/{name}.scale" in names
    assert grower.commit().kept


def test_names_of_parameters_are_the_models():
    loop = Loop(LeNet, images)
    loop.optimizer = torch.optim.AdamW(loop.model.named_parameters())
    _, grower, _ = run(loop)
    assert grower.commit().kept
    assert loop.optimizer.param_groups[0]["param_names"] == [name for name, _ in loop.model.named_parameters()]


def test_many_slots_cost_what_is_active_in_them():
    loop = Loop(Deep, images)
    slots = [f"layers.{number}" for number in range(2, 32)]
    _, grower, _ = run(loop, slots=slots, policy=schedule(30, Blueprint.NORM, epochs=32), epochs=32)
    assert grower.commit().evaluations > 20


def test_a_schedule_s_file_decides(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(
        '{"schedule": [{"slot": 1, "blueprint": "NORM", "epoch": 2, "style": "GATED_GATE", "tempo": "FAST"}]}'
    )
    _, grower, lines = run(policy=file, epochs=18)
    assert "germinate norm in c2 (gated gate" in lines[2]
    (kept,) = grower.commit().kept
    assert kept.seed.algorithm.name == "GATE"


# ---------------------------------------------------------------------- exports
CONFIG = dataclasses.replace(DEBUG, network=NetworkConfig(feature_dim=8, hidden_dim=6, head_dim=4))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Of a policy for three slots of images, trained over 12 epochs."""
    path = tmp_path_factory.mktemp("exports")
    directory, settings = RunDirectory.create(path / "run", CONFIG), PolicySettings(CONFIG.env.make_task().slots, 12)
    torch.manual_seed(0)
    policy = build_policy("learned", dataclasses.replace(settings, network=CONFIG.network))
    directory.save(1, 0.5, lambda to: save_weights(policy.state_dict(), to / POLICY_FILE))
    write_export(directory, "latest", path / "export")
    return path / "export"


@pytest.mark.parametrize("slots", [["c1"], ["c1", "c2"]])
def test_an_export_drives_hosts_with_fewer_slots(export, slots):
    _, grower, lines = run(slots=slots, policy=export, epochs=12)
    assert grower.slots == tuple(slots)
    assert sum("wait" not in line for line in lines) > 2
    grower.commit()


def test_an_export_of_another_topology_is_refused_unless_forced(export):
    with pytest.raises(LiveError, match="trained on hosts of topology cnn, and these slots are vectors"):
        run(slots=["f1"], policy=export, epochs=12)
    run(slots=["f1"], policy=export, epochs=12, force=True)


def test_an_export_that_does_not_cover_the_horizon_warns(export):
    with pytest.warns(UserWarning, match="was trained over 12 epochs and may not finish in 30"):
        run(policy=export, epochs=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(policy=export, epochs=12)


def test_rows_of_a_course_are_the_host_s():
    _, grower, lines = run()
    course = grower.commit().course
    assert len(course) == len(lines) == EPOCHS + 1
    assert np.array(course.stage).shape == (EPOCHS + 1, 2)
    assert max(alpha[0] for alpha in course.alpha) == 1.0
