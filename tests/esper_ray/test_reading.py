"""Files and words that a user hands in: read in one way, refused in one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from esper_ray.cli import parse
from esper_ray.config import with_settings
from esper_ray.errors import UserError
from esper_ray.experiments.study.study_file import Study
from esper_ray.presets import DEBUG
from esper_ray.reading import expand_home, read_json, read_yaml


class Anything(BaseModel, extra="allow"):
    pass


def refusal(read, path, *arguments):
    with pytest.raises(UserError) as refused:
        read(path, *arguments)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith((str(path), f"cannot read {path}"))
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arms:\n  a: {lr: 1.0e-3}\n  b: {}\n  a: {lr: 1.0e-2}\n", "line 4: 'a' is given twice"),
        ("seeds: 2\ntitle: x\nseeds: 3\n", "line 3: 'seeds' is given twice"),
        ("arms: {a: {lr: 1, lr: 2}}", "line 1: 'lr' is given twice"),
        ("a: &x {lr: 1}\nb:\n  <<: *x\n  lr: 2\n", None),  # what is merged in may be replaced, that is what it is for
        ("[1]", "content: Input should be"),
        ("a: [", "is not YAML"),
        ("[" * 10_000, "is not YAML"),
    ],
)
def test_a_key_given_twice_in_a_yaml_file_is_refused_with_its_line(tmp_path, text, says):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    if says is None:
        assert read_yaml(path, Anything).b["lr"] == 2
    else:
        assert says in refusal(read_yaml, path, Anything)


def test_a_study_of_two_arms_of_one_name_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("preset: debug\narms:\n  one: {}\n  one: {lr: 0.1}\n")
    assert refusal(Study.read, path) == f"{path}, line 4: 'one' is given twice"


@pytest.mark.parametrize("content", [b'{"a": 1, "a": 2}', b"", b"{", "né".encode("latin-1"), b"[" * 100_000, None])
def test_what_is_not_json_is_refused(tmp_path, content):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    refusal(read_json, path)
    refusal(read_json, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_what_is_json_is_read_as_it_was_written(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "content.json"
    path.write_text(json.dumps(content))
    assert read_json(path) == content


# ---------------------------------------------------------------------- ~
@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_directory_is_meant_wherever_a_path_is_given(home):
    (home / "token").touch()
    train = parse(["train", "--run-dir=~/x", "--storage=~/copy", "--task", "text", "--task-args", "text_file=~/a.txt"])
    assert train.run_dir == home / "x"
    assert train.config.run.storage == str(home / "copy")
    assert train.config.env.task_args == {"text_file": str(home / "a.txt")}
    evaluate = parse(["evaluate", "~/run", "--output=~/report.json", "--schedule", "~/best.json", "--data-dir=~"])
    assert evaluate.trained == str(home / "run")
    assert (evaluate.output, evaluate.schedule) == (home / "report.json", home / "best.json")
    assert evaluate.data_dir == home
    assert parse(["serve", "~/export", "--token-file=~/token"]).service.token_file == home / "token"
    assert parse(["compare", "~/a", "~/b"]).runs == (str(home / "a"), str(home / "b"))
    assert parse(["study", "~/s.yaml", "--output=~/out"]).output == home / "out"
    config = with_settings(DEBUG, {"task": "cifar10", "data_dir": "~/data"})
    assert config.env.data_dir == home / "data"


@pytest.mark.parametrize("word", ["a~b", "--flag=a~", "s3://bucket/~/x", "", "=", "x=y", "./~"])
def test_other_words_stay_as_they_are(word):
    assert expand_home(word) == word


def test_the_home_of_nobody_is_refused():
    with pytest.raises(UserError, match="no user of the name in ~nobody-of-that-name"):
        parse(["train", "--run-dir=~nobody-of-that-name/x"])
    assert not Path("~nobody-of-that-name").exists()
