"""A growing model under torch.compile, and a copy of it that averages its weights."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from envs.slots import SlotConfig
from envs.vocabulary import Blueprint, Tempo
from esper_ray.live import grow
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule

torch.set_num_threads(1)

EPOCHS = 14
PLANS = (
    GrowthPlan(slot=1, blueprint=Blueprint.CONV_LIGHT, epoch=0, tempo=Tempo.FAST),
    GrowthPlan(slot=0, blueprint=Blueprint.ATTENTION, epoch=4, tempo=Tempo.FAST),
)


class Run:
    """A small CNN with two slots and its loop."""

    def __init__(self):
        torch.manual_seed(0)
        self.x, self.y = torch.randn(32, 3, 6, 6), torch.arange(32) % 4
        stem, body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.model = nn.Sequential(stem, nn.ReLU(), body, nn.ReLU(), *pool, nn.Linear(8, 4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.runs = self.model
        self.grower = grow(
            self.model,
            self.optimizer,
            ["1", "3"],
            example=self.x[:2],
            evaluate=self.evaluate,
            max_epochs=EPOCHS,
            policy=FixedSchedule(SlotConfig.for_row(2), EPOCHS, GrowthSchedule(PLANS)),
        )

    def evaluate(self):
        logits = self.runs(self.x)
        return F.cross_entropy(logits, self.y).item(), 100 * (logits.argmax(1) == self.y).float().mean().item()

    def train(self):
        for _ in range(2):
            self.optimizer.zero_grad()
            F.cross_entropy(self.runs(self.x), self.y).backward()
            self.optimizer.step()


def form(grower):
    """What a compiled forward depends on: which seeds there are, and how they are connected."""
    slots = grower._host.slots
    return [(slot.seed_kind, slot.seed_algorithm, slot.seed_level, slot.incubating, slot.attached) for slot in slots]


@torch._dynamo.config.patch(recompile_limit=64)
def test_a_change_of_structure_costs_two_compilations_and_a_moving_alpha_none():
    compilations = []

    def backend(graph, inputs):  # needs no compiler
        compilations.append(graph)
        return graph.forward

    run, alone = Run(), Run()
    run.runs = torch.compile(run.model, backend=backend)
    changes, before = 1, form(run.grower)
    for _ in range(EPOCHS):
        for each in (run, alone):
            each.train()
        # The last decision's structure is trained first, and evaluated then.
        assert str(run.grower.end_epoch()) == str(alone.grower.end_epoch())
        assert len(compilations) <= 2 * changes
        changes += form(run.grower) != before
        before = form(run.grower)
    assert len(compilations) >= 10
    assert all(map(torch.equal, run.model.state_dict().values(), alone.model.state_dict().values()))


def test_a_mirror_has_the_models_seeds_and_averages_what_can_be_seen():
    run = Run()
    average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    was_hidden = {}
    for _ in range(EPOCHS):
        run.train()
        average.update_parameters(run.model)
        run.grower.end_epoch()
        run.grower.mirror(average)
        ours, theirs = run.model.state_dict(), average.module.state_dict()
        assert ours.keys() == theirs.keys()
        for at, slot in enumerate(run.grower._host.slots):
            if was_hidden.get(at) and slot.named():  # nobody has averaged it yet
                key = slot.place.name.replace(".", "/")
                names = [f"growth.{key}.{name}" for name in slot.named()]
                assert all(torch.equal(ours[name], theirs[name]) for name in names)
            was_hidden[at] = slot.incubating
    report = run.grower.commit()
    run.grower.mirror(average)
    assert len(report.kept) == 2
    assert average.module.state_dict().keys() == run.model.state_dict().keys()
    assert average(run.x).shape == (32, 4)
