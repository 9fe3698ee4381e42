"""A training under a controller with which everything goes wrong that can, at epochs drawn by a seed.

The controller is a real one with a worker of its own, and so is the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import EXCUSES, EXPECTED, UNRECORDED, Fault, Told
from benchmarks.sabotage import RUN, Clocks, Sabotaged
from envs.live.task_host import TaskLoop
from envs.tasks import make_task
from esper_ray.controller.commands import Reason
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.records import Record, Records, Unreadable
from esper_ray.controller.service import Controller
from esper_ray.live import grow

TASK = "digits_impaired"


@dataclass(frozen=True)
class FaultyRun:
    """How a training with faults went.

    Attributes:
        told: Every answer, in order.
        exceptions: That reached the trainer, in a line each.
        broken: What was promised and not held, in a line each.
        accuracy: Of the committed model on the validation split, percent.
        never_grown: Of the same host without anything.
    """

    told: tuple[Told, ...]
    exceptions: tuple[str, ...]
    broken: tuple[str, ...]
    accuracy: float
    never_grown: float

    @property
    def struck(self) -> list[Fault]:
        """The faults that did."""
        return [one.fault for one in self.told if one.fault is not None and one.struck]

    def stalls(self, seconds: float) -> int:
        """Answers for which the trainer waited longer."""
        return sum(one.seconds > seconds for one in self.told)


POLICY = """from benchmarks.faults import Fault
from benchmarks.faulty_policy import FaultyPolicy


class Planned(FaultyPolicy):
    plan = {{{plan}}}
    slow_seconds = {slow}
"""


def faulty_run(
    directory: Path, seed: int, epochs: int, plan: Mapping[int, Fault], config: ControllerConfig | None = None
) -> FaultyRun:
    """Train a host under a controller with faults, and see whether what was promised holds.

    Args:
        directory: New or empty.
        seed: Of the host.
        epochs: Of the training.
        plan: Epochs done → fault (:func:`planned`).
        config: Of the controller.
    """
    config = config or ControllerConfig()
    policy, amendments, state = directory / "policy.py", directory / "blueprints.json", directory / "state"
    faults = ", ".join(f"{epoch}: Fault.{fault.name}" for epoch, fault in plan.items())
    policy.write_text(POLICY.format(plan=faults, slow=3e-3 * config.inference_ms))
    amendments.write_text("{}")
    clocks = Clocks()
    with Controller(
        f"{policy}:Planned", state, config=config, amendments=amendments, now=clocks.now, time_ns=clocks.time_ns
    ) as controller:
        sabotaged = Sabotaged(controller, clocks, plan, state, policy, amendments)
        accuracy, exceptions = _trained(seed, epochs, sabotaged)
        sabotaged.mend()
        alive = bool(controller.workers)
    with Records.open(state) as records:
        broken = list(_broken(sabotaged.told, list(records.records(RUN))))
    broken += [] if alive else ["no worker has taken over"]
    never_grown, _ = _trained(seed, epochs, None)
    return FaultyRun(tuple(sabotaged.told), exceptions, tuple(broken), accuracy, never_grown)


def _trained(seed: int, epochs: int, controller: Sabotaged | None) -> tuple[float, tuple[str, ...]]:
    """Accuracy at the end, and the exceptions on the way."""
    loop, exceptions = TaskLoop(make_task(TASK), epochs, seed), list[str]()
    policy = "never_grow" if controller is None else None
    grower = grow(**loop.given, policy=policy, controller=controller, seed=seed)
    for _ in range(epochs):
        training_loss = loop.epoch()
        try:
            grower.end_epoch(training_loss=training_loss, samples=loop.samples)
        except Exception as error:
            exceptions.append(f"epoch {grower.epoch}: {type(error).__name__}: {error}")
    return grower.commit().accuracy, tuple(exceptions)


def _broken(told: Sequence[Told], records: Sequence[Record | Unreadable]) -> Iterator[str]:
    """What does not hold of a run's answers and of what is on record of them."""
    commands = {str(one.decision.command_id): one.decision.command for one in records if isinstance(one, Record)}
    if len(commands) < len(records):
        yield f"{len(records) - len(commands)} records cannot be read"
    for one in told:
        said = f"epoch {one.epoch}, {one.fault or 'no fault'}: {one.command.kind} {one.command.reason}"
        expected: frozenset[Reason] = frozenset() if one.fault is None else EXPECTED.get(one.fault, frozenset())
        if expected and not (one.is_pause and one.reasons & (expected | EXCUSES)):
            yield f"{said}, expected a PAUSE for {' or '.join(sorted(expected))}"
        recorded = commands.get(str(one.command.command_id))
        if one.command.reason not in UNRECORDED and recorded != one.command.model_dump_json().encode():
            yield f"{said}, of which there is no record"
