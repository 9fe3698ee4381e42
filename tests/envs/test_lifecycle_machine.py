"""The stage machine with internal levels against its plain model, in any order of epochs, ends and rollbacks."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from envs.slot_states import Fate
from envs.vocabulary import SeedStage
from tests.envs.plain_lifecycle import (
    MOVE,
    OPS,
    all_pairs,
    build,
    check_mask,
    check_state,
    choose,
    refuses,
    worlds,
    write,
)

HOSTS = 2
HOST = st.integers(0, HOSTS - 1)


class LifecycleMachine(RuleBasedStateMachine):
    """Two hosts side by side, so that what happens to one is seen not to touch the other."""

    @initialize(world=worlds(internal_levels=True))
    def create(self, world):
        self.life, self.models = build(world, HOSTS)
        self.lost = [{"UNFINISHED": 0, "ROLLED_BACK": 0} for _ in self.models]
        self.saved = [set() for _ in self.models]

    @rule(moves=st.lists(st.tuples(*[MOVE] * HOSTS), min_size=4, max_size=12))
    def live_some_epochs(self, moves):
        for both in moves:
            row = np.zeros((HOSTS, 8), np.int64)
            actions = [
                choose(move, model, check_mask(self.life, host, model))
                for host, (move, model) in enumerate(zip(both, self.models, strict=True))
            ]
            for host, action in enumerate(actions):
                row[host] = OPS.index(action[0]), *action[1:]
            self.life.apply(row)
            self.life.tick()
            for host, (action, move) in enumerate(zip(actions, both, strict=True)):
                self.models[host].act(*action)
                self.models[host].tick()
                write(self.life, host, self.models[host], move[-1])

    @rule(host=HOST, pick=st.integers(0, 10**6))
    def ask_for_what_is_closed(self, host, pick):
        model = self.models[host]
        closed = [pair for pair in all_pairs(model) if not model.admits(*pair)]
        if closed:
            refuses(self.life, host, *closed[pick % len(closed)])

    @rule(host=HOST)
    def take_a_snapshot(self, host):
        self.saved[host] = self.fossils(host)

    @rule(host=HOST)
    def roll_back(self, host):
        kept = self.saved[host]
        self.life.roll_back(
            np.array([host]), np.array([[slot in kept for slot in range(len(self.models[host].slots))]])
        )
        lost_fossils = len(self.fossils(host) - kept)
        self.models[host].fates["FOSSILIZED"] -= lost_fossils
        self.lost[host]["ROLLED_BACK"] += self.living(host) - len(kept)
        self.models[host].keep(kept)

    @rule(host=HOST)
    def commit(self, host):
        self.life.strip(np.array([host]))
        self.lost[host]["UNFINISHED"] += self.living(host) - len(self.fossils(host))
        self.models[host].keep(self.fossils(host))

    @rule(host=HOST)
    def start_anew(self, host):
        self.life.start(np.array([host]))
        self.models[host].keep(set())
        self.models[host].fates = {"FOSSILIZED": 0, "PRUNED": 0}
        self.lost[host], self.saved[host] = {"UNFINISHED": 0, "ROLLED_BACK": 0}, set()

    @invariant()
    def both_say_the_same(self):
        for host, model in enumerate(getattr(self, "models", [])):
            check_state(self.life, host, model)
            check_mask(self.life, host, model)
            for fate, count in self.lost[host].items():
                assert self.life.fates[host, Fate[fate]] == count
            for index, slot in enumerate(model.slots):
                report = self.life.report(host, index)
                assert (report.stage.name, report.internal_level) == (slot["stage"], slot["level"])
                assert (report.blueprint is None) == (report.stage not in range(SeedStage.GERMINATED, SeedStage.PRUNED))

    def fossils(self, host):
        return {index for index, slot in enumerate(self.models[host].slots) if slot["stage"] == "FOSSILIZED"}

    def living(self, host):
        return sum(slot["blueprint"] >= 0 for slot in self.models[host].slots)


TestLifecycleMachine = LifecycleMachine.TestCase
TestLifecycleMachine.settings = settings(max_examples=40, stateful_step_count=15)
