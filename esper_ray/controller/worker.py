"""A policy in a process of its own: requests in, answers out, over the socket whose number it is given.

``python -m esper_ray.controller.worker NUMBER POLICY`` is started by :class:`esper_ray.controller.policy_process`. It
knows torch and no Ray, and ends with whoever holds the other end of the socket, whatever it is computing then.
"""

from __future__ import annotations

import os
import socket
import sys
from queue import SimpleQueue
from threading import Thread

from esper_ray.controller.framing import framed, received
from esper_ray.controller.proposals import Answer, Hello, Request
from esper_ray.controller.proposing import Proposer, answer, load_proposer, one_line
from esper_ray.controller.trial import USUAL_SLOTS, trial_request
from esper_ray.errors import UserError
from esper_ray.process import settle

WARM_UPS = 3
"""Answers before the first that counts: torch does much when it first does something."""


def main() -> None:
    """Answer requests until the socket ends."""
    number, policy = sys.argv[1:]
    connection = socket.socket(fileno=int(number))
    requests: SimpleQueue[list[bytes]] = SimpleQueue()
    Thread(target=_receive, args=(connection, requests), daemon=True).start()
    settle()
    try:
        proposer, version = load_proposer(policy)
    except Exception as error:  # of files that anybody may have written
        problem = str(error) if isinstance(error, UserError) else f"cannot use {policy}: {one_line(error)}"
        connection.sendall(framed(Hello(problem=problem)))
        return
    warm_up(proposer)
    connection.sendall(framed(proposer.hello(version)))
    while True:
        connection.sendall(answer(proposer, version, Request.of(requests.get())).framed())


def _receive(connection: socket.socket, requests: SimpleQueue[list[bytes]]) -> None:
    """In a thread of its own, which sees the end while the policy computes."""
    try:
        while True:
            requests.put(received(connection))
    except (EOFError, OSError):
        os._exit(0)


def warm_up(proposer: Proposer) -> Answer:
    """Let a policy answer about a run in which nothing is known; returns the last that it says."""
    request = trial_request(proposer.slots or USUAL_SLOTS)
    return [answer(proposer, "warm-up", request) for _ in range(WARM_UPS)][-1]


if __name__ == "__main__":
    main()
