"""The process that speaks HTTP: checks a request, and hands it to the replica that holds its session."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from esper_ray.ray_internals import AsgiDeployment
from esper_ray.serving.messages import Interface, OpenRequest, Refusal, RefusedError, parse
from esper_ray.serving.sessions import SessionNames

PROBE_SECONDS = 2.0
ANSWER_SECONDS = 20.0
"""How long a replica may take; Serve waits for one that is being restarted."""

BODY_SECONDS = 8.0
"""How long a body may take: with a replica's time still less than what Serve gives a request, which answers in plain
text."""

HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}, 503: {"Retry-After": "5"}}
"""That belong to a refusal's status."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Gateway(AsgiDeployment):
    """One process; everything it knows about sessions is in their names.

    Args:
        interface: Of the policy.
        max_body_bytes: Size of a body at most.
        token_digest: SHA-256 of the bearer token that requests must carry; None asks for none.
        names: Of sessions.
        replicas: What :class:`esper_ray.serving.replica.PolicyReplica` was deployed as, one process each.
    """

    def __init__(
        self,
        interface: Interface,
        max_body_bytes: int,
        token_digest: bytes | None,
        names: SessionNames,
        replicas: list[DeploymentHandle],
    ) -> None:
        self._interface, self._max_body_bytes, self._token_digest = interface, max_body_bytes, token_digest
        self._names, self._replicas = names, replicas
        self._turns = itertools.cycle(range(len(replicas)))

    def application(self) -> Starlette:
        """The routes."""
        routes = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/policy", self._with_token(self._policy)),
            Route("/sessions", self._with_token(self._open), methods=["POST"]),
            Route("/sessions/{name}", self._with_token(self._close), methods=["DELETE"]),
            Route("/sessions/{name}/actions", self._with_token(self._act), methods=["POST"]),
        ]
        handlers = {RefusedError: _refused, HTTPException: _not_served, Exception: _failed}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False  # a path is one of these, or there is no such path
        return app

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"healthy": True})

    async def _ready(self, request: Request) -> Response:
        held = (replica.held.remote() for replica in self._replicas)
        try:
            sessions = await asyncio.wait_for(asyncio.gather(*held), PROBE_SECONDS)
        except (TimeoutError, RayActorError, BackPressureError, DeploymentUnavailableError):
            return JSONResponse({"ready": False, "error": "a replica does not answer: it is starting, or busy"}, 503)
        return JSONResponse({"ready": True, "sessions": sum(sessions)})

    async def _policy(self, request: Request) -> Response:
        return JSONResponse(self._interface.described())

    async def _open(self, request: Request) -> Response:
        asked = parse(OpenRequest, await self._body(request))
        replica = next(self._turns)
        name = self._names.new(replica)
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        await self._ask(replica, "open", name, seed, asked.greedy)
        return JSONResponse({"session": name}, HTTPStatus.CREATED)

    async def _act(self, request: Request) -> Response:
        name, replica = self._session(request)
        asked, observation = self._interface.read(await self._body(request))
        step, decided = await self._ask(replica, "act", name, asked, observation)
        return JSONResponse(self._interface.answer(step, decided))

    async def _close(self, request: Request) -> Response:
        name, replica = self._session(request)
        await self._ask(replica, "close", name)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    def _with_token(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            if self._token_digest is not None:
                kind, _, token = request.headers.get("authorization", "").partition(" ")
                digest = hashlib.sha256(token.encode()).digest()
                if kind.lower() != "bearer" or not hmac.compare_digest(digest, self._token_digest):
                    raise RefusedError(401, "this needs the service's token: send `Authorization: Bearer TOKEN`")
            return await endpoint(request)

        return guarded

    async def _body(self, request: Request) -> bytes:
        # A page in a browser of this machine could post any other type here without being asked (CORS).
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "the body must be JSON: send `Content-Type: application/json`")
        too_large = RefusedError(413, f"a body may have {self._max_body_bytes} bytes at most")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_body_bytes:
                        raise too_large
        except TimeoutError:
            raise RefusedError(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
        return bytes(body)

    def _session(self, request: Request) -> tuple[str, int]:
        name = request.path_params["name"]
        try:
            return name, self._names.replica(name)
        except ValueError:
            raise RefusedError(404, "this service has opened no such session: open one with POST /sessions") from None

    async def _ask(self, replica: int, method: str, *arguments: Any) -> Any:
        """What a replica answers.

        Raises:
            RefusedError: it refuses, or cannot answer.
        """
        call = getattr(self._replicas[replica], method).remote(*arguments)
        try:
            answer = await asyncio.wait_for(call, ANSWER_SECONDS)
        except (TimeoutError, RayActorError, BackPressureError, DeploymentUnavailableError):
            raise RefusedError(503, "the session's replica does not answer: it is busy, or being restarted") from None
        if isinstance(answer, Refusal):
            raise RefusedError(answer.status, answer.reason)
        return answer


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse({"error": error.refusal.reason}, error.refusal.status, HEADERS.get(error.refusal.status))


async def _not_served(request: Request, error: Exception) -> Response:
    """No such path, or not with this method: then the error's headers name those that there are."""
    assert isinstance(error, HTTPException)
    reason = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": reason}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the service failed at this request; its log says why"}, 500)
