"""Policies of all kinds as a worker has them: a packet and what was remembered in, a proposal out, nothing kept."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from envs.action_masks import mask_size, refusals
from envs.slots import SlotConfig
from envs.vocabulary import HeadSpec, LifecycleOp
from esper_ray.controller.commands import Blending
from esper_ray.controller.proposals import Answer, Ending, Hello, Proposal, Request, TrainedOn
from esper_ray.errors import UserError
from esper_ray.keeping.export import CARD_FILE, Card, load_export
from esper_ray.keeping.strategic_policy import checkpoint_in, exported, load_strategic
from esper_ray.measuring.search.schedule_files import read_schedule
from esper_ray.reading import describe_problems
from esper_ray.serving.packets import said
from policies.bundle import Observations, PolicyBundle, PolicySettings
from policies.factory import build_policy, playing_anywhere
from policies.registry import departures
from policies.results import HiddenState
from policies.scripted import FixedSchedule
from policies.strategic.checkpoint import MANIFEST_FILE, Checkpoint
from policies.strategic.inference import StrategicPolicy
from policies.strategic.messages import SystemState
from policies.strategic.schema import RISK_CLASSES
from policies.weights import differences

BuildPolicy = Callable[[PolicySettings], PolicyBundle]


class NotFiniteError(ValueError):
    """A policy remembers a number that is none."""


@dataclass(frozen=True)
class Thought:
    """What a policy makes of a packet, before it is judged.

    Attributes:
        heads: Of the packet's slots.
        said: Fields of a :class:`Proposal`.
        hidden: What it remembers now.
    """

    heads: Sequence[HeadSpec]
    said: dict[str, Any]
    hidden: bytes | None


class Proposer(Protocol):
    """A policy that keeps nothing between two packets."""

    @property
    def slots(self) -> SlotConfig | None:
        """The only ones that a run can have; None if it reads any."""
        ...

    def hello(self, policy_version: str) -> Hello:
        """What there is to be said of the policy."""
        ...

    def think(self, packet: SystemState, hidden: bytes | None, generator: torch.Generator, greedy: bool) -> Thought:
        """What the policy makes of a packet.

        Args:
            packet: To decide on.
            hidden: What it remembered after the packet before; None at a run's start.
            generator: Of its draws.
            greedy: Take the most probable choices instead of drawing.

        Raises:
            ValueError: a packet or a memory that it cannot read.
            NotFiniteError: what it remembers now is not finite.
        """
        ...


class ObservationProposer:
    """A policy that reads Obs V3 (see :class:`Proposer` for the methods).

    Args:
        policy_for: The policy for the slots and the length of a packet's run.
        slots: The only ones that a run can have; None if it reads any.
        trained_on: As far as it says.
    """

    def __init__(
        self, policy_for: BuildPolicy, slots: SlotConfig | None = None, trained_on: TrainedOn | None = None
    ) -> None:
        self.slots, self._trained_on = slots, trained_on

        @cache
        def of(slots: SlotConfig, max_epochs: int) -> PolicyBundle:
            return policy_for(PolicySettings(slots, max_epochs))

        self._policy_for = of

    def hello(self, policy_version: str) -> Hello:
        """With what it was trained on."""
        return Hello.of(policy_version, self.slots, trained_on=self._trained_on)

    def think(self, packet: SystemState, hidden: bytes | None, generator: torch.Generator, greedy: bool) -> Thought:
        """With what the policy itself says of its draw."""
        observations = _observations(packet)
        if packet.max_epochs is None:
            raise ValueError("the packet does not say max_epochs, on whose scale Obs V3 is")
        policy = self._policy_for(SlotConfig.for_row(len(packet.seeds), packet.internal_levels), packet.max_epochs)
        heads = policy.slot_config.heads
        if mask_size(heads) != observations["action_mask"].shape[1]:
            raise ValueError(
                f"the packet has {len(packet.seeds)} slots, the policy is for {policy.slot_config.num_slots}"
            )
        tensors = {name: torch.from_numpy(values) for name, values in observations.items()}
        result = policy.get_action(tensors, _remembered(policy, hidden), generator, greedy)
        told = {
            "action": tuple(result.actions[0].tolist()),
            "log_prob": float(result.log_prob[0]),
            "op_probs": dict(zip(heads[0].choices, result.op_probs[0].tolist(), strict=True)),
            "value": None if result.value is None else float(result.value[0]),
        }
        return Thought(heads, told, _to_remember(result.hidden))


class PacketProposer:
    """A policy that reads packets and remembers its run's scale (see :class:`Proposer` for the methods).

    Args:
        checkpoint: The policy.
        trained_on: As far as it says.
    """

    slots = None

    def __init__(self, checkpoint: Checkpoint, trained_on: TrainedOn | None = None) -> None:
        self._policy, self._trained_on = StrategicPolicy(checkpoint), trained_on
        self._says_blending = checkpoint.taught.methods or checkpoint.taught.windows
        self._return_scale = checkpoint.return_scale

    def hello(self, policy_version: str) -> Hello:
        """With what it was trained on, and how its network runs."""
        policy = self._policy
        return Hello.of(
            policy_version,
            None,
            trained_on=self._trained_on,
            compiled=policy.is_compiled,
            compile_warm_ms=policy.compile_warm_ms,
        )

    def think(self, packet: SystemState, hidden: bytes | None, generator: torch.Generator, greedy: bool) -> Thought:
        """With an embedding, and with risk and blending if it was taught them."""
        run = self._policy.open_run(
            packet.run_id,
            None if hidden is None else json.loads(hidden),
            log_coverage=False,  # every packet opens a run, and each decision tells it
        )
        reading = run.read(packet)
        distribution = reading.result.distribution
        actions = distribution.sample(generator, greedy)
        run.commit()
        whole = said(packet, reading, actions[0].numpy(), self._return_scale)
        heads = reading.slots.heads
        told = {
            "action": tuple(whole["action"]),
            "log_prob": float(distribution.log_prob(actions).sum()),
            "op_probs": dict(zip(heads[0].choices, distribution.op_log_probs[0].exp().tolist(), strict=True)),
            "value": whole["value"],
            "risk": None if whole["risk"] is None else expected_risk(list(whole["risk"].values())),
            "blending": {
                slot: Blending(method=how["method"], schedule_start=how["start"], schedule_end=how["end"])
                for slot, how in whole["blending"].items()
                if self._says_blending
            },
            "embedding": tuple(reading.result.telemetry_embedding[0].tolist()),
        }
        return Thought(heads, told, json.dumps(run.scale).encode())


def expected_risk(probabilities: Sequence[float]) -> float:
    """The risk classes' numbers from 0 to 1, weighted with their probabilities."""
    return min(float(np.dot(probabilities, np.arange(len(RISK_CLASSES)) / (len(RISK_CLASSES) - 1))), 1.0)


# ---------------------------------------------------------------------- answers
def answer(proposer: Proposer, policy_version: str, request: Request) -> Answer:
    """What a policy says to a request, judged: a proposal is finite and within the mask, all else a line of why not."""
    began = time.perf_counter()
    try:
        packet = SystemState.model_validate_json(request.packet)
        if request.mask is not None:
            packet = SystemState(**{**dict(packet), "action_mask": request.mask})
        generator = torch.Generator().manual_seed(request.seed)
        thought = proposer.think(packet, request.hidden, generator, request.greedy)
        proposal = Proposal(
            policy_version=policy_version,
            inference_ms=1e3 * (time.perf_counter() - began),
            hidden=thought.hidden,
            **thought.said,
        )
    except NotFiniteError as error:
        return Answer(ending=Ending.NOT_FINITE, reason=str(error))
    except ValidationError as error:
        finite = all(problem["type"] != "finite_number" for problem in error.errors())
        return Answer(ending=Ending.ERROR if finite else Ending.NOT_FINITE, reason=describe_problems(error))
    except Exception as error:  # of a policy that anybody may have written
        return Answer(ending=Ending.ERROR, reason=one_line(error))
    if refused := _refused(packet, thought.heads, proposal.action):
        return Answer(ending=Ending.MASKED_ACTION, reason=refused)
    return Answer(ending=Ending.ANSWER, proposal=proposal)


def _refused(packet: SystemState, heads: Sequence[HeadSpec], action: Sequence[int]) -> str:
    """What the mask refuses of an action, in a line; empty if it admits it."""
    if not packet.action_mask:  # whoever does not say what is admitted admits to wait
        return "" if action[0] == LifecycleOp.WAIT else "the packet has no mask, so that only WAIT is admitted"
    mask = np.array([packet.action_mask], np.int8)
    try:
        refused = refusals(np.array([action]), mask, heads)
    except ValueError as error:
        return str(error)
    return ", ".join(
        f"{head.name} {head.choices[index]} is masked"
        for head, index in zip(heads, action, strict=True)
        if refused[head.name][0]
    )


def one_line(error: Exception) -> str:
    """What went wrong."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# ---------------------------------------------------------------------- Obs V3, and what is remembered of it
def _observations(packet: SystemState) -> Observations:
    if not packet.seeds or None in (packet.observation, packet.blueprint_indices, packet.action_mask):
        raise ValueError("the packet has no slots with observation, blueprint_indices and action_mask, to decide on")
    return {
        "obs": np.array([packet.observation], np.float32),
        "blueprint_indices": np.array([packet.blueprint_indices], np.int64),
        "action_mask": np.array([packet.action_mask], np.int8),
    }


def _remembered(policy: PolicyBundle, hidden: bytes | None) -> HiddenState:
    fresh = policy.initial_hidden(1)
    if hidden is None:
        return fresh
    names = _named(fresh)
    try:
        state = safetensors.torch.load(hidden)
    except SafetensorError as error:
        raise ValueError(f"what was remembered cannot be read: {error}") from error
    if problems := differences(names, state):
        raise ValueError(f"what was remembered is not this policy's: {problems}")
    return tuple(state[name] for name in names)  # a file's tensors come in any order


def _to_remember(hidden: HiddenState) -> bytes | None:
    if not all(bool(tensor.isfinite().all()) for tensor in hidden):
        raise NotFiniteError("what the policy remembers is not finite")
    return safetensors.torch.save(_named(hidden)) if hidden else None


def _named(hidden: HiddenState) -> dict[str, torch.Tensor]:
    return {str(at): tensor.contiguous() for at, tensor in enumerate(hidden)}


# ---------------------------------------------------------------------- which policy
def load_proposer(policy: str) -> tuple[Proposer, str]:
    """The policy that somebody means, and its version.

    Args:
        policy: The name of one that needs no training; the directory of an export or of an imitation; the JSON file of
            a schedule; or ``FILE.py:CLASS``, somebody's own :class:`policies.bundle.PolicyBundle`.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if policy in playing_anywhere():
        return ObservationProposer(lambda settings: build_policy(policy, settings)), policy
    path = Path(policy).expanduser()
    file, _, name = policy.rpartition(":")
    if file.endswith(".py"):
        return ObservationProposer(_own(Path(file).expanduser(), name).build), _digest(Path(file).expanduser())
    if path.is_file():
        schedule = read_schedule(path)
        return ObservationProposer(
            lambda settings: FixedSchedule(settings.slots, settings.max_epochs, schedule)
        ), _digest(path)
    if (place := checkpoint_in(path)) is not None:
        return PacketProposer(load_strategic(path)), _digest(place / MANIFEST_FILE)
    if path.is_dir():
        card, bundle = load_export(path)
        version = _digest(path / CARD_FILE)
        if bundle.reads_graphs:
            return PacketProposer(exported(card, bundle), _trained_on(card)), version
        return ObservationProposer(lambda settings: bundle, card.slots, _trained_on(card)), version
    raise UserError(
        f"no policy {policy!r}: give the directory of an export, the file of a schedule, FILE.py:CLASS, or one of "
        f"{', '.join(playing_anywhere())}"
    )


def _trained_on(card: Card) -> TrainedOn:
    horizons = card.env.horizons
    return TrainedOn(topologies=card.topologies, shortest=horizons[0], longest=horizons[-1])


def _own(file: Path, name: str) -> type[PolicyBundle]:
    """A class in somebody's file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None  # the name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"cannot use {file}: {one_line(error)}") from error
    policy = getattr(module, name, None)
    if not isinstance(policy, type):
        raise UserError(f"{file} has no class {name!r}")
    if problems := departures(policy):
        raise UserError(f"{name} in {file} is no policy: {'; '.join(problems)}")
    return policy


def _digest(file: Path) -> str:
    """Of the file that says what a policy is; beside weights it has theirs in it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
