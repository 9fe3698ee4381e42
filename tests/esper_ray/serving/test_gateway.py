"""What the gateway answers by itself, over a real socket: every refusal is JSON, with the headers of its status."""

import hashlib
import http.client
import json
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from esper_ray.presets import DEBUG
from esper_ray.serving import gateway
from esper_ray.serving.messages import ObservationInterface
from esper_ray.serving.sessions import SessionNames

TOKEN = "a-token-of-this-test-alone"
SEND = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def port():
    interface = ObservationInterface(DEBUG.env.task, DEBUG.env.make_task().slots, 1)
    digest = hashlib.sha256(TOKEN.encode()).digest()
    made = gateway.Gateway(interface, 1000, digest, SessionNames(b"k" * 32), [])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(made.__serve_build_asgi_app__(), log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@contextmanager
def answer(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {**SEND, **headers})
        yield connection.getresponse()
    finally:
        connection.close()


def refused(response, status, says):
    content = json.loads(response.read())
    assert response.status == status, content
    assert response.headers["Content-Type"] == "application/json"
    assert says in content["error"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/policy", {"GET", "HEAD"}),
        ("GET", "/sessions", {"POST"}),
        ("POST", "/sessions/name", {"DELETE"}),
        ("PUT", "/sessions/name/actions", {"POST"}),
        ("OPTIONS", "/health", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_told_which_there_are(port, method, path, allowed):
    with answer(port, method, path) as response:
        refused(response, 405, f"{method} {path}: Method Not Allowed")
        assert {name.strip() for name in response.headers["Allow"].split(",")} == allowed


@pytest.mark.parametrize("path", ["/policy/", "/sessions/", "/", "/nothing", "//policy", "/health/"])
def test_no_other_path_leads_anywhere(port, path):
    with answer(port, "GET", path) as response:
        refused(response, 404, "Not Found")


def test_what_is_wrong_with_a_body_is_said_in_json(port):
    with answer(port, "POST", "/sessions", b"x" * 1001) as response:
        refused(response, 413, "1000 bytes at most")
    with answer(port, "POST", "/sessions", b"{}", **{"Content-Type": "text/plain"}) as response:
        refused(response, 415, "application/json")
    with answer(port, "POST", "/sessions", b"{") as response:
        refused(response, 400, "JSON")
    with answer(port, "GET", "/policy", Authorization="Bearer wrong") as response:
        refused(response, 401, "token")
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_body_that_does_not_come_is_not_waited_for(port, monkeypatch):
    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.2)
    with answer(port, "POST", "/sessions", b"{", **{"Content-Length": "2"}) as response:
        refused(response, 408, "did not come within 0.2 seconds")
        assert response.headers["Connection"] == "close"


def test_a_failure_of_its_own_is_json_too(port):
    with answer(port, "POST", "/sessions", b"{}") as response:  # there is no replica to open one
        refused(response, 500, "its log says why")
