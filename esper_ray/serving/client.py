"""Python client of the service; needs the standard library alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit


class ServiceError(Exception):
    """The service refused a request.

    Attributes:
        status: Of HTTP: 410 if the session has ended, 404 if there never was one.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status


@dataclass(frozen=True)
class Decision:
    """What the policy chose.

    Attributes:
        step: Decisions of the session before this one.
        action: Index in every head, as the env takes it.
        choices: Name of the choice in each head that matters.
        value: Rewards still to come, as the policy expects them. It and the rest come with packets alone.
        risk: Probability of each class of risk; None if the policy was not taught risks.
        blending: By slot the ``method`` by which a seed there had best be blended in, and where in its ramp that had
            best ``start`` and ``end``; linear, 0 and 1 if the policy was not taught these.
        coverage: How much was measured of what the source declares: OK, WARNING or CRITICAL.
    """

    step: int
    action: list[int]
    choices: dict[str, str]
    value: float | None = None
    risk: dict[str, float] | None = None
    blending: dict[str, dict[str, Any]] | None = None
    coverage: str | None = None


class PolicyClient:
    """One connection to a service; threads need one each.

    Args:
        url: As ``esper-ray serve`` printed it.
        token: Bearer token, if the service asks for one.
        timeout: Seconds that an answer may take.

    Raises:
        ValueError: not an http or https URL.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if parts.scheme not in kinds or parts.hostname is None:
            raise ValueError(f"the service's URL must be like http://127.0.0.1:8000, got {url!r}")
        self._connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def policy(self) -> dict[str, Any]:
        """What the policy reads and answers."""
        return self.request("GET", "/policy")

    def ready(self) -> bool:
        """Whether every replica answers."""
        try:
            return bool(self.request("GET", "/ready")["ready"])
        except (ServiceError, OSError, http.client.HTTPException):
            return False

    def open(self, seed: int | None = None, greedy: bool = False) -> Session:
        """Start an episode of one host.

        Args:
            seed: Of the policy's draws; drawn by the service if None.
            greedy: Take the most probable choices instead of drawing.
        """
        return Session(self, self.request("POST", "/sessions", {"seed": seed, "greedy": greedy})["session"])

    def request(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send JSON, return JSON.

        A connection that the other side has closed meanwhile is opened again, once. That repeats no decision: a
        session answers the same step again with the same action.

        Raises:
            ServiceError: refused.
            OSError: nobody answers.
        """
        body = None if content is None else json.dumps(content).encode()
        try:
            status, answer = self._exchange(method, path, body)
        except (http.client.RemoteDisconnected, ConnectionError):
            status, answer = self._exchange(method, path, body)
        try:
            decoded = json.loads(answer or b"{}")
        except ValueError:  # from Serve's proxy, or something else in between
            decoded = {"error": answer.decode(errors="replace")}
        if status >= 400:
            raise ServiceError(status, str(decoded.get("error", decoded)))
        return decoded

    def close(self) -> None:
        """Close the connection; sessions stay until they expire."""
        self._connection.close()

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            self._connection.request(method, self._prefix + path, body, self._headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except BaseException:
            self._connection.close()  # a late answer must not be taken for the next request's
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Session:
    """One episode of one host, whose memory the service keeps. Ends with the ``with`` block.

    Attributes:
        name: The service's name for it.
    """

    def __init__(self, client: PolicyClient, name: str) -> None:
        self._client, self.name = client, name
        self._step = 0

    def act(self, observation: Mapping[str, Sequence[float]]) -> Decision:
        """Decide about the host's next observation.

        Args:
            observation: ``obs``, ``blueprint_indices`` and ``action_mask`` of one host: lists, or arrays of one axis.

        Raises:
            ServiceError: refused; with status 410 the session has ended, and its memory with it.
        """
        leaves = {
            name: getattr(values, "tolist", lambda values=values: list(values))()
            for name, values in observation.items()
        }
        return self._decided(leaves)

    def act_on(self, packet: Mapping[str, Any]) -> Decision:
        """Decide about the host of a packet, where the policy reads packets (docs/packet.md).

        Args:
            packet: As JSON has it; of a ``SystemState`` its ``model_dump(mode="json")``.

        Raises:
            ServiceError: refused; with status 410 the session has ended, and what it knew of the run with it.
        """
        return self._decided({"packet": packet})

    def _decided(self, content: Mapping[str, Any]) -> Decision:
        answer = self._client.request("POST", f"/sessions/{self.name}/actions", {**content, "step": self._step})
        self._step += 1
        return Decision(**answer)

    def close(self) -> None:
        """End it, if it has not ended already."""
        try:
            self._client.request("DELETE", f"/sessions/{self.name}")
        except ServiceError as error:
            if error.status != 410:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except (ServiceError, OSError, http.client.HTTPException):
            if error is None:
                raise
