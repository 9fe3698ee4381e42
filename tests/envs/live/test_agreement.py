"""A live host and the greenhouse's host are one world: from the same state an epoch of both ends in the same state."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from envs.action_masks import split_mask
from envs.blueprints import blueprints_for
from envs.live.host import LiveHost
from envs.live.places import Places
from envs.live.task_host import TaskHost
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.vocabulary import INTERNAL_OPS, STYLE_ALGORITHM, AlphaAlgorithm, Blueprint, LifecycleOp, SeedStage, Tempo
from envs.watch import HostWatch
from tests.envs import helpers, topologies

TASKS = {
    "cnn": lambda: helpers.task_of(internal_levels=True, samples=40),
    "transformer": lambda: topologies.task_of("transformer", samples=16),
    "mlp": lambda: topologies.task_of("mlp", samples=40),
}
STAGES = (SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING)
LEVELS = [f"level {level}" for level in range(5)]
EPOCHS, MOST_EPOCHS = 80, 300


class Pair:
    """One world twice: with a population of one, and with a live host."""

    def __init__(self, task, seed):
        settings = {"parameter_budget": 10**9, "min_training_epochs": 1, "embargo_epochs": 1}
        self.env = MorphogenesisVectorEnv(1, task=task, max_epochs=EPOCHS, counterfactual_interval=2, **settings)
        self.env.reset(seed=seed)
        self.population, self.watch = self.env.population, self.env.watch
        self.task, self.model = task, TaskHost(task)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        places = Places(self.model, self.data("train")[0][:3]).chosen(["segments.*"])
        devices = [torch.device("cpu")] * len(places)
        self.live = LiveHost(self.model, self.optimizer, places, devices, task.slots, self.evaluate)
        self.copy()
        self.rounded = 0
        self.live_watch = HostWatch(
            1, self.live, self.live, task.slots, self.watch.lifecycle.rules, task.chance_accuracy, 2
        )
        self.live_watch.open(np.arange(1))
        self.live_watch.observe(EPOCHS)

    def data(self, split):
        return self.population._data[split]

    def evaluate(self):
        x, y = self.data("validation")
        logits = self.model(x)
        loss = F.cross_entropy(logits.flatten(0, -2), y.flatten()).item()
        return loss, 100.0 * (logits.argmax(-1) == y).float().mean().item()

    def tensors(self):
        """Name → the population's and the live host's, parameters, momentum and statistics."""
        population, found = self.population, {}
        sources = [("", population.layout, population.flat, population.momentum, self.model.weights)]
        for (slot, _), bank in population.banks.items():
            parameters = self.live.slots[slot].named()
            sources.append((f"{slot}.", bank.layout, bank.rows.flat, bank.rows.momentum, parameters))
        for prefix, layout, flat, momentum, parameters in sources:
            values, moments = layout.views(flat), layout.views(momentum)
            for name, parameter in parameters.items():
                state = self.optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                found[prefix + name] = values[name][0], parameter.detach()
                found[f"{prefix}{name} momentum"] = moments[name][0], state["momentum_buffer"]
        for name, buffer in population.buffers.items():
            found[name] = buffer[0], self.model.statistics[name]
        return found

    def copy(self):
        """Let the live host start from the population's state."""
        with torch.no_grad():
            for theirs, own in self.tensors().values():
                own.copy_(theirs)

    def train(self):
        """An epoch of both; returns their seeds' gradients."""
        epoch = self.watch.steps.epoch
        rate = float(self.population._rates[epoch[0]] * self.population.lr_factor[0])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, y = self.data("train")
        self.model.train()
        for index in self.population._order[0, epoch[0]]:
            self.optimizer.zero_grad()
            logits = self.model(x[index])
            F.cross_entropy(logits.flatten(0, -2), y[index].flatten()).backward()
            nn.utils.clip_grad_norm_(self.model.weights.values(), 1.0)
            self.optimizer.step()
        return self.population.train_epoch(epoch, self.watch.lifecycle), self.live.gradients()

    def apply(self, action):
        for watch in (self.watch, self.live_watch):
            watch.lifecycle.apply(action[None])
            watch.observe(EPOCHS)

    def epoch(self):
        """Both let an epoch pass, train and measure; fails where they differ."""
        for watch in (self.watch, self.live_watch):
            watch.begin_epoch(helpers.WAIT[None])
        self.copy()
        gradients = self.train()
        apart = {name: float((theirs - own).abs().max()) for name, (theirs, own) in self.tensors().items()}
        assert all(distance < 1e-5 for distance in apart.values()), apart
        self._agree(*gradients)
        self.copy()
        results = []
        for watch in (self.watch, self.live_watch):
            watch.book_gradients(gradients[0])
            watch.steps.tick()
            results.append(watch.end_epoch(np.ones(1, bool), np.zeros(1, bool)))
        population, live = results
        assert population.panic == live.panic == 0
        np.testing.assert_allclose(live.loss, population.loss, atol=1e-5)
        np.testing.assert_allclose(live.accuracy, population.accuracy, atol=1e-4)
        agree(population.measured, live.measured)
        np.testing.assert_allclose(
            *(watch.observe(EPOCHS)["obs"] for watch in (self.live_watch, self.watch)), atol=1e-4
        )
        np.testing.assert_array_equal(self.live_watch.mask, self.watch.mask)

    def _agree(self, population, live):
        """Norms do; what follows from them may differ where one is so near a threshold that rounding decides."""
        if not np.allclose(population.vanishing, live.vanishing, equal_nan=True):
            self.rounded += 1
            population = replace(population, vanishing=live.vanishing, health=live.health)
        agree(population, live)

    @property
    def over(self):
        life = self.watch.lifecycle
        old = (life.stage == SeedStage.FOSSILIZED) & (life.epochs_in_stage > 3)
        return self.watch.steps.epoch[0] == EPOCHS or old.any()


def agree(population, live):
    for name, values in vars(population).items():
        scale = max(1.0, np.nanmax(np.abs(values), initial=0.0))
        np.testing.assert_allclose(getattr(live, name), values, rtol=0.0, atol=1e-5 * scale, err_msg=name)


class Chooser:
    """Draws admitted actions until everything has been seen that can be: ops, blueprints, algorithms, levels."""

    def __init__(self, task):
        self.heads, self.rng = task.slots.heads, np.random.default_rng(0)
        kinds = blueprints_for(task.host.topology, task.slots.blueprints)
        self.missing = {(kind, algorithm, stage) for kind in kinds for algorithm in AlphaAlgorithm for stage in STAGES}
        self.missing |= set(task.slots.ops) - {LifecycleOp.WAIT}
        if task.slots.internal_levels:
            self.missing |= {
                (Blueprint.CONV_LADDER, algorithm, level) for algorithm in AlphaAlgorithm for level in LEVELS
            }

    def act(self, pair):
        """An op in every slot that has one: mostly the next step of a seed's life, at times any other."""
        for slot in range(pair.watch.lifecycle.stage.shape[1]):
            op = self._op(split_mask(pair.watch.mask[0], self.heads)["slot"][:, slot], pair.watch.lifecycle, slot)
            if op is not LifecycleOp.WAIT:
                pair.apply(self._action(op, slot, pair.watch.mask[0]))
                self.missing.discard(op)

    def _op(self, admitted, lifecycle, slot):
        possible = [op for op in LifecycleOp if op and op < len(admitted) and admitted[op]]
        inside = [op for op in possible if op in INTERNAL_OPS]
        if possible and self.rng.random() < 0.04:
            return LifecycleOp(self.rng.choice(possible))
        if inside and (op := self._towards_a_missing_level(lifecycle, slot)) in inside:
            return op
        wanted = [LifecycleOp.ADVANCE, LifecycleOp.GERMINATE]
        if lifecycle.stage[0, slot] == SeedStage.HOLDING:
            wanted = [*(self.missing & set(possible)), LifecycleOp.PRUNE]
        return next((op for op in wanted if op in possible), LifecycleOp.WAIT)

    def _towards_a_missing_level(self, lifecycle, slot):
        level, algorithm = lifecycle.internal_level[0, slot], lifecycle.algorithm[0, slot]
        missing = [at for at, name in enumerate(LEVELS) if (Blueprint.CONV_LADDER, algorithm, name) in self.missing]
        if not missing:
            return None
        return LifecycleOp.GROW_INTERNAL if max(missing) > level else LifecycleOp.SHRINK_INTERNAL

    def _action(self, op, slot, mask):
        only = {other: float(other == op) for other in LifecycleOp}
        action = np.array(helpers.random_valid_action(mask, self.heads, self.rng, only))
        action[1] = slot
        if op is LifecycleOp.GERMINATE:
            wanted = sorted(what[:2] for what in self.missing if isinstance(what, tuple))
            kind, algorithm = wanted[self.rng.integers(len(wanted))] if wanted else (action[2], 0)
            action[2], action[3], action[4] = kind, STYLE_ALGORITHM.index(algorithm), Tempo.FAST
        return action

    def saw(self, lifecycle):
        for slot in np.flatnonzero(lifecycle.computing[0]):
            kind, algorithm = Blueprint(lifecycle.blueprint[0, slot]), AlphaAlgorithm(lifecycle.algorithm[0, slot])
            self.missing.discard((kind, algorithm, SeedStage(lifecycle.stage[0, slot])))
            if kind is Blueprint.CONV_LADDER:
                self.missing.discard((kind, algorithm, f"level {lifecycle.internal_level[0, slot]}"))


@pytest.mark.parametrize("topology", TASKS)
def test_an_epoch_of_both_ends_in_the_same_state_whatever_grows(topology):
    task = TASKS[topology]()
    chooser, pair, epochs = Chooser(task), Pair(task, 0), 0
    while chooser.missing:
        epochs += 1
        assert epochs < MOST_EPOCHS, chooser.missing
        chooser.act(pair)
        pair.epoch()
        chooser.saw(pair.watch.lifecycle)
        assert pair.rounded <= 2
        if pair.over:
            pair = Pair(task, epochs)
