"""The same hosts in JAX, ``vmap`` over members and ``jit``: what the population's layout is worth beside it.

``jax`` is in the extra ``bench``. Hosts alone; one training step is that of ``envs``: blocks of convolution, batch norm
with running statistics, ReLU and 2×2 mean; cross entropy; gradient clipped to norm 1; SGD with momentum 0.9.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.harness import Table, median_ratio, paired_seconds
from benchmarks.living_seeds import fresh_population
from benchmarks.reference import HostLoop
from envs.population.population import Population
from envs.tasks import make_task
from envs.tasks.base import Task

NUM_HOSTS = 32
MOMENTUM, CLIP_NORM, STATISTICS_MOMENTUM, EPSILON = 0.9, 1.0, 0.3, 1e-5
TOLERANCE = 1e-3
"""How far the loss after an epoch may be from the loop's, whose sums have another order."""

POPULATION = "population"
RUNS = ("scanned", "step by step")
"""An epoch is one compiled call, or each of its mini-batches is."""

HEADER = ("hosts", "form of JAX's", "JAX, mini-batches/s", "population, mini-batches/s", "ratio")
NOTE = (
    f"JAX: {NUM_HOSTS} hosts alone, batches of 32, in turns with the population. Both are kept on one core, and "
    "seconds are those that it computes for this process; buffers are donated. The figure is the ratio to JAX's "
    "fastest form, of the host that does worse. Each form starts from the population's weights, and must have the "
    "loss of the loop over modules after an epoch."
)


# ---------------------------------------------------------------------- one host
def _convolution(x: Any, kernel: Any) -> Any:
    """``[B, H, W, in]`` × ``[out, in, k, k]``, same size."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))


def _matrix_product(x: Any, kernel: Any) -> Any:
    """The same, of patches: on a CPU XLA's convolutions in groups are slow."""
    (height, width), size = x.shape[1:3], kernel.shape[-1]
    pad = (size // 2, size // 2)
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


CONVOLUTIONS = {"convolution": _convolution, "matrix product": _matrix_product}


def _loss(parameters: Any, running: Any, x: Any, y: Any, convolve: Callable[..., Any]) -> tuple[Any, Any]:
    """Mean cross entropy of a mini-batch, and the running statistics after it."""
    p, moved, h = parameters, {}, x
    for i in range(len(running) // 2):
        h = convolve(h, p[f"conv{i}"])
        mean, var, count = h.mean((0, 1, 2)), h.var((0, 1, 2)), h[..., 0].size
        for name, value in ((f"mean{i}", mean), (f"var{i}", var * count / (count - 1))):
            moved[name] = running[name] + STATISTICS_MOMENTUM * (value - running[name])
        h = (h - mean) * jax.lax.rsqrt(var + EPSILON) * p[f"norm{i}_weight"] + p[f"norm{i}_bias"]
        h = _halved(jax.nn.relu(h))
    logits = h.mean((1, 2)) @ p["head_weight"].T + p["head_bias"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean(), moved


def _halved(x: Any) -> Any:
    """The mean of every 2×2 pixels, where there are as many."""
    samples, height, width, channels = x.shape
    if min(height, width) < 2:
        return x
    cells = x[:, : height // 2 * 2, : width // 2 * 2].reshape(samples, height // 2, 2, width // 2, 2, channels)
    return cells.mean((2, 4))


State = tuple[Any, Any, Any]
"""Parameters, their momentum and running statistics, by name; of all hosts with the members' axis first."""


def _step(state: State, x: Any, y: Any, rate: float, convolve: Callable[..., Any]) -> State:
    parameters, momentum, running = state
    (_, moved), gradients = jax.value_and_grad(_loss, has_aux=True)(parameters, running, x, y, convolve)
    norm = jnp.sqrt(sum(jnp.square(gradient).sum() for gradient in gradients.values()))
    factor = CLIP_NORM / jnp.maximum(norm, CLIP_NORM)
    momentum = {name: MOMENTUM * momentum[name] + factor * gradients[name] for name in gradients}
    parameters = {name: value - rate * momentum[name] for name, value in parameters.items()}
    return parameters, momentum, moved


# ---------------------------------------------------------------------- many hosts
class JaxHosts:
    """The hosts of a population, without its seeds, in JAX on the CPU; they start as copies.

    Args:
        population: Of convolutional hosts of one size and depth 1.
        convolution: Key of ``CONVOLUTIONS``.
        run: One of ``RUNS``.
    """

    def __init__(self, population: Population, convolution: str, run: str) -> None:
        split = population.task.splits["train"]
        data = jnp.asarray(split.x.numpy()), jnp.asarray(split.y.numpy())

        def host_step(state: State, index: Any, rate: float) -> State:
            return _step(state, data[0][index], data[1][index], rate, CONVOLUTIONS[convolution])

        step = jax.vmap(host_step, (0, 0, None))

        def epoch(state: State, order: Any, rate: float) -> State:
            return jax.lax.scan(lambda state, index: (step(state, index, rate), None), state, order)[0]

        self._scanned = run == "scanned"
        self._run = jax.jit(epoch if self._scanned else step, donate_argnums=0)
        copied = {name: jnp.array(value.numpy()) for name, value in population.layout.views(population.flat).items()}
        running = {name: jnp.array(value.numpy()) for name, value in population.buffers.items()}
        self.state: State = (copied, {name: jnp.zeros_like(value) for name, value in copied.items()}, running)

    def train_epoch(self, order: Any, rate: float) -> None:
        """Train all hosts, and wait until they are.

        Args:
            order: ``[batches, N, B]`` indices of training samples.
            rate: Learning rate.
        """
        for part in [order] if self._scanned else order:
            self.state = self._run(self.state, part, rate)
        jax.block_until_ready(self.state)

    def write_into(self, population: Population) -> None:
        """Put weights and running statistics into a population of the same hosts."""
        parameters, _, running = self.state
        views = population.layout.views(population.flat) | population.buffers
        for name, value in (parameters | running).items():
            views[name].copy_(torch.from_numpy(np.array(value)))


def jax_against_population(tasks: dict[str, str], repeats: int) -> tuple[Table, float]:
    """Time both, in all of JAX's forms.

    Args:
        tasks: Kernels of the hosts → the task that has them.
        repeats: Timed epochs of each.

    Returns:
        The table, and the population's rate over that of JAX's fastest form, of the task where it is lower.

    Raises:
        RuntimeError: JAX's hosts learn something else.
    """
    jax.config.update("jax_platforms", "cpu")  # before its first use, or it takes a GPU's memory
    rows: list[tuple[str, ...]] = []
    ratios: dict[tuple[str, str], float] = {}
    with one_core():
        for kernels, name in tasks.items():
            task = make_task(name)
            seconds = _seconds(task, repeats)
            batches = NUM_HOSTS * task.batches_per_epoch
            rates = {name: f"{batches / statistics.median(values):,.0f}" for name, values in seconds.items()}
            for form in [name for name in seconds if name != POPULATION]:
                ratios[kernels, form] = median_ratio(seconds[form], seconds[POPULATION])
                rows.append((kernels, form, rates[form], rates[POPULATION], f"{ratios[kernels, form]:.2f}"))
    return Table(f"Against JAX (cpu, N = {NUM_HOSTS}, hosts alone)", HEADER, rows), min(ratios.values())


def _seconds(task: Task, repeats: int) -> dict[str, list[float]]:
    """Of the core, for an epoch of the population and one of JAX's in each form."""
    population, lifecycle = fresh_population(task, NUM_HOSTS, 1, torch.device("cpu"))
    shape = (NUM_HOSTS, task.batches_per_epoch, task.batch_size)
    order = torch.from_numpy(np.random.default_rng(0).integers(len(task.splits["train"].y), size=shape))
    batches = jnp.asarray(order.transpose(0, 1).numpy())
    loop = HostLoop(population, lifecycle)
    loop.train_epoch(order, task.lr)
    expected, _ = loop.evaluate("validation")
    members, epoch = np.arange(NUM_HOSTS), np.zeros(NUM_HOSTS, np.int64)
    work: dict[str, Callable[[], object]] = {}
    for convolution, run in itertools.product(CONVOLUTIONS, RUNS):
        form, hosts = f"{convolution}, {run}", JaxHosts(population, convolution, run)
        hosts.train_epoch(batches, task.lr)
        trained, lifecycle = fresh_population(task, NUM_HOSTS, 1, torch.device("cpu"))
        hosts.write_into(trained)
        loss, _ = trained.evaluate(members, lifecycle.alpha, lifecycle, "validation")
        if not np.allclose(loss, expected, rtol=TOLERANCE):
            raise RuntimeError(f"JAX's hosts ({form}) learn something else: losses {loss} instead of {expected}")
        work[form] = functools.partial(hosts.train_epoch, batches, task.lr)
    work[POPULATION] = lambda: population.train_epoch(epoch, lifecycle)
    return paired_seconds(work, repeats, clock=time.process_time)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
