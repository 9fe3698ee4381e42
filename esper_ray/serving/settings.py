"""Where a service listens, whom it answers, and how much it holds."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from envs.ranges import Count, Positive, Processes, Range, Share, check_numbers
from esper_ray.errors import UserError
from esper_ray.keeping.secret_file import read_secret
from policies.strategic.packet_values import MOST_PACKET_BYTES

SHORTEST_TOKEN = 16
"""Characters; ``secrets.token_urlsafe(32)`` gives 43."""


@dataclass(frozen=True)
class ServiceConfig:
    """How ``esper-ray serve`` answers."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but a loopback one needs --token-file."""
    port: Annotated[int, Range(1, 65_535, whole=True)] = 8000
    """Port to listen on."""
    token_file: Path | None = None
    """File of mode 0600 with the bearer token that every request must carry; without one nobody is asked for any."""
    replicas: Processes = 1
    """Processes that hold sessions and decide; a session stays with the one that opened it."""
    session_seconds: Positive = 600.0
    """A session that is not used for so long ends, and its state with it."""
    max_sessions: Count = 1000
    """Sessions that each replica holds at most."""
    max_body_bytes: Count = MOST_PACKET_BYTES
    """Size of a request's body at most. A packet of 128 layers, with 16 slots, has some 100,000 bytes; the largest
    known, with 128 slots and layers that each read all before them, 750,000."""
    max_batch: Count = 64
    """Sessions that a replica decides for in one pass of the network at most."""
    batch_wait_seconds: Share = 0.002
    """How long a request may wait for others to share that pass."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where a policy that reads packets computes; with cuda all replicas share one GPU. One that reads Obs V3 computes
    on the CPU."""
    reduced_precision: bool = False
    """Let the GPU compute in bfloat16, and in TF32 what stays in float32; with --device cuda only."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        if self.reduced_precision and self.device == "cpu":
            raise UserError("the CPU computes in float32: leave out --reduced-precision, or give --device cuda")
        if self.token_file is None and not is_loopback(self.host):
            raise UserError(
                f"{self.host} can be reached from other machines: give --token-file with a token that clients must "
                "send, or listen on 127.0.0.1"
            )

    def token(self) -> str | None:
        """The token; None where none is asked for.

        Raises:
            UserError: no such file, others may use it, or what it holds is no token.
        """
        return None if self.token_file is None else read_token(self.token_file)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address; of names only ``localhost`` is taken for that."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """A bearer token from a file that is its owner's alone; whitespace around it does not count.

    Raises:
        UserError: no such file, others may use it, or what it holds is no token.
    """
    content = read_secret(
        path,
        "token",
        missing=f"there is no token file {path}; make one: (umask 077; python -c "
        f"'import secrets; print(secrets.token_urlsafe(32))' > {path})",
        leaked="renew the token",
    )
    token = content.decode("ascii", "replace").strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{path} holds no token: it must be one word of at least {SHORTEST_TOKEN} printable ASCII characters"
        )
    return token
