"""Who decides: the shipped policies, an export, a name, a schedule's file, or a policy that the user brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.live.errors import LiveError
from envs.live.places import IMAGE, Kind
from envs.slots import SlotConfig
from envs.warning import warn_user
from esper_ray.keeping.export import load_export
from esper_ray.keeping.strategic_policy import checkpoint_in, exported, load_strategic
from esper_ray.live.refusals import refuse_stranger
from esper_ray.measuring.search.schedule_files import read_schedule
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy, playing_anywhere
from policies.scripted import FixedSchedule
from policies.strategic.checkpoint import Checkpoint

SHIPPED = Path(__file__).parent / "shipped"
"""Exports that come with the package."""

Policy = str | Path | PolicyBundle


@dataclass(frozen=True)
class Decider:
    """A policy that fits a host.

    Attributes:
        policy: Decides.
        slots: Its slots, of which the host's are the enabled ones, from the first on.
        name: In words.
    """

    policy: PolicyBundle
    slots: SlotConfig
    name: str


@dataclass(frozen=True)
class GraphDecider:
    """A policy of graphs, which reads hosts with any number of slots.

    Attributes:
        checkpoint: Decides.
        name: In words.
    """

    checkpoint: Checkpoint
    name: str


def shipped_policy(kind: Kind) -> Path:
    """Where the shipped policy for slots of a kind is."""
    return SHIPPED / ("images" if kind == IMAGE else "sequences_and_vectors")


def find_policy(
    policy: Policy | None, kind: Kind, num_slots: int, max_epochs: int, force: bool
) -> Decider | GraphDecider:
    """The policy that a user means, for a host of ``num_slots`` slots.

    Args:
        policy: None for the shipped one; the name of one that needs no training; the directory of an export or of an
            imitation; the JSON file of a schedule; or a policy.
        kind: Of the host's slots.
        num_slots: Of the host.
        max_epochs: Of the run.
        force: Take an export whatever topology it was trained on.

    Raises:
        LiveError: a policy that is not there or is none, has fewer slots, or was trained on another topology.
        UserError: an export or a schedule that cannot be read.
    """
    settings = PolicySettings(SlotConfig.for_row(num_slots), max_epochs)
    if policy is None:
        shipped = _trained(shipped_policy(kind), kind, num_slots, max_epochs, force)
        return dataclasses.replace(shipped, name=f"the shipped policy for {kind.name}s")
    if isinstance(policy, str) and policy in playing_anywhere():
        return Decider(build_policy(policy, settings), settings.slots, policy)
    if not isinstance(policy, str | Path):
        kinds = "policy must be a name, a path, or an object with the methods of policies.bundle.PolicyBundle"
        refuse_stranger(kinds, policy, "slot_config", "device", "initial_hidden", "get_action")
        return Decider(policy, enabled_slots(policy.slot_config, num_slots, "the policy"), type(policy).__name__)
    path = Path(policy).expanduser()
    if path.is_dir():
        return _trained(path, kind, num_slots, max_epochs, force)
    if path.is_file():
        try:
            planned = FixedSchedule(settings.slots, max_epochs, read_schedule(path))
        except ValueError as error:
            raise LiveError(f"the schedule in {path} does not fit: {error}") from error
        return Decider(planned, settings.slots, f"schedule {path.name}")
    raise LiveError(
        f"no policy {str(policy)!r}: give the directory of an export, the file of a schedule, or one of "
        f"{', '.join(playing_anywhere())}"
    )


def _trained(path: Path, kind: Kind, num_slots: int, max_epochs: int, force: bool) -> Decider | GraphDecider:
    who = f"the policy in {path}"
    if checkpoint_in(path) is not None:
        checkpoint = load_strategic(path)
        shortest, longest = checkpoint.min_epochs, checkpoint.max_epochs
        check_training(who, [kind.topology], shortest, longest, kind, max_epochs, force)  # graphs are of any topology
        return GraphDecider(checkpoint, path.name)
    card, policy = load_export(path)
    horizons = card.env.horizons
    check_training(who, card.topologies, horizons[0], horizons[-1], kind, max_epochs, force)
    if policy.reads_graphs:
        return GraphDecider(exported(card, policy), path.name)
    return Decider(policy, enabled_slots(policy.slot_config, num_slots, who), path.name)


def check_training(
    who: str, topologies: Sequence[str], shortest: int, longest: int, kind: Kind, max_epochs: int, force: bool
) -> None:
    """Hold what a policy was trained on against a run; of another length it is only warned, where grow is called.

    Args:
        who: Was trained, for the message.
        topologies: Of its hosts.
        shortest: Epochs.
        longest: Epochs.
        kind: Of the run's slots.
        max_epochs: Of the run.
        force: Any topology will do.

    Raises:
        LiveError: it was trained on other topologies.
    """
    if kind.topology not in topologies and not force:
        raise LiveError(
            f"{who} was trained on hosts of topology {', '.join(topologies)}, and these slots are "
            f"{kind.name}s (topology {kind.topology}): choose another policy, or pass force=True to try it all the same"
        )
    if not shortest <= max_epochs <= longest:
        spread = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        warn_user(f"{who} was trained over {spread} epochs and may not finish in {max_epochs} what it begins")


def enabled_slots(slots: SlotConfig, num_slots: int, who: str) -> SlotConfig:
    """Slots that somebody chooses for, of which those of a host, the first ones, are enabled.

    Args:
        slots: All of them.
        num_slots: Of the host.
        who: Chooses, for the message.

    Raises:
        LiveError: the host has more.
    """
    if num_slots > slots.num_slots:
        raise LiveError(
            f"{num_slots} slots are more than the {slots.num_slots} that {who} was made for: name fewer slots"
        )
    return dataclasses.replace(slots, enabled=slots.slot_ids[:num_slots])
