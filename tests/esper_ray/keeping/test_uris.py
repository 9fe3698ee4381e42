"""Commands on runs and exports that lie at a URI do what they do on directories."""

import dataclasses
import json
import socket

import pytest
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.keeping.run_directory import RLLIB_STATE, RunDirectory
from esper_ray.keeping.storage import Mirror, at_hand
from esper_ray.measuring.trained import Trained
from tests.esper_ray.keeping.test_export import CONFIG, trained_run

SHORT = dataclasses.replace(CONFIG, env=dataclasses.replace(CONFIG.env, max_epochs=4))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """URI of a folder with the copy of a run, whose directory is gone; the present directory is an empty one."""
    run, _ = trained_run(tmp_path / "run")
    run.write_config(SHORT)
    with SummaryWriter(str(run.path)) as writer:
        writer.add_scalar("World/score", 0.25, 16)
    for checkpoint in run.checkpoints.glob("iteration-*"):
        (checkpoint / RLLIB_STATE).mkdir()
        (checkpoint / RLLIB_STATE / "state.pkl").write_text("pickled")
    uri = f"file://{tmp_path}/store"
    Mirror(f"{uri}/first").send(run)
    run.path.rename(tmp_path / "gone")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return uri


def command(*arguments):
    console = Console(width=200)
    with console.capture() as captured:
        parse([str(argument) for argument in arguments]).run(console)
    return captured.get()


def test_what_is_at_hand_is_the_run_without_its_pickled_state_and_for_a_while(store, tmp_path):
    with at_hand(f"{store}/first") as path:
        trained = Trained.open(path, "best")
        assert (trained.iteration, trained.env.max_epochs) == (2, 4)
        assert trained.weights.content == next((tmp_path / "gone").glob("*/*2/policy.safetensors")).read_bytes()
        assert not list(path.rglob("*.pkl"))
    assert not path.exists()
    with at_hand(str(tmp_path / "gone")) as path:
        assert path == tmp_path / "gone"


def test_policies_at_a_uri_are_evaluated_drawn_and_exported_here(store, tmp_path):
    command("evaluate", f"{store}/first", "--episodes", 2, "--workers", 1, "--policies", "learned", "never_grow")
    assert json.loads((tmp_path / "here" / "evaluation.json").read_text())["checkpoint"]["iteration"] == 3
    assert "written: replay-learned-0.png" in command("replay", f"{store}/first")
    command("export", f"{store}/first", tmp_path / "store" / "policy")
    report = tmp_path / "of-the-export.json"
    command("evaluate", f"{store}/policy", "--episodes", 2, "--workers", 1, "--policies", "learned", "--output", report)
    here, export = (json.loads(path.read_text()) for path in (tmp_path / "here" / "evaluation.json", report))
    assert export["policies"]["learned"]["episodes"] == here["policies"]["learned"]["episodes"]
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "evaluation.json",
        "evaluation.png",
        "replay-learned-0.png",
    }


def test_runs_at_uris_are_compared_under_their_own_names(store, tmp_path):
    other = RunDirectory.create(tmp_path / "second", dataclasses.replace(SHORT, run=CONFIG.run))
    Mirror(f"{store}/second").send(other)
    printed = command("compare", f"{store}/first", f"{store}/second", other.path)
    assert "store/second" in printed
    assert "0.25" in printed
    assert (tmp_path / "here" / "comparison.md").is_file()


def test_the_service_reads_its_export_from_a_uri(store, tmp_path):
    command("export", f"{store}/first", tmp_path / "store" / "policy")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # The port is looked at after the export was read, and before anything starts.
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port}"):
            command("serve", f"{store}/policy", "--port", port)
        with pytest.raises(UserError, match="is no export"):
            command("serve", f"{store}/first", "--port", port)


def test_a_uri_without_a_run_and_a_uri_to_train_in_are_refused_with_what_to_do(store):
    with pytest.raises(UserError, match="nowhere holds neither a run nor an export"):
        command("replay", f"{store}/nowhere")
    with pytest.raises(UserError, match="no file system"):
        command("evaluate", "carrier-pigeon://roof/3")
    for flags in ([], ["--resume"]):
        with pytest.raises(UserError, match=r"directory of this machine, got file://.* as --storage"):
            command("train", "--run-dir", f"{store}/first", *flags)
