"""A copy that averages the weights, mirrored after every epoch."""

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


def test_seeds_that_nobody_averages_yet_are_the_models_own():
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 6, 6), torch.arange(32) % 4
    stem, body, pool = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(stem, nn.ReLU(), body, nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def evaluate():
        logits = model(x)
        return F.cross_entropy(logits, y).item(), 100 * (logits.argmax(1) == y).float().mean().item()

    policy = FixedSchedule(SlotConfig.for_row(2), EPOCHS, GrowthSchedule(PLANS))
    grower = grow(model, optimizer, ["1", "3"], example=x[:2], evaluate=evaluate, max_epochs=EPOCHS, policy=policy)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    hidden, compared = set(), 0
    for _ in range(EPOCHS):
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
        grower.end_epoch()
        grower.mirror(average)
        ours, theirs = model.state_dict(), average.module.state_dict()
        assert ours.keys() == theirs.keys()
        for name in hidden & ours.keys():
            assert torch.equal(ours[name], theirs[name]), name
            compared += 1
        hidden = {name for name in ours.keys() - dict(model.named_parameters()) if name.startswith("growth.")}
    assert compared > 0
    assert len(grower.commit().kept) == len(PLANS)
