"""The strategic policy in use: a packet in, everything that the policy says of it out.

It never trains, draws nothing itself, and leaves the process as it is: its threads, its precision, its randomness.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from envs.slots import SlotConfig
from envs.vocabulary import SeedStage
from policies.distribution import ActionTables
from policies.strategic.builder import GraphBuilder
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.coverage import Coverage, CoverageLog
from policies.strategic.graph import GraphArrays, GraphBatch
from policies.strategic.graph_columns import Activations, Connects, Feeds, Graph, Layers
from policies.strategic.heads import GraphPolicyResult
from policies.strategic.measured import Measured
from policies.strategic.messages import SeedState, SystemState
from policies.strategic.normaliser import metric_sums, metric_values
from policies.strategic.schema import RISK_CLASSES

logger = logging.getLogger(__name__)
V = TypeVar("V")
Forward = Callable[[GraphBatch, ActionTables], GraphPolicyResult]

WARM_UP_LAYERS = (5, 7, 12)
"""Layers of the graphs that are read before the first packet: several, so that what is compiled takes any number."""


class FallingBack:
    """A network that torch compiles when it is first called; where that fails, the network as it is, said once.

    Args:
        plain: The network.
    """

    def __init__(self, plain: Forward) -> None:
        self._plain = plain
        self._compiled: Forward | None = None
        try:
            self._compiled = torch.compile(plain, dynamic=True, mode="reduce-overhead")
        except Exception as error:  # compilers fail in ways of their own
            _warn(error)

    @property
    def is_compiled(self) -> bool:
        """Whether nothing has failed so far."""
        return self._compiled is not None

    def __call__(self, graphs: GraphBatch, tables: ActionTables) -> GraphPolicyResult:
        """A pass."""
        if self._compiled is None:
            return self._plain(graphs, tables)
        try:
            return self._compiled(graphs, tables)
        except Exception as error:
            result = self._plain(graphs, tables)  # what fails here, too, is not the compiler's fault
            self._compiled = None
            _warn(error)
            return result


def _warn(error: Exception) -> None:
    reason = str(error).strip().partition("\n")[0]
    logger.warning("torch.compile failed, the network runs as it is: %s: %s", type(error).__name__, reason)


@dataclass(frozen=True)
class Reading:
    """What the policy says of one packet.

    Attributes:
        result: All of it, ``B = 1``, on the CPU (:meth:`StrategicPolicy.answer`).
        slots: Slots of the host, which the result's action is of.
        coverage: How much was measured of what the source declared.
    """

    result: GraphPolicyResult
    slots: SlotConfig
    coverage: Coverage

    @property
    def risk(self) -> dict[str, float] | None:
        """Probability of each of ``RISK_CLASSES``; None if the policy was not taught risks."""
        if self.result.risk_logits is None:
            return None
        return dict(zip(RISK_CLASSES, self.result.risk_logits[0].softmax(dim=-1).tolist(), strict=True))


class StrategicPolicy:
    """A trained policy that reads packets and graphs.

    Args:
        checkpoint: What was trained.
        device: Where the network computes.
        reduced_precision: Let CUDA compute in bfloat16, and what stays in float32 in TF32. Elsewhere it changes
            nothing.
        compiled: Let torch compile the network on CUDA. Elsewhere it changes nothing.

    Attributes:
        compile_warm_ms: Time that the first passes took, milliseconds: what compiling costs. It is logged, too.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        *,
        reduced_precision: bool = False,
        compiled: bool = True,
    ) -> None:
        self._checkpoint, self._device = checkpoint, torch.device(device)
        on_cuda = self._device.type == "cuda"
        self._reduced = reduced_precision and on_cuda
        self._network = checkpoint.network().to(self._device).eval()
        self._forward: Forward = FallingBack(self._network) if compiled and on_cuda else self._network
        self._tables: dict[SlotConfig, tuple[ActionTables, ActionTables]] = {}
        started = time.perf_counter()
        builder = GraphBuilder(checkpoint.registries, checkpoint.normaliser)
        for layers in WARM_UP_LAYERS:
            measured = Measured.of(_example(layers))
            self.answer(builder.build(measured), measured.slots)
        self.compile_warm_ms = 1e3 * (time.perf_counter() - started)
        logger.info("gnn.compile_warm_ms %.0f on %s", self.compile_warm_ms, self._device)

    @property
    def is_compiled(self) -> bool:
        """Whether torch compiles the network."""
        return isinstance(self._forward, FallingBack) and self._forward.is_compiled

    def open_run(self, run_id: str, scale: Any = None, *, log_coverage: bool = True) -> StrategicRun:
        """A training run to read, with a scale of its own for what depends on the machine.

        Args:
            run_id: Of the run.
            scale: To go on from, as :attr:`StrategicRun.scale` gave it; by default that of the policy's training.
            log_coverage: Whether to log it when a packet measures less of what is declared than the one before.

        Raises:
            ValueError: a scale that is none.
        """
        normaliser = self._checkpoint.normaliser.for_run()
        if scale is not None:
            normaliser.load_json(scale)
        log = CoverageLog(run_id) if log_coverage else None
        return StrategicRun(self, run_id, GraphBuilder(self._checkpoint.registries, normaliser), log)

    def answer(self, arrays: GraphArrays, slots: SlotConfig) -> GraphPolicyResult:
        """What the policy says of N graphs of hosts with these slots.

        It reads nothing and admits nothing that training never showed, and says nothing that it was not taught.

        Args:
            arrays: The graphs, on the CPU.
            slots: As many as the graphs have.

        Returns:
            Leading axis ``[N]``, on the CPU. The distribution is the one to draw from, at the policy's own temperature;
            the logits beside it are the network's.
        """
        result = self._pass(self._checkpoint.seen.restrict(arrays, slots.heads), slots)
        distribution = result.distribution.at_temperature(self._checkpoint.play_temperature)
        return replace(self._checkpoint.taught.restrict(result), distribution=distribution)

    def _pass(self, arrays: GraphArrays, slots: SlotConfig) -> GraphPolicyResult:
        here, there = self._tables_of(slots)
        with torch.inference_mode(), _reduced_precision() if self._reduced else nullcontext():
            batch = GraphBatch.from_arrays(arrays)
            if self._device.type == "cpu":
                return self._forward(batch, here)
            return self._back(self._forward(_mapped(batch, self._sent), there), here)

    def _tables_of(self, slots: SlotConfig) -> tuple[ActionTables, ActionTables]:
        """The tables of a world's action, on the CPU and on the device."""
        if slots not in self._tables:
            self._tables[slots] = ActionTables(slots.heads), ActionTables(slots.heads).to(self._device)
        return self._tables[slots]

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for it."""
        return (tensor.pin_memory() if self._device.type == "cuda" else tensor).to(self._device, non_blocking=True)

    @staticmethod
    def _back(result: GraphPolicyResult, tables: ActionTables) -> GraphPolicyResult:
        """On the CPU, and no longer in memory that the next pass of a compiled network reuses."""
        result = _mapped(result, lambda tensor: tensor.cpu())
        return replace(result, distribution=replace(result.distribution, tables=tables))


class StrategicRun:
    """One training run, packet by packet; :meth:`StrategicPolicy.open_run` makes it.

    A packet is read on the scale of those before it. Its own metrics move the scale once the decision on it is
    committed.
    """

    def __init__(self, policy: StrategicPolicy, run_id: str, builder: GraphBuilder, log: CoverageLog | None) -> None:
        self._policy, self.run_id, self._builder, self._log = policy, run_id, builder, log
        self._read: SystemState | None = None

    @property
    def scale(self) -> dict[str, dict[str, float]]:
        """All that the run remembers: its scale, as JSON. A run that goes on from it reads as this one would."""
        return self._builder.normaliser.to_json()

    def read(self, packet: SystemState) -> Reading:
        """What the policy says of a packet. Reading it again says the same.

        Raises:
            ValueError: a packet of another run.
        """
        if packet.run_id != self.run_id:
            raise ValueError(f"the packet is of the run {packet.run_id!r}, this is the run {self.run_id!r}")
        measured, coverage = Measured.of(packet), Coverage.of(packet)
        if self._log is not None:
            self._log.report(coverage)
        result = self._policy.answer(self._builder.build(measured), measured.slots)
        self._read = packet
        return Reading(result, measured.slots, coverage)

    def commit(self) -> None:
        """The decision on the packet that was read last stands.

        Raises:
            ValueError: no packet was read since the last commit.
        """
        if self._read is None:
            raise ValueError(f"there is nothing to commit: no packet of {self.run_id!r} was read since the last commit")
        self._builder.normaliser.observe(metric_sums(metric_values(self._read.metrics)))
        self._read = None


@contextmanager
def _reduced_precision() -> Iterator[None]:
    """In here CUDA computes in bfloat16, and in TF32 what stays in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _mapped(value: V, change: Callable[[Tensor], Tensor]) -> V:
    """The same with every tensor changed, through dataclasses, mappings and tuples."""
    found: Any = value
    if isinstance(found, Tensor):
        found = change(found)
    elif isinstance(found, Mapping):
        found = {key: _mapped(item, change) for key, item in found.items()}
    elif isinstance(found, tuple):
        found = tuple(_mapped(item, change) for item in found)
    elif is_dataclass(found) and not isinstance(found, type):
        found = replace(found, **{of.name: _mapped(getattr(found, of.name), change) for of in fields(found)})
    changed: V = found
    return changed


def _example(layers: int) -> SystemState:
    """A packet of layers in a row, of which nothing was measured."""
    names = tuple(f"layer{at}" for at in range(layers))
    rows = tuple(range(layers))
    graph = Graph(
        layers=Layers(name=names),
        layer_count=layers,
        activations=Activations(name=names),
        connects=Connects(source=rows[:-1], target=rows[1:]),
        feeds=Feeds(source=rows, target=rows),
    )
    slots = tuple(SeedState(slot=slot, stage=SeedStage.DORMANT) for slot in SlotConfig.for_row(3).slot_ids)
    return SystemState(
        run_id="warm-up", packet_id=str(layers), timestamp_ns=0, declared=(), epoch=0, graph=graph, seeds=slots
    )
