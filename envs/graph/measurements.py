"""Measures the hosts of a population as graphs, all of them at once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from envs.batched.parameters import count_parameters
from envs.episode_state import EpisodeArrays, EpisodeState, per_host
from envs.graph.activity import FUNCTIONS, ActivityStatistics
from envs.graph.fates import SeedFates
from envs.graph.layout import BLUEPRINTS, MAX_EPOCHS, OBSERVATION, UNKNOWN, GraphLayout
from envs.hosts.structure import HostLayer
from envs.lifecycle import Lifecycle
from envs.population.population import Population
from envs.population.record import EpochMotion
from envs.tasks.base import Task

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

ACTIVITY_SAMPLES = 16
"""Validation samples on which activation functions are watched, of a host and of anybody's model."""
ACTIVITY_INTERVAL = 5
"""Epochs between two times that they are; in between the last result stands."""
VOLATILITY_EPOCHS = 5
"""Whose training losses make a run's volatility, of a host's and of anybody's."""


class TrainingLosses(EpisodeArrays):
    """Training losses of the last epochs, ``[N, VOLATILITY_EPOCHS]``, the newest last; NaN where there was none."""

    recent: FloatArray = per_host(np.nan, VOLATILITY_EPOCHS)

    def book(self, loss: FloatArray) -> None:
        """Take in an epoch's (``[N]``)."""
        self.recent = np.concatenate([self.recent[:, 1:], loss[:, None]], axis=1)

    @property
    def volatility(self) -> FloatArray:
        """``[N]`` standard deviation of those that there are, NaN of a single one."""
        there = np.isfinite(self.recent)
        count = there.sum(axis=1)
        losses = np.where(there, self.recent, 0.0)
        mean = losses.sum(axis=1) / np.maximum(count, 1)
        squares = np.where(there, (losses - mean[:, None]) ** 2, 0.0).sum(axis=1)
        return np.where(count > 1, np.sqrt(squares / np.maximum(count, 1)), np.nan)


class GraphMeasurements(EpisodeState):
    """The latest measurements of N hosts, as vectors of a :class:`envs.graph.layout.GraphLayout`.

    Nothing is drawn, trained or booked by measuring: hosts go on as if nobody had looked.

    Args:
        population: What is measured.
        max_epochs: Length of an episode.

    Raises:
        ValueError: a host has an activation function that nobody can measure.
    """

    def __init__(self, population: Population, max_epochs: int) -> None:
        task, num_hosts = population.task, population.num_members
        self.layout = GraphLayout.of(task)
        self._population, self._max_epochs = population, max_epochs
        self._structure = self.layout.structure
        unknown = {layer.activation for layer in self._structure.activations} - FUNCTIONS.keys()
        if unknown:
            raise ValueError(f"no activation function {', '.join(map(str, unknown))}: there are {', '.join(FUNCTIONS)}")
        self._values = np.full((num_hosts, self.layout.size), np.nan, np.float32)
        self._fates = SeedFates(num_hosts, task.slots.num_slots)
        self._losses = TrainingLosses(num_hosts)
        self._sizes = _sizes(task, self.layout)
        self._parameters_of = _parameters_of(self._structure.layers, list(population.layout.specs))
        self._read_by = np.zeros((len(self._structure.activations), len(self._structure.layers)), bool)
        self._read_by[tuple(self._structure.edges["influences"].T)] = True

    def start(self, hosts: IntArray) -> None:
        """See :class:`envs.episode_state.EpisodeState`; the hosts are drawn already."""
        self._values[hosts] = np.nan
        self._get(MAX_EPOCHS)[hosts] = self._max_epochs
        for key, of_variant in self._sizes.items():
            self._get(key)[hosts] = of_variant[self._population.variant[hosts]]
        self._fates.start(hosts)
        self._losses.start(hosts)

    # ------------------------------------------------------------------ what training did
    @np.errstate(divide="ignore", invalid="ignore", over="ignore")  # what comes of it is not known
    def book_training(self, motion: EpochMotion) -> None:
        """Take in an epoch's training; the hosts are still as they were measured before it, but for what it did."""
        hosts = motion.hosts
        squares = self._of_layers(hosts.squared_gradient).sum(axis=2)
        # Whatever got a gradient in an earlier epoch is moved by momentum at every step.
        frequency = self._get("layers.update_frequency")
        self._set("layers.update_frequency", np.where(frequency > 0.0, 1.0, self._of_layers(hosts.pushed).max(axis=2)))
        self._losses.book(hosts.loss)
        change = np.sqrt(self._of_layers(hosts.squared_change).sum(axis=2))
        update = change / self._get("layers.weight_norm")
        self._set("tunes.convergence_rate", 1.0 - update / self._get("tunes.update_magnitude"))
        self._set("tunes.update_magnitude", update)
        self._set("layers.gradient_norm", np.sqrt(squares))
        self._set("layers.loss_share", squares / squares.sum(axis=1, keepdims=True))
        before = np.sqrt(squares[:, self._structure.edges["feeds"][:, 0]])
        self._set("activations.gradient_flow", before / np.sqrt(squares @ self._read_by.T))
        spread = np.maximum(hosts.squared_gradient - hosts.squared_mean_gradient, 0.0).sum(axis=1, keepdims=True)
        variance = spread / self._population.costs.host[:, None]
        delta = self._losses.recent[:, -1] - self._losses.recent[:, -2]
        self._set("parameters.gradient_variance", variance)
        self._set("seeds.activity_level", motion.seed_change)
        self._set("metrics.loss", hosts.loss[:, None])
        self._set("metrics.gradient_norm", hosts.gradient_norm[:, None])
        self._set("metrics.loss_delta", delta[:, None])
        self._set("metrics.loss_volatility", self._losses.volatility[:, None])
        self._set("metrics.grad_var", variance)

    def _of_layers(self, values: FloatArray) -> FloatArray:
        """Values of each parameter, ``[N, n]``, as ``[N, layers, most parameters of one]`` with zeros behind."""
        padded = np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)
        return padded[:, self._parameters_of]

    def _weight_norms(self) -> FloatArray:
        norms = self._population.layout.norms(self._population.flat).double().cpu().numpy()
        return np.sqrt(self._of_layers(norms**2).sum(axis=2))

    # ------------------------------------------------------------------ what hosts are
    @np.errstate(over="ignore")  # what no float32 holds is not known
    def measure(
        self,
        observation: npt.NDArray[np.float32],
        blueprints: IntArray,
        lifecycle: Lifecycle,
        epoch: IntArray,
    ) -> npt.NDArray[np.float32]:
        """The hosts as they are now, ``[N, layout.size]`` float32, finite.

        Args:
            observation: Obs V3, ``[N, size]``.
            blueprints: ``[N, S]``, ``NO_BLUEPRINT`` where no seed lives.
            lifecycle: The slots, in sync with the population.
            epoch: ``[N]`` epochs done.
        """
        population = self._population
        due = np.flatnonzero(epoch % ACTIVITY_INTERVAL == 0)
        if len(due):
            self._measure_activity(due, lifecycle)
        rates = population.learning_rates(epoch)[:, None].astype(float)
        self._fates.look(lifecycle)
        self._set(OBSERVATION, observation)
        self._set(BLUEPRINTS, blueprints)
        self._set("layers.weight_norm", self._weight_norms())
        self._set("parameters.learning_rate", rates)
        self._set("metrics.optimizer_lr", rates)
        self._set("seeds.learning_rate", np.where(lifecycle.computing, rates, np.nan))
        self._set("seeds.success_rate", self._fates.success(lifecycle))
        vectors = np.where(np.isfinite(self._values), self._values, np.float32(UNKNOWN))
        vectors[:, 0] = 1.0
        return vectors

    def _measure_activity(self, hosts: IntArray, lifecycle: Lifecycle) -> None:
        """Watch the activation functions of these hosts."""
        watched = {layer.name: FUNCTIONS[str(layer.activation)] for layer in self._structure.activations}
        channels = self._sizes["layers.output_channels"][self._population.variant[hosts]]
        channels_of = dict(zip(watched, channels[:, self._structure.edges["feeds"][:, 0]].T, strict=True))
        seen: dict[str, ActivityStatistics] = {}

        def observe(name: str, x: Tensor) -> None:
            seen[name] = ActivityStatistics.of(watched[name], x, channels_of[name])

        self._population.show(hosts, lifecycle, ACTIVITY_SAMPLES, observe)
        columns = {
            field.name: np.stack([getattr(seen[name], field.name) for name in watched], axis=1)
            for field in fields(ActivityStatistics)
        }
        columns["nonlinearity"] = columns["nonlinearity"][:, self._structure.edges["influences"][:, 0]]
        for key, column in (
            ("activations.saturation_rate", "saturated"),
            ("feeds.activation_frequency", "active"),
            ("feeds.saturation_events", "events"),
            ("influences.nonlinearity_strength", "nonlinearity"),
        ):
            self._get(key)[hosts] = columns[column]

    def _get(self, key: str) -> npt.NDArray[np.float32]:
        """A key's numbers, ``[N, rows]``; what is written to them stays."""
        return self._values[:, self.layout.places[key]]

    def _set(self, key: str, values: npt.NDArray[Any]) -> None:
        self._get(key)[:] = values


def _sizes(task: Task, layout: GraphLayout) -> dict[str, FloatArray]:
    """Key → what follows from a host's variant alone, ``[variants, rows]``."""
    host, structure = task.host, layout.structure
    specs = [host.parameters(variant) for variant in task.variants]
    channels = np.array([[layer.channels(of) for layer in structure.layers] for of in specs], float)
    places = np.array(host.layer_places(tuple(task.splits["train"].x.shape[1:])), float)
    inputs, outputs = np.moveaxis(channels, -1, 0)
    source, target = structure.edges["connects"].T
    layer, _ = structure.edges["feeds"].T
    flops = np.array([FUNCTIONS[str(activation.activation)].flops for activation in structure.activations], float)
    return {
        "layers.input_channels": inputs,
        "layers.output_channels": outputs,
        "activations.computational_cost": outputs[:, layer] * places[layer] * flops,
        "parameters.count": np.array([[count_parameters(of)] for of in specs], float),
        "connects.data_flow_volume": outputs[:, source] * places[target],
    }


def _parameters_of(layers: tuple[HostLayer, ...], names: list[str]) -> IntArray:
    """Indices of each layer's parameters, ``[layers, most of one]``; behind the last one that of no parameter."""
    most = max(len(layer.parameters) for layer in layers)
    rows = [[names.index(name) for name in layer.parameters] for layer in layers]
    return np.array([row + [len(names)] * (most - len(row)) for row in rows])
