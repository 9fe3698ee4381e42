"""The real service, from a small export: it decides as a player in this process would, and refuses with reasons."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlsplit

import pytest
import ray

from esper_ray.errors import UserError
from esper_ray.keeping.export import load_export
from esper_ray.serving.client import PolicyClient, ServiceError
from esper_ray.serving.service import running
from esper_ray.serving.settings import ServiceConfig, is_loopback
from policies.player import Player

pytestmark = pytest.mark.cluster
TOKEN = "a-token-of-this-test-alone"
EPOCHS = 8


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def url(export, tmp_path_factory):
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN + "\n")
    port = free_port()
    config = ServiceConfig(port=port, token_file=token_file, replicas=2, max_body_bytes=20_000)
    with running(export, config) as address:
        yield address
    assert not ray.is_initialized()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 5).close()


@pytest.fixture
def client(url):
    with PolicyClient(url, TOKEN) as found:
        yield found


def host(observation):
    return {name: leaf[0] for name, leaf in observation.items()}


@contextmanager
def refused(status, says):
    with pytest.raises(ServiceError, match=says) as error:
        yield
    assert error.value.status == status


def actions_of(decisions):
    return [decision.action for decision in decisions]


def test_it_decides_step_for_step_as_a_player_in_this_process(client, export, world):
    """Sessions side by side, drawing and greedy; two of them have the same seed, and take turns."""
    settings = [(5, False), (6, False), (0, True), (5, False)]
    policy = load_export(export)[1]
    players = [Player(policy, 1, seed, greedy) for seed, greedy in settings]
    worlds = [world() for _ in settings]
    seen = [observation for _, observation in worlds]
    sessions = [client.open(seed, greedy) for seed, greedy in settings]
    taken = []
    for step in range(EPOCHS):
        decisions = [session.act(host(observation)) for session, observation in zip(sessions, seen, strict=True)]
        expected = [player.act(observation) for player, observation in zip(players, seen, strict=True)]
        assert actions_of(decisions) == [action[0].tolist() for action in expected]
        assert {decision.step for decision in decisions} == {step}
        taken.append(actions_of(decisions))
        seen = [env.step(action)[0] for (env, _), action in zip(worlds, expected, strict=True)]
    for session in sessions:
        session.close()
    first, second, greedy, again = zip(*taken, strict=True)
    assert first == again
    assert first != second
    assert greedy not in (first, second)


def test_requests_that_come_together_decide_as_alone(url, export, world):
    _, observation = world()
    policy = load_export(export)[1]

    def decide(seed):
        with PolicyClient(url, TOKEN) as own, own.open(seed) as session:
            return actions_of(session.act(host(observation)) for _ in range(4))

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(decide, range(6)))
    players = [Player(policy, 1, seed) for seed in range(6)]
    assert found == [[player.act(observation)[0].tolist() for _ in range(4)] for player in players]


def test_the_same_step_again_gets_the_same_answer_and_any_other_is_refused(client, world):
    shown = {name: leaf.tolist() for name, leaf in host(world()[1]).items()}
    with client.open(1) as session:
        path = f"/sessions/{session.name}/actions"
        answers = [client.request("POST", path, {**shown, "step": step}) for step in (0, 0, 1, 1)]
        assert answers[0] == answers[1]
        assert answers[2] == answers[3]
        assert [answer["step"] for answer in answers] == [0, 0, 1, 1]
        for step in (0, 3):
            with refused(409, f"at step 2, the request at step {step}"):
                client.request("POST", path, {**shown, "step": step})
        assert client.request("POST", path, shown)["step"] == 2


def test_a_session_that_has_ended_is_gone_and_one_that_never_was_is_unknown(client, world):
    shown = host(world()[1])
    session = client.open()
    session.act(shown)
    session.close()
    with refused(410, "has ended"):
        session.act(shown)
    session.close()
    session.name = session.name[:-1] + ("0" if session.name[-1] != "0" else "1")
    with refused(404, "no such session"):
        session.act(shown)


def test_what_is_no_request_of_this_service_is_refused_with_what_was_wrong(client, world):
    shown = {name: leaf.tolist() for name, leaf in host(world()[1]).items()}
    with client.open() as session:
        path = f"/sessions/{session.name}/actions"
        with refused(422, "obs must have 121 numbers for this policy, got 3"):
            client.request("POST", path, {**shown, "obs": [0.0] * 3})
        with refused(413, "20000 bytes at most"):
            client.request("POST", path, {**shown, "obs": [0.123456] * 4000})
        assert session.act(shown).step == 0
    with refused(422, "seed: Input should be a valid integer"):
        client.request("POST", "/sessions", {"seed": "five"})
    with refused(404, "GET /nothing: Not Found"):
        client.request("GET", "/nothing")
    with refused(405, "GET /sessions: Method Not Allowed"):
        client.request("GET", "/sessions")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{", 400),
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "application/json", "Transfer-Encoding": "chunked"}, [b" " * 15_000] * 2, 413),
    ],
    ids=["no JSON", "another type", "no length, too large"],
)
def test_bodies_are_checked_before_they_are_read_as_json(url, headers, body, status):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    chunked = isinstance(body, list)
    headers = {**headers, "Authorization": f"Bearer {TOKEN}"}
    connection.request("POST", "/sessions", iter(body) if chunked else body, headers, encode_chunked=chunked)
    response = connection.getresponse()
    assert (response.status, list(json.load(response))) == (status, ["error"])
    connection.close()


@pytest.mark.parametrize("token", [None, "", TOKEN[:-1], TOKEN + "x", "ä"])
def test_without_the_token_nothing_but_health_is_answered(url, token):
    with PolicyClient(url, None if token is None else token.encode().decode("latin-1")) as stranger:
        for method, path in [("GET", "/policy"), ("POST", "/sessions"), ("DELETE", "/sessions/a")]:
            with refused(401, "Bearer TOKEN"):
                stranger.request(method, path)
        assert stranger.request("GET", "/health") == {"healthy": True}
        assert stranger.ready()


def test_the_policy_says_what_it_reads_and_answers(client):
    policy = client.policy()
    assert policy["task"] == "digits_impaired"
    assert (len(policy["obs"]), policy["action_mask"], len(policy["slots"])) == (121, 56, 3)
    assert policy["heads"]["op"][0] == "WAIT"


def test_a_replica_that_dies_takes_its_sessions_along_and_no_others(client, world):
    shown = host(world()[1])
    sessions = {session.name.partition("-")[0]: session for session in (client.open(seed) for seed in (1, 2))}
    for session in sessions.values():
        session.act(shown)
    (victim,) = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#policy-0#" in actor["name"]]
    ray.kill(ray.get_actor(**victim))
    assert sessions["1"].act(shown).step == 1
    until = time.monotonic() + 100
    status = 503
    while status == 503 and time.monotonic() < until:
        with pytest.raises(ServiceError) as error:
            sessions["0"].act(shown)
        status = error.value.status
    assert status == 410
    assert client.ready()
    for number in range(2):
        with client.open(number) as session:
            assert session.act(shown).step == 0
    assert sessions["1"].act(shown).step == 2
    sessions["1"].close()


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "no-such-host.invalid"])
def test_a_name_that_is_no_host_is_refused(export, host, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    config = ServiceConfig(host=host, token_file=tmp_path / "token")
    with pytest.raises(UserError, match=f"cannot listen on {host} port 8000"), running(export, config):
        pytest.fail("nobody has that name")


def test_the_service_listens_on_loopback_alone(url):
    psutil = pytest.importorskip("psutil")  # Ray brings one along
    listening = {
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == urlsplit(url).port
    }
    assert listening
    assert all(is_loopback(address) for address in listening), listening


@pytest.mark.parametrize(
    ("send", "stop"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"]
)
def test_the_command_serves_until_it_is_stopped_and_leaves_no_process(export, send, stop):
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, "-m", "esper_ray", "serve", str(export), "--port", str(free_port())]
    # In a group of its own, all of which gets a terminal's Ctrl-C. A shell's background job would ignore it.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as run:
        line = run.stdout.readline()
        assert f"serving {export} at http://127.0.0.1:" in line
        with PolicyClient(line.split(" at ")[1].split()[0]) as client:
            assert client.ready()
        started = psutil.Process(run.pid).children(recursive=True)
        send(run.pid, stop)
        rest = run.stdout.read()
    assert run.returncode == 0, rest
    assert "stopped; all sessions have ended" in rest
    assert started
    assert not psutil.wait_procs(started, timeout=60)[1]
