"""The shipped policy for images with everything that can be wrong with a policy, at the epochs that a plan says."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from benchmarks.faults import Fault
from envs.observation import ObservationLayout
from envs.vocabulary import Blueprint, LifecycleOp
from esper_ray.keeping.export import load_export
from esper_ray.live.policies import SHIPPED
from policies.bundle import PolicySettings
from policies.learned import LearnedPolicy
from policies.results import ActionResult, HiddenState


class FaultyPolicy(LearnedPolicy):
    """Decides as the shipped policy does, but at a run's planned epochs. A subclass says which."""

    plan: ClassVar[Mapping[int, Fault]]
    """Epochs done → fault."""
    slow_seconds: ClassVar[float]
    """That it takes where it is slow."""
    max_epochs: int
    """Of the run."""

    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """With the shipped weights."""
        _, shipped = load_export(SHIPPED / "images")
        assert isinstance(shipped, LearnedPolicy)
        policy = cls(settings.slots, shipped.network)
        policy.max_epochs = settings.max_epochs
        return policy

    def get_action(
        self,
        obs: Mapping[str, Tensor],
        hidden: HiddenState,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> ActionResult:
        """Do what is wrong at this epoch, if anything is."""
        done = ObservationLayout(self.slot_config).base(obs["obs"].numpy(), "epoch")[0]
        fault = self.plan.get(round(float(done) * self.max_epochs))
        if fault is Fault.SLOW:
            time.sleep(self.slow_seconds)
        while fault is Fault.STUCK:
            time.sleep(1.0)
        if fault is Fault.ENDS:
            os._exit(3)
        if fault is Fault.RAISES:
            raise RuntimeError("the policy is broken")
        result = super().get_action(obs, hidden, generator, deterministic)
        if fault is Fault.NOT_FINITE:
            return dataclasses.replace(result, value=torch.tensor([torch.nan]))
        if fault is Fault.REMEMBERS_NAN:
            return dataclasses.replace(result, hidden=tuple(torch.full_like(part, torch.nan) for part in hidden))
        if fault is Fault.MASKED:
            never = [int(LifecycleOp.GERMINATE), 0, int(Blueprint.NOOP), 0, 0, 0, 0, 0]
            return dataclasses.replace(result, actions=torch.tensor([never]))
        return result
