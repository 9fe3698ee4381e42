"""One host as a plain torch module, trained and measured by itself, formula by formula as docs/packet.md says."""

import math
from copy import copy

import numpy as np
import torch
from torch import nn

from benchmarks.reference import HostLoop
from envs.graph.structure import GraphStructure
from tests.envs.plain_networks import plain_network

CLIP, MOMENTUM = 1.0, 0.9


class PlainHost:
    """A copy of a member of an env at the beginning of its episode."""

    def __init__(self, env, member):
        self.env, self.member = env, member
        task, population = env.task, env.population
        self.variant = task.variants[population.variant[member]]
        if task.host.topology == "cnn":
            self.net = HostLoop(population, env.lifecycle).hosts[member]
            self.parameters = self.net.own
            functions = nn.ReLU
        else:
            own = copy(task.host)
            own.widest = self.variant
            self.net = plain_network(task.host.topology, own)
            self.parameters = [*self.net.in_our_order()]
            for layer in getattr(self.net, "layers", ()):
                layer.activation = nn.GELU()
            functions = nn.GELU
            ours = population.layout.views(population.flat).values()
            with torch.no_grad():
                for parameter, values in zip(self.parameters, ours, strict=True):
                    parameter.copy_(values[member][tuple(slice(size) for size in parameter.shape)])
        self.functions = [module for module in self.net.modules() if isinstance(module, functions)]
        self.structure = GraphStructure.of(task)
        names = list(population.layout.specs)
        self.layers = [
            [self.parameters[names.index(name)] for name in layer.parameters] for layer in self.structure.layers
        ]
        self.optimiser = torch.optim.SGD(self.parameters, lr=0.0, momentum=MOMENTUM)
        self.epoch, self.losses, self.updates = 0, [], None

    def samples(self, split, index):
        """In the layout of plain torch."""
        x, y = self.env.task.splits[split].x[index], self.env.task.splits[split].y[index]
        return (x.permute(0, 3, 1, 2) if self.env.task.host.topology == "cnn" else x), y

    def rate(self):
        progress = min(self.epoch, self.env.max_epochs - 1) / self.env.max_epochs
        return self.env.task.learning_rate(progress) * float(self.env.population.lr_factor[self.member])

    def train_epoch(self):
        """Train, and return what is measured of it under a packet's keys."""
        self.net.train()
        before = [parameter.detach().clone() for parameter in self.parameters]
        losses, gradients, moved = [], [], []
        for batch in self.env.population._order[self.member, self.epoch]:
            x, y = self.samples("train", torch.from_numpy(batch.astype(np.int64)))
            self.optimiser.param_groups[0]["lr"] = self.rate()
            self.optimiser.zero_grad()
            loss = nn.functional.cross_entropy(self.net(x).flatten(0, -2), y.flatten())
            loss.backward()
            losses.append(loss.item())
            gradients.append([parameter.grad.clone() for parameter in self.parameters])
            nn.utils.clip_grad_norm_(self.parameters, CLIP)
            old = [parameter.detach().clone() for parameter in self.parameters]
            self.optimiser.step()
            moved.append([not torch.equal(a, b) for a, b in zip(old, self.parameters, strict=True)])
        self.epoch += 1
        self.losses.append(np.mean(losses))
        return self._of_epoch(before, gradients, moved)

    def _of_epoch(self, before, gradients, moved):
        place = {id(parameter): at for at, parameter in enumerate(self.parameters)}
        layers = [[place[id(parameter)] for parameter in layer] for layer in self.layers]
        mean_squares = [
            np.mean([sum(float(step[at].square().sum()) for at in layer) for step in gradients]) for layer in layers
        ]
        norms = np.sqrt(mean_squares)
        change = [
            norm_of([self.parameters[at].detach() - before[at] for at in layer]) / norm_of([before[at] for at in layer])
            for layer in layers
        ]
        whole = torch.stack([torch.cat([gradient.flatten() for gradient in step]) for step in gradients])
        variance = float(whole.var(0, correction=0).mean())
        previous, self.updates = self.updates, np.array(change)
        feeds, influences = self.structure.edges["feeds"], self.structure.edges["influences"]
        readers = dict(influences.tolist())
        return {
            "layers.gradient_norm": norms,
            "layers.loss_share": np.array(mean_squares) / np.sum(mean_squares),
            "layers.update_frequency": [np.mean([any(step[at] for at in layer) for step in moved]) for layer in layers],
            "activations.gradient_flow": [norms[layer] / norms[readers[at]] for layer, at in feeds.tolist()],
            "parameters.gradient_variance": [variance],
            "tunes.update_magnitude": self.updates,
            "tunes.convergence_rate": np.full(len(layers), np.nan) if previous is None else 1 - self.updates / previous,
            "metrics.loss": [self.losses[-1]],
            "metrics.gradient_norm": [float(whole.norm(dim=1).mean())],
            "metrics.loss_delta": [self.losses[-1] - self.losses[-2] if len(self.losses) > 1 else np.nan],
            "metrics.loss_volatility": [np.std(self.losses[-5:]) if len(self.losses) > 1 else np.nan],
            "metrics.grad_var": [variance],
        }

    def now(self):
        """What is measured of the host as it is."""
        sizes = self.env.task.host.parameters(self.variant)
        return {
            "layers.weight_norm": [norm_of([parameter.detach() for parameter in layer]) for layer in self.layers],
            "parameters.count": [sum(math.prod(spec.shape) for spec in sizes.values())],
            "parameters.learning_rate": [self.rate()],
            "parameters.momentum": [MOMENTUM],
            "metrics.optimizer_lr": [self.rate()],
        }

    def activity(self):
        """What the activation functions do on 16 validation samples, evenly spaced."""
        count = len(self.env.task.splits["validation"].x)
        x, _ = self.samples("validation", torch.linspace(0, count - 1, min(16, count)).long())
        read = []
        hooks = [
            function.register_forward_pre_hook(lambda _, given: read.append(given[0].detach().clone()))
            for function in self.functions
        ]
        self.net.eval()
        self.net(x)  # with gradients: without, torch takes a way around the layers' functions
        for hook in hooks:
            hook.remove()
        rates, frequencies, events, strengths = [], [], [], []
        for function, given in zip(self.functions, read, strict=True):
            given = given.double().requires_grad_()
            out = type(function)()(given)
            (slope,) = torch.autograd.grad(out.sum(), given)
            flat, out = slope.abs() < 0.01, out.detach()
            rates.append(float(flat.double().mean()))
            frequencies.append(float((out != 0).double().mean()))
            events.append(float(flat.sum()) / len(x))
            line = np.polyfit(given.detach().flatten().numpy(), out.flatten().numpy(), 1)
            rest = out.flatten().numpy() - np.polyval(line, given.detach().flatten().numpy())
            strengths.append(rest.var() / out.numpy().var())
        return {
            "activations.saturation_rate": rates,
            "feeds.activation_frequency": frequencies,
            "feeds.saturation_events": events,
            "influences.nonlinearity_strength": strengths,
        }


def norm_of(tensors):
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())
