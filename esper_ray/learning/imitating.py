"""Imitation in a directory: a policy that anything may start from, and all that is needed to go on later."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper_ray.config import PLAY_TEMPERATURE
from esper_ray.errors import UserError
from esper_ray.keeping.revision import git_commit
from esper_ray.keeping.strategic_policy import POLICY, load_strategic
from esper_ray.keeping.writing import replace_text, writing
from esper_ray.measuring.recording import RecordedWorld
from policies.network_config import NetworkConfig
from policies.strategic.actor_critic import GraphWorlds
from policies.strategic.agreement import Agreement
from policies.strategic.builder import GraphBuilder
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.imitation import Imitation, PassReport
from policies.strategic.imitation_config import ImitationConfig
from policies.strategic.labels import STOPPED
from policies.strategic.lessons import Lessons, held_out_rows, measure
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.registries import Capacities, RegistryViews
from policies.strategic.replay_store import INDEX_FILE, Replay, held_out
from policies.strategic.student import GraphStudent, survey

STATE, REPORT = "imitation.safetensors", "imitation.json"


def open_replay(path: Path) -> Replay:
    """What is recorded in a store.

    Raises:
        UserError: there is no store, or it cannot be read.
    """
    if not (path / INDEX_FILE).is_file():
        raise UserError(f"{path} holds no recorded episodes: make some with esper-ray strategic collect")
    try:
        return Replay.open(path)
    except ValueError as error:
        raise UserError(str(error)) from error


class ImitationRun:
    """Imitation that keeps its passes in a directory, and goes on after those that are there.

    Args:
        path: The directory; the caller holds it (:func:`esper_ray.keeping.lock.held`).
        store: What is imitated.
        config: How.
        network: Widths and the like.

    Raises:
        UserError: a store or a directory that cannot be used, or one that was begun with other settings.
    """

    def __init__(self, path: Path, store: Path, config: ImitationConfig, network: GraphNetworkConfig) -> None:
        self._path = path
        replay = open_replay(store)
        worlds = {world: RecordedWorld.read(world) for world in replay.worlds}
        readers = {world: of.reader() for world, of in worlds.items()}
        self._network = network
        self._tasks = tuple(sorted({of.task for of in worlds.values()}))
        self._epochs = _epochs_of_examples(replay)
        try:
            learnt, _ = (held_out_rows(replay, config.held_out, side) for side in (False, True))
            torch.manual_seed(config.seed)
            self._student = GraphPolicyNetwork(network)
            self._builder = survey(self._student, replay, learnt, readers, config.batch_size)
            self._imitation = Imitation(GraphStudent(self._student, self._builder, readers), replay, config)
            if (path / STATE).is_file():
                self._imitation.load(path / STATE)
        except ValueError as error:
            raise UserError(str(error)) from error

    @property
    def history(self) -> list[PassReport]:
        """A report per pass."""
        return self._imitation.history

    @property
    def best_pass(self) -> int:
        """Number of the pass whose weights the policy has, from 1."""
        return self._imitation.best_pass

    def run_pass(self) -> PassReport:
        """One more pass, kept when this returns.

        Raises:
            UserError: a record that contradicts itself, or a disk that is full.
        """
        try:
            report = self._imitation.run_pass()
        except ValueError as error:
            raise UserError(str(error)) from error
        self._keep()
        return report

    def _keep(self) -> None:
        imitation, builder = self._imitation, self._builder
        report = {
            "config": asdict(imitation.config),
            "best_pass": imitation.best_pass,
            "return_scale": imitation.return_scale,
            "passes": [asdict(report) for report in imitation.history],
        }
        # The state last: whoever is cut off before it makes the same pass again.
        with writing(self._path):
            if imitation.best_pass == len(imitation.history):
                Checkpoint(
                    config=self._network,
                    weights=imitation.best,
                    registries=builder.registries,
                    normaliser=builder.normaliser,
                    seen=self._student.scale.seen,
                    tasks=self._tasks,
                    min_epochs=min(self._epochs),
                    max_epochs=max(self._epochs),
                    commit=git_commit(),
                    return_scale=imitation.return_scale,
                    taught=imitation.taught,
                    play_temperature=PLAY_TEMPERATURE,
                ).save(self._path / POLICY)
        replace_text(self._path / REPORT, json.dumps(report, indent=2) + "\n")
        with writing(self._path):
            imitation.save(self._path / STATE)


def _epochs_of_examples(replay: Replay) -> list[int]:
    """Lengths of the episodes that are imitated; those that the governor cut short only where there are no others."""
    found: dict[bool, list[int]] = {False: [], True: []}
    for world in replay.worlds.values():
        stopped = world.column(STOPPED).split(world.lengths)
        for length, exemplary, ends in zip(world.lengths, world.exemplary, stopped, strict=True):
            if exemplary:
                found[bool(ends.any())].append(length)
    return found[False] or found[True]


def weights_to_begin_with(path: Path, network: NetworkConfig, worlds: GraphWorlds) -> dict[str, Tensor]:
    """What an actor and critic takes over of a strategic policy; the scale of its returns stays its own.

    Args:
        path: As for :func:`esper_ray.keeping.strategic_policy.load_strategic`.
        network: Of the actor and critic.
        worlds: That it reads.

    Returns:
        Entries of the state of :class:`policies.strategic.actor_critic.GraphActorCritic`.

    Raises:
        UserError: there is none, it cannot be used, or its network has other widths.
    """
    policy = load_strategic(path)
    for name in ("sage_width", "gat_width", "attention_heads"):
        theirs, ours = getattr(policy.config, name), getattr(network, name)
        if theirs != ours:
            raise UserError(f"the policy in {path} has {name} {theirs}, this network {ours}: train with the same")
    weights = policy.weights_for(RegistryViews.of(worlds.names, Capacities()))
    return {f"graphs.{name}": tensor for name, tensor in weights.items()}


def examine(policy: Checkpoint, store: Path, share: float, batch_size: int) -> dict[str, dict[str, Any]]:
    """How a policy agrees with recorded episodes of held-out hosts.

    Args:
        policy: Who is examined.
        store: Where the episodes are.
        share: Of the hosts that are held out; 1 takes all.
        batch_size: Steps that are read at a time.

    Returns:
        World and source → :meth:`policies.strategic.agreement.Agreement.to_json`.

    Raises:
        UserError: a store that cannot be used, or no episode of such hosts.
    """
    replay = open_replay(store)
    worlds = {world: RecordedWorld.read(world) for world in replay.worlds}
    readers = {world: of.reader() for world, of in worlds.items()}
    builder = GraphBuilder(policy.registries, policy.normaliser)
    lessons = Lessons(GraphStudent(policy.network(), builder, readers, policy.seen, policy.taught), replay)
    found: dict[str, Agreement] = {}
    for world, record in replay.worlds.items():
        for source in dict.fromkeys(record.sources):
            of_source = [at for at, who in enumerate(record.sources) if who == source]
            episodes = [at for at in of_source if held_out(record.hosts[at], share)]
            if episodes:
                rows = {world: record.rows_of(episodes)}
                found[f"{worlds[world].label}: {source}"] = measure(lessons, rows, policy.return_scale, batch_size)
    if not found:
        raise UserError(f"no recorded episode of {store} is of a held-out host: collect more, or give --held-out 1")
    together = {"all": Agreement.sum([*found.values()])} if len(found) > 1 else {}
    return {label: of.to_json() for label, of in (found | together).items()}
