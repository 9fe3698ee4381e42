"""Starts and stops the service: a Ray of its own on this machine, reachable from it alone, with Serve's proxy."""

from __future__ import annotations

import hashlib
import logging
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from rich.console import Console

from esper_ray.cluster import start_ray
from esper_ray.errors import UserError
from esper_ray.keeping.export import load_export
from esper_ray.keeping.strategic_policy import checkpoint_in, exported, load_strategic
from esper_ray.serving.deciding import Decider, ObservationDecider, PacketDecider
from esper_ray.serving.gateway import Gateway
from esper_ray.serving.messages import Interface, ObservationInterface
from esper_ray.serving.packets import PacketInterface
from esper_ray.serving.replica import PolicyReplica
from esper_ray.serving.sessions import SessionNames
from esper_ray.serving.settings import ServiceConfig
from policies.strategic.checkpoint import Checkpoint

REQUEST_SECONDS = 30.0
CONCURRENT = 1000
"""Requests that a process works on at most; further ones wait in the proxy, as many again, or get 503."""


def serve_until_interrupted(export: Path, config: ServiceConfig, console: Console) -> None:
    """Serve a policy until a ``KeyboardInterrupt``.

    Raises:
        UserError: no usable export, token or port.
    """
    try:
        with running(export, config) as url:
            console.print(f"serving {export} at {url} (Ctrl-C stops it)")
            threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopped; all sessions have ended")


@contextmanager
def running(export: Path, config: ServiceConfig) -> Iterator[str]:
    """A service that answers as long as the context lasts; yields its URL.

    Raises:
        UserError: no usable export, device, token or port.
    """
    interface, decider = _opened(export, config)
    token = config.token()
    digest = None if token is None else hashlib.sha256(token.encode()).digest()
    _check_free(config.host, config.port)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    start_ray(_node_ip_address="127.0.0.1", num_cpus=config.replicas + 1)
    try:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        options = HTTPOptions(host=config.host, port=config.port, request_timeout_s=REQUEST_SECONDS)
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=quiet)
        # One deployment per replica: within one, Serve's routing by model id is a preference, and a busy replica's
        # request would go to another one, which does not know the session.
        share = {"num_gpus": 1 / config.replicas if config.device == "cuda" else 0}
        limits = {"max_ongoing_requests": CONCURRENT, "max_queued_requests": CONCURRENT}
        replica = serve.deployment(PolicyReplica, num_replicas=1, ray_actor_options=share, **limits)
        replicas = [replica.options(name=f"policy-{number}").bind(decider, config) for number in range(config.replicas)]
        gateway = serve.deployment(
            serve.ingress()(Gateway), name="gateway", num_replicas=1, ray_actor_options={"num_cpus": 0}, **limits
        )
        names = SessionNames(secrets.token_bytes(32))
        serve.run(
            gateway.bind(interface, config.max_body_bytes, digest, names, replicas),
            name="esper-ray",
            logging_config=quiet,
        )
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{config.port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def _opened(export: Path, config: ServiceConfig) -> tuple[Interface, Decider]:
    """What clients of a policy send and get, and what decides.

    Raises:
        UserError: no usable export, or a device that it cannot be on.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} sees no GPU here: leave out --device")
    if checkpoint_in(export) is not None:
        return _reading_packets(load_strategic(export), None, config)
    card, policy = load_export(export)
    if not policy.reads_graphs:
        if config.device != "cpu":
            raise UserError(f"the policy in {export} reads Obs V3, and is served by the CPU: leave out --device")
        task = ", ".join(card.env.task_names)
        return ObservationInterface(task, card.slots, card.iteration), ObservationDecider(policy)
    return _reading_packets(exported(card, policy), card.iteration, config)


def _reading_packets(
    checkpoint: Checkpoint, iteration: int | None, config: ServiceConfig
) -> tuple[PacketInterface, PacketDecider]:
    interface = PacketInterface(", ".join(checkpoint.tasks), iteration, checkpoint.seen, checkpoint.taught)
    return interface, PacketDecider(checkpoint, config.device, config.reduced_precision)


def _check_free(host: str, port: int) -> None:
    """Serve would try for half a minute, then say it at length."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of a name that is no host's
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host} port {port} ({reason}): give another --host or --port") from error
