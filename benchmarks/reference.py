"""The same training as an honest loop: every host its own ``nn.Module``, trained one after another.

It is what the population is timed against, written as well as a loop can be without batching hosts: data on the
device, channels_last, fused SGD, no synchronisation within an epoch. It is also what the population is checked
against, so it shares no mathematics with ``envs``: it knows the names, the sizes and the stages, and takes copies
of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.groups import group_size
from envs.hosts.cnn import CnnHost, CnnVariant
from envs.lifecycle import Lifecycle
from envs.population.population import Population
from envs.tasks.base import SplitName
from envs.vocabulary import AlphaAlgorithm, Blueprint, SeedStage


# ---------------------------------------------------------------------- seeds
def _group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // group_size(width), width)


class NormalisedConv(nn.Sequential):
    """Convolution, group norm, ReLU, ``depth`` times; then a 1×1 convolution."""

    def __init__(self, width: int, kernel: int, depth: int = 1, groups: int = 1) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth):
            conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)
            layers += [conv, _group_norm(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Conv2d(width, width, 1))


class Bottleneck(nn.Sequential):
    """1×1 down to a quarter of the channels, 3×3, 1×1 up."""

    def __init__(self, width: int) -> None:
        hidden = max(4, width // 4)
        super().__init__(
            nn.Conv2d(width, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, width, 1),
        )


class SqueezeExcite(nn.Module):
    """The input times a factor per channel, from its spatial mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(4, width // 4)
        self.squeeze, self.excite = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, u: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same shape."""
        return u * self.excite(self.squeeze(u.mean((2, 3))).relu()).tanh()[..., None, None]


class NormBlend(nn.Module):
    """A learned share of the way towards the normalised input.

    On CPU torch 2.13 crashes in the channels_last backward of a group norm whose weight and bias want gradients and
    whose input, here a detached activation, does not; so they are applied outside.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.groups = width // group_size(width)
        self.weight, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, u: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same shape."""
        return self.scale * (torch.addcmul(self.bias, F.group_norm(u, self.groups), self.weight) - u)


class Ladder(nn.Module):
    """Levels that each transform the last one's features, and propose a change through their 1×1 convolution."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(NormalisedConv(width, kernel=3) for _ in range(levels))

    def forward(self, u: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same shape."""
        z, proposals = u, []
        for level in self.levels:
            conv, norm, relu, out = level.children()
            z = relu(norm(conv(z)))
            proposals.append(out(z))
        return torch.stack(proposals).sum(0)


def delta_module(blueprint: Blueprint, width: int, level: int) -> nn.Module:
    """The network that proposes a seed's delta.

    Args:
        blueprint: One that convolutional hosts offer.
        width: Channels of the slot.
        level: Internal level, at least 1, which only CONV_LADDER reads.

    Raises:
        KeyError: another blueprint.
    """
    modules: dict[Blueprint, Callable[[], nn.Module]] = {
        Blueprint.CONV_SMALL: lambda: NormalisedConv(width, kernel=1),
        Blueprint.CONV_LIGHT: lambda: NormalisedConv(width, kernel=3),
        Blueprint.CONV_HEAVY: lambda: NormalisedConv(width, kernel=3, depth=2),
        Blueprint.DEPTHWISE: lambda: NormalisedConv(width, kernel=3, groups=width),
        Blueprint.BOTTLENECK: lambda: Bottleneck(width),
        Blueprint.ATTENTION: lambda: SqueezeExcite(width),
        Blueprint.NORM: lambda: NormBlend(width),
        Blueprint.CONV_LADDER: lambda: Ladder(width, level),
    }
    return modules[blueprint]()


@dataclass(frozen=True)
class SeedState:
    """What a seed is and how far it has come."""

    blueprint: Blueprint
    stage: SeedStage
    algorithm: AlphaAlgorithm
    alpha: float
    level: int


class Seed(nn.Module):
    """A slot with a seed in it: delta, limit, gate and blend, as the seed's stage says.

    Args:
        width: Channels of the slot.
        state: Blueprint, stage and blending.
    """

    def __init__(self, width: int, state: SeedState) -> None:
        super().__init__()
        self.state = state
        self.delta = delta_module(state.blueprint, width, state.level)
        self.gate = nn.ParameterList()  # a list, so that it comes after the delta's parameters
        if state.algorithm == AlphaAlgorithm.GATE:
            self.gate.extend([torch.zeros(width), torch.ones(1)])

    def forward(self, h: Tensor) -> Tensor:
        """``[B, C, H, W]`` → what the rest of the host sees, same shape."""
        state = self.state
        u = h if state.stage >= SeedStage.HOLDING else h.detach()
        effect = self._limited(self.delta(u), h.detach())
        if state.algorithm == AlphaAlgorithm.GATE:
            weight, bias = self.gate
            effect = effect * (u.mean((2, 3)) @ weight + bias).sigmoid()[:, None, None, None]
        incubating = state.stage == SeedStage.TRAINING
        if state.algorithm == AlphaAlgorithm.MULTIPLY:
            effect = (h.detach() if incubating else h) * effect.tanh()
        if incubating:
            return h + (effect - effect.detach())  # straight-through: adds 0, and the gradient of a full effect
        return h + state.alpha * effect

    @staticmethod
    def _limited(delta: Tensor, h: Tensor) -> Tensor:
        """Each sample's delta, no longer than its activation."""
        longest = torch.linalg.vector_norm(h, dim=(1, 2, 3), keepdim=True)
        length = (delta.square().sum((1, 2, 3), keepdim=True) + 1e-12).sqrt()  # differentiable at 0
        return delta * (longest / length).clamp(max=1.0)


# ---------------------------------------------------------------------- host
def _block(c_in: int, c_out: int, kernel: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (c_in, *[c_out] * (depth - 1)):
        layers += [
            nn.Conv2d(width, c_out, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(c_out, momentum=0.3),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class Host(nn.Module):
    """A convolutional host with its seeds.

    Args:
        variant: Its size.
        in_channels: Channels of the images.
        num_classes: Outputs.
        seeds: Slot → its seed; none for a host alone.
    """

    def __init__(self, variant: CnnVariant, in_channels: int, num_classes: int, seeds: dict[int, SeedState]) -> None:
        super().__init__()
        channels = (in_channels, *variant.widths)
        self.blocks = nn.ModuleList(
            _block(c_in, c_out, kernel, variant.depth)
            for c_in, c_out, kernel in zip(channels[:-1], channels[1:], variant.kernels, strict=True)
        )
        self.head = nn.Linear(channels[-1], num_classes)
        self.seeds = nn.ModuleDict({str(slot): Seed(variant.widths[slot], state) for slot, state in seeds.items()})
        self.own = [*self.blocks.parameters(), *self.head.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → logits ``[B, classes]``."""
        for slot, block in enumerate(self.blocks):
            x = block(x)
            if min(x.shape[2:]) >= 2:
                x = F.avg_pool2d(x, 2)
            if str(slot) in self.seeds:
                x = self.seeds[str(slot)](x)
        return self.head(x.mean((2, 3)))

    @property
    def norms(self) -> list[nn.BatchNorm2d]:
        """The blocks' batch norms."""
        return [layer for block in self.blocks for layer in block.children() if isinstance(layer, nn.BatchNorm2d)]


# ---------------------------------------------------------------------- the loop
class HostLoop:
    """The hosts of a population and their seeds as modules with an optimiser each.

    Everything starts as a copy of the population's present state, momentum included.

    Args:
        population: Of convolutional hosts whose task augments nothing.
        lifecycle: Stages and alphas, with which the population's banks are in sync.

    Raises:
        ValueError: hosts of another topology, or augmentation.
    """

    CLIP_NORM, MOMENTUM = 1.0, 0.9

    def __init__(self, population: Population, lifecycle: Lifecycle) -> None:
        task = population.task
        if not isinstance(task.host, CnnHost) or task.augment is not None:
            raise ValueError(f"the loop trains convolutional hosts without augmentation, not those of {task.name!r}")
        device = population.device
        self._data = {  # NHWC in the task, so that this view is channels_last
            name: (split.x.to(device).permute(0, 3, 1, 2), split.y.to(device)) for name, split in task.splits.items()
        }
        self.hosts = []
        for member, variant in enumerate(population.variant):
            seeds = _seed_states(lifecycle, member)
            host = Host(task.variants[variant], task.host.in_channels, task.host.num_classes, seeds)
            self.hosts.append(host.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
        self._optimisers = [
            torch.optim.SGD(host.parameters(), lr=0.0, momentum=self.MOMENTUM, fused=True) for host in self.hosts
        ]
        for host, optimiser in zip(self.hosts, self._optimisers, strict=True):
            for parameter in host.parameters():
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        with torch.no_grad():
            for _, theirs, ours in self.beside(population):
                ours.copy_(theirs)

    def train_epoch(self, order: Tensor, rate: float) -> None:
        """Train every host on its mini-batches, one host after another.

        Args:
            order: ``[N, batches, B]`` indices of training samples, on the device.
            rate: Learning rate.
        """
        x, y = self._data["train"]
        for host, optimiser, batches in zip(self.hosts, self._optimisers, order, strict=True):
            host.train()
            optimiser.param_groups[0]["lr"] = rate
            clipped = [host.own, *([*seed.parameters()] for seed in host.seeds.values())]
            for index in batches:
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(host(x[index]), y[index]).backward()
                for parameters in clipped:
                    nn.utils.clip_grad_norm_(parameters, self.CLIP_NORM)
                optimiser.step()

    @torch.inference_mode()
    def evaluate(self, split: SplitName) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy in percent of every host, each ``[N]``; a whole split in one call each."""
        x, y = self._data[split]
        losses, accuracies = [], []
        for host in self.hosts:
            logits = host.eval()(x)
            losses.append(F.cross_entropy(logits, y))
            accuracies.append(100.0 * (logits.argmax(1) == y).float().mean())
        return torch.stack(losses).cpu(), torch.stack(accuracies).cpu()

    def beside(self, population: Population) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every parameter, its momentum and every running statistic, beside the population's.

        Yields:
            What it is, the population's value of it, and the loop's: same shape, views of what is trained.
        """
        layout = population.layout
        values, momenta = layout.views(population.flat), layout.views(population.momentum)
        for member, host in enumerate(self.hosts):
            label = f"host {member}"
            yield from self._pairs(label, member, [*values], values, momenta, member, host.own)
            for i, norm in enumerate(host.norms):
                for name, statistic in ((f"mean{i}", norm.running_mean), (f"var{i}", norm.running_var)):
                    assert statistic is not None
                    yield f"{label}: {name}", _own_part(population.buffers[name][member], statistic.shape), statistic
        for (slot, blueprint), bank in population.banks.items():
            values, momenta = bank.layout.views(bank.rows.flat), bank.layout.views(bank.rows.momentum)
            for row, member in enumerate(bank.rows.members.tolist()):
                seed = self.hosts[member].seeds[str(slot)]
                assert isinstance(seed, Seed)
                gated = seed.state.algorithm == AlphaAlgorithm.GATE
                names = [
                    name
                    for name, spec in bank.layout.specs.items()
                    if spec.level <= seed.state.level and (gated or not name.startswith("gate_"))
                ]
                label = f"{blueprint.name} ({seed.state.stage.name}) in slot {slot} of host {member}"
                yield from self._pairs(label, member, names, values, momenta, row, [*seed.parameters()])

    def _pairs(
        self,
        label: str,
        member: int,
        names: list[str],
        values: dict[str, Tensor],
        momenta: dict[str, Tensor],
        row: int,
        parameters: list[nn.Parameter],
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """One owner's parameters and momenta: the modules register them in the order in which the layout names them."""
        state = self._optimisers[member].state
        for name, parameter in zip(names, parameters, strict=True):
            yield f"{label}: {name}", _own_part(values[name][row], parameter.shape), parameter.data
            momentum: Tensor = state[parameter]["momentum_buffer"]
            yield f"{label}: momentum of {name}", _own_part(momenta[name][row], parameter.shape), momentum


def _seed_states(lifecycle: Lifecycle, member: int) -> dict[int, SeedState]:
    """The seeds of one host that have weights, by slot."""
    return {
        slot: SeedState(
            Blueprint(int(lifecycle.blueprint[member, slot])),
            SeedStage(int(lifecycle.stage[member, slot])),
            AlphaAlgorithm(int(lifecycle.algorithm[member, slot])),
            float(lifecycle.alpha[member, slot]),
            int(lifecycle.internal_level[member, slot]),
        )
        for slot in lifecycle.computing[member].nonzero()[0].tolist()
    }


def _own_part(wide: Tensor, shape: torch.Size) -> Tensor:
    """A member's values within those of the widest: the leading corner, and the centre of a kernel."""
    wide = wide.reshape(*wide.shape, *[1] * (len(shape) - wide.dim()))
    for axis, size in enumerate(shape):
        is_kernel = len(shape) == 4 and axis >= 2
        wide = wide.narrow(axis, (wide.shape[axis] - size) // 2 if is_kernel else 0, size)
    return wide
