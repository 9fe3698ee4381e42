"""Who decides: the shipped policies, an export, a name, a schedule's file, or a policy that the user brings."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

from envs.live.places import IMAGE, Kind, LiveError
from envs.slots import SlotConfig
from esper_ray.keeping.export import Card, load_export
from esper_ray.measuring.search.schedule_files import read_schedule
from policies.bundle import PolicyBundle, PolicySettings
from policies.factory import build_policy
from policies.learned import LEARNED
from policies.registry import registered
from policies.scripted import FixedSchedule

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


def shipped_export(kind: Kind) -> Path:
    """The shipped policy for slots of a kind."""
    return SHIPPED / ("images" if kind == IMAGE else "sequences_and_vectors")


def find_policy(policy: Policy | None, kind: Kind, num_slots: int, max_epochs: int, force: bool) -> Decider:
    """The policy that a user means, for a host of ``num_slots`` slots.

    Args:
        policy: None for the shipped one; the name of one that needs no training; the directory of an export; the JSON
            file of a schedule; or a policy.
        kind: Of the host's slots.
        num_slots: Of the host.
        max_epochs: Of the run.
        force: Take an export whatever topology it was trained on.

    Raises:
        LiveError: a policy that is not there, has fewer slots, or was trained on another topology.
        UserError: an export or a schedule that cannot be read.
    """
    settings = PolicySettings(SlotConfig.for_row(num_slots), max_epochs)
    if policy is None:
        if not shipped_export(kind).is_dir():
            raise LiveError(f'no policy ships for {kind.name}s: pass policy="heuristic", or an export of yours')
        shipped = _exported(shipped_export(kind), kind, num_slots, max_epochs, force)
        return dataclasses.replace(shipped, name=f"the shipped policy for {kind.name}s")
    if isinstance(policy, str) and policy in registered() and policy != LEARNED:
        return Decider(build_policy(policy, settings), settings.slots, policy)
    if not isinstance(policy, str | Path):
        return Decider(policy, enabled_slots(policy.slot_config, num_slots, "the policy"), type(policy).__name__)
    path = Path(policy).expanduser()
    if path.is_dir():
        return _exported(path, kind, num_slots, max_epochs, force)
    if path.is_file():
        try:
            planned = FixedSchedule(settings.slots, max_epochs, read_schedule(path))
        except ValueError as error:
            raise LiveError(f"the schedule in {path} does not fit: {error}") from error
        return Decider(planned, settings.slots, f"schedule {path.name}")
    names = ", ".join(name for name in sorted(registered()) if name != LEARNED)
    raise LiveError(
        f"no policy {str(policy)!r}: give the directory of an export, the file of a schedule, or one of {names}"
    )


def _exported(path: Path, kind: Kind, num_slots: int, max_epochs: int, force: bool) -> Decider:
    card, policy = load_export(path)
    if policy.reads_graphs:
        raise LiveError(
            f"the policy in {path} reads hosts as graphs, and yours is observed as Obs V3: choose one whose network is "
            "flat"
        )
    trained_on = topologies(card)
    if kind.topology not in trained_on and not force:
        raise LiveError(
            f"the policy in {path} was trained on hosts of topology {', '.join(trained_on)}, and these slots are "
            f"{kind.name}s (topology {kind.topology}): choose another policy, or pass force=True to try it all the same"
        )
    horizons = card.env.horizons
    if max_epochs not in range(horizons[0], horizons[-1] + 1):
        spread = f"{horizons[0]}" if len(horizons) == 1 else f"{horizons[0]} to {horizons[-1]}"
        warnings.warn(
            f"the policy in {path} was trained over {spread} epochs and may not finish in {max_epochs} what it begins",
            stacklevel=4,
        )
    return Decider(policy, enabled_slots(policy.slot_config, num_slots, f"the policy in {path}"), path.name)


def topologies(card: Card) -> list[str]:
    """Topologies of the hosts that a policy was trained on."""
    return sorted({world.make_task().host.topology for world in card.env.worlds})


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
