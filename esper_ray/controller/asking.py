"""A policy behind a breaker: what it proposes, or the one reason why it does not."""

from __future__ import annotations

from dataclasses import dataclass

from esper_ray.controller.breakers import CircuitBreaker
from esper_ray.controller.commands import Reason
from esper_ray.controller.isolated_policy import IsolatedPolicy
from esper_ray.controller.proposals import Ending, Proposal, Request

FAULTS = {
    Ending.TIMEOUT: Reason.TIMEOUT_INFERENCE,
    Ending.CRASHED: Reason.POLICY_FAILED,
    Ending.ERROR: Reason.POLICY_FAILED,
    Ending.NOT_FINITE: Reason.POLICY_NOT_FINITE,
    Ending.MASKED_ACTION: Reason.ACTION_MASKED,
}
"""What goes wrong with asking, as the risk table has it."""


@dataclass(frozen=True)
class Inquiry:
    """How asking went.

    Attributes:
        proposal: Of the policy; None without one, and then a fault or a hold says why.
        fault: Of the service, for the risk table.
        hold: Why the run is paused meanwhile.
        detail: The same in a line.
    """

    proposal: Proposal | None = None
    fault: Reason | None = None
    hold: Reason | None = None
    detail: str = ""


def ask(policy: IsolatedPolicy, breaker: CircuitBreaker, request: Request, deadline_s: float) -> Inquiry:
    """Ask a policy, if its breaker admits it. It raises nothing.

    Args:
        policy: To ask.
        breaker: Around it. That no worker is ready is no failure of the policy.
        request: The question.
        deadline_s: Within which an answer counts.
    """
    permit = breaker.try_acquire()
    if permit is None:
        return Inquiry(fault=Reason.BREAKER_INFERENCE, detail="the policy failed too often, and is left alone")
    reply = policy.ask(request, deadline_s)
    if reply.ending is Ending.STARTING:
        breaker.give_back(permit)
        return Inquiry(hold=Reason.WORKER_STARTING, detail=reply.reason)
    breaker.record(permit, succeeded=reply.proposal is not None)
    if reply.proposal is not None:
        return Inquiry(reply.proposal)
    return Inquiry(fault=FAULTS[reply.ending], detail=reply.reason)
