"""Whatever is given for any field of any config and command: taken as it is, or refused in one line with code 2."""

import dataclasses
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import get_type_hints

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from envs.limits import LifecycleRules
from envs.ranges import Range, ranges_of
from envs.reward import RewardConfig
from esper_ray.cli import parse
from esper_ray.commands.control import Control
from esper_ray.commands.deployment import Export, Serve
from esper_ray.commands.evaluation import Evaluate, Replay, Search
from esper_ray.commands.inspection import Inspect
from esper_ray.commands.keys import Keys
from esper_ray.commands.learn import Learn
from esper_ray.commands.reports import Reports
from esper_ray.commands.strategic import Collect, EvaluateStrategic, Imitate
from esper_ray.commands.studies import Compare, Study, Tune
from esper_ray.commands.training import Train
from esper_ray.commands.updates import Updates
from esper_ray.config import DEFAULT_TASK, EnvConfig, LearnerConfig, RunConfig, load_config, with_settings
from esper_ray.controller.learner.settings import ReportLearning
from esper_ray.errors import UserError
from esper_ray.experiments.study import study_file
from esper_ray.experiments.tuning import tuning_file
from esper_ray.keeping.run_directory import POLICY_FILE, RunDirectory
from esper_ray.presets import DEBUG
from esper_ray.serving.settings import ServiceConfig
from esper_ray.stopping import one_line
from policies.bundle import PolicySettings
from policies.factory import build_policy
from policies.network_config import NetworkConfig
from policies.strategic.imitation_config import ImitationConfig
from policies.weights import save_weights
from tests.places import ROOT

COMMANDS = {
    ("train",): (Train, RunConfig, EnvConfig, NetworkConfig, LearnerConfig),
    ("evaluate", "run"): (Evaluate,),
    ("search", "run"): (Search,),
    ("replay", "run"): (Replay,),
    ("export", "run", "out"): (Export,),
    ("serve", "export"): (Serve, ServiceConfig),
    ("study", "study.yaml"): (Study,),
    ("tune", "tuning.yaml"): (Tune,),
    ("compare", "one", "other"): (Compare,),
    ("inspect", DEFAULT_TASK): (Inspect,),
    ("control",): (Control,),
    ("keys", "list"): (Keys,),
    ("reports", "list"): (Reports,),
    ("updates", "list"): (Updates,),
    ("learn", "--start", "start", "--greenhouse", "store"): (Learn, ReportLearning),
    ("strategic", "collect", "store"): (Collect,),
    ("strategic", "imitate", "store", "out"): (Imitate, ImitationConfig),
    ("strategic", "evaluate", "trained", "store"): (EvaluateStrategic,),
}
POSITIONAL = {
    "trained",
    "world",
    "run_dir",
    "export",
    "out",
    "study",
    "tuning",
    "runs",
    "store",
    "word",
    "run_id",
    "report",
    "number",
}
FLAGS = [
    (*command, f"--{field.name.replace('_', '-')}")
    for command, kinds in COMMANDS.items()
    for kind in kinds
    for field in dataclasses.fields(kind)
    if (kind is Train or field.name not in POSITIONAL)
    and field.name not in ("config", "service", "imitation", "network", "learning")
]
SETTINGS = [field.name for part in vars(DEBUG).values() for field in dataclasses.fields(part)]

NUMBERS = [
    "inf",
    "-inf",
    "nan",
    "1e308",
    "1e-400",
    "-1",
    "0",
    "-0.0",
    "1e3",
    "2.5",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "1_0",
]
WORDS = [
    "",
    " ",
    "None",
    "True",
    "[/b]",
    "[red]x",
    "lr[a]",
    "~nobody-here/x",
    "a=b",
    "=",
    "FOO",
    "op",
    "{}",
    "%s",
    "a\nb",
]
WORD = st.sampled_from(NUMBERS + WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=8)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**30, -(10**30), 1e308, *NUMBERS, *WORDS, "\0", "\ud800"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize(
    ("words", "twice"),
    [
        ("train --iterations 3 --iterations 4", "--iterations"),
        ("train --iterations=3 --lr 0.1 --iterations 4", "--iterations"),
        ("train --max-epochs 3 --max_epochs=4", "--max_epochs"),
        ("train --task-args a=1 --task-arg b=2", "--task-arg"),
        ("evaluate run --policies learned --policies heuristic", "--policies"),
        ("evaluate run --greedy --no-greedy", "--no-greedy"),
    ],
)
def test_what_is_given_twice_is_refused(words, twice):
    with pytest.raises(UserError, match=f"^{twice} is given twice"):
        parse(words.split())


def test_a_training_starts_from_one_preset():
    with pytest.raises(UserError, match="not allowed with"):
        parse(["train", "--debug", "--preset", "thorough"])


def test_no_two_flags_are_taken_for_one():
    for command in COMMANDS:
        names = [flag.removeprefix("--no-") for *rest, flag in FLAGS if tuple(rest) == command]
        assert len({*names}) == len(names)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("evaluate", ["--policies", "FOO"]),
        ("evaluate", ["--policies", "static_final"]),
        ("replay", ["--policy", "foo/bar"]),
        ("replay", ["--policy", "foo/bar", "--output", "new/deep/x.png"]),
    ],
)
def test_a_policy_that_cannot_play_leaves_no_directory(command, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(tmp_path / "run", DEBUG)
    policy = build_policy("learned", PolicySettings(DEBUG.env.make_task().slots, DEBUG.env.max_epochs, DEBUG.network))
    run.save(1, 0.5, lambda directory: save_weights(policy.state_dict(), directory / POLICY_FILE))
    before = {*tmp_path.rglob("*")}
    output = ["--output", "new/deep/x.json"] if command == "evaluate" else []
    with pytest.raises(UserError, match=r"unknown policy|add learned to"):
        parse([command, "run", *flags, *output]).run(Console(quiet=True))
    assert {*tmp_path.rglob("*")} == before


def taken(call):
    """What the call returns, or None after a refusal in one line."""
    try:
        return call()
    except UserError as error:
        said = one_line(str(error))
        assert said.isprintable()
        assert said
        assert "Traceback" not in said
        return None


def numbers(value):
    """All numbers in a config."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def is_sound(config, path):
    """Every number is one, and what is stored is read again as the same."""
    assert all(math.isfinite(number) and abs(number) <= 2**53 for number in numbers(dataclasses.asdict(config)))
    path.write_text(config.to_json(), encoding="utf-8", errors="surrogatepass")
    assert load_config(path) == config


@given(flag=st.sampled_from(FLAGS), words=st.lists(WORD, max_size=2))
@example(flag=("train", "--PRUNE"), words=["nan"])
@example(flag=("train", "--entropy-multipliers"), words=["FOO", "1"])
@example(flag=("train", "--entropy-multipliers"), words=["op", "inf"])
@example(flag=("train", "--deep-heads"), words=["FOO"])
@example(flag=("train", "--resume"), words=["--run-dir"])
@example(flag=("train", "--task"), words=["text", "--task-args", "text_file=~nobody-here/x"])
@example(flag=("train", "--task"), words=["\udcff"])
def test_a_flag_is_taken_or_refused_in_one_line(flag, words):
    command = taken(lambda: parse([*flag, *words]))
    if isinstance(command, Train):
        assert all(math.isfinite(number) for number in numbers(dataclasses.asdict(command.config)))


@given(name=st.sampled_from(SETTINGS) | WORD, value=VALUE)
@example(name="op_bias", value={"FOO": 1})
@example(name="op_bias", value={"GROW_INTERNAL": 1})
@example(name="lr", value=float("inf"))
@example(name="task_args", value=None)
@example(name="first_task_args", value=["FOO"])
@example(name="entropy_multipliers", value={"op": float("nan")})
def test_a_setting_is_taken_or_refused_in_one_line(name, value, tmp_path_factory):
    config = taken(lambda: with_settings(DEBUG, {name: value}))
    if config is not None:
        is_sound(config, tmp_path_factory.getbasetemp() / "config.json")


STUDY = {"title": "t", "preset": "debug", "settings": {}, "arms": {"a": {}, "b": {}}, "seeds": [0], "evaluations": {},
         "episodes": 4, "evaluation_seed": 0, "checkpoint": "latest", "controls": ["never_grow"], "search_epochs": None,
         "trained_by": None}  # fmt: skip
TUNING = {"title": "t", "preset": "debug", "settings": {}, "space": {"lr": {"uniform": [1e-4, 1e-3]}}, "samples": 2,
          "seed": 0, "grace_iterations": 1, "reduction_factor": 2, "concurrent_trials": 1}  # fmt: skip


@pytest.mark.parametrize(("kind", "content"), [(study_file.Study, STUDY), (tuning_file.Tuning, TUNING)])
@given(data=st.data())
def test_a_file_is_taken_or_refused_in_one_line(kind, content, data, tmp_path_factory):
    key = data.draw(st.sampled_from([*content]) | st.text(max_size=5))
    inner = st.dictionaries(st.sampled_from([*SETTINGS, "a", "uniform", "choice"]), VALUE, max_size=2)
    value = data.draw(VALUE | inner | st.dictionaries(st.sampled_from(["a", "lr", "x/y"]), inner, max_size=2))
    path = tmp_path_factory.getbasetemp() / "file.yaml"
    text = yaml.safe_dump({**content, key: value}, allow_unicode=False)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    taken(lambda: kind.read(path))


@pytest.mark.parametrize(
    ("kind", "content", "wrong"),
    [
        (study_file.Study, STUDY, {"episodes": 10**30}),
        (study_file.Study, STUDY, {"seeds": 10**30}),
        (study_file.Study, STUDY, {"search_epochs": 10**30}),
        (tuning_file.Tuning, TUNING, {"samples": 10**30}),
        (tuning_file.Tuning, TUNING, {"seed": 10**30}),
        (tuning_file.Tuning, TUNING, {"space": {"lr": {"uniform": [0, math.inf]}}}),
        (tuning_file.Tuning, TUNING, {"space": {"entropy_coeff": {"uniform": [-1e308, 1e308]}}}),
        (tuning_file.Tuning, TUNING, {"space": {"num_epochs": {"integers": [1, 10**30]}}}),
    ],
)
def test_numbers_of_a_file_that_are_none_are_refused(kind, content, wrong, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump({**content, **wrong}))
    with pytest.raises(UserError, match=next(iter(wrong))):
        kind.read(path)


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, -1.0])
def test_the_world_refuses_numbers_that_are_none(wrong):
    for name in (
        *("parameter_rent", "path_rent", "germination_cost", "compute_rent"),
        *("shaping_weight", "contribution_weight", "gamma"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be .*, got {wrong}"):
            RewardConfig(**{name: wrong})
    for name in ("min_training_epochs", "embargo_epochs", "max_living_seeds", "parameter_budget"):
        with pytest.raises(ValueError, match=f"{name} must .*, got {wrong}"):
            LifecycleRules(**{name: wrong})


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "\xff\xfe", "a: &x [*x]", "- 1", "7", "? {}", "a: !!x y"])
@pytest.mark.parametrize("kind", [study_file.Study, tuning_file.Tuning])
def test_a_file_that_is_no_definition_is_refused_in_one_line(kind, text, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="latin-1")
    assert taken(lambda: kind.read(path)) is None


def test_a_name_that_is_none_in_a_second_arm_is_refused_when_the_study_is_read(tmp_path):
    path = tmp_path / "file.yaml"
    for setting, name in (("op_bias", "FOO"), ("entropy_multipliers", "FOO"), ("op_bias", "GROW_INTERNAL")):
        path.write_text(yaml.safe_dump({**STUDY, "arms": {"a": {}, "b": {setting: {name: 1.0}}}}))
        with pytest.raises(UserError, match=rf"arm 'b': a name in {setting} must be one of .*, got '{name}'"):
            study_file.Study.read(path)
    assert with_settings(DEBUG, {"task": "digits_scale", "op_bias": {"GROW_INTERNAL": 1.0}})


def test_every_number_of_a_config_or_command_has_its_range():
    for kind in {kind for kinds in COMMANDS.values() for kind in kinds}:
        for name, hint in get_type_hints(kind).items():
            if any(number in str(hint) for number in ("int", "float")):
                assert isinstance(ranges_of(kind).get(name), Range), f"{kind.__name__}.{name}"


def test_the_default_task_which_is_not_looked_at_is_right():
    assert EnvConfig().make_task().name == DEFAULT_TASK


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--lr", "inf"], "lr must be a number above 0, at most 1, got inf"),
        (["train", "--task", "[/b]\n\x1b[2J"], r"unknown task '[/b]\n\x1b[2J'"),
        (["train", "--num-epoch", "3", "--lrr", "1"], "similar to --num-epoch: --num-epochs"),
        (["trian"], "trian"),
        (["evaluate", b"\xff"], r"\udcff is not a run directory"),
        (["evaluate", "x" * 300], "File name too long"),
        (["train", "--resume", "--run-dir", "x" * 300], "File name too long"),
    ],
)
def test_the_program_says_it_in_one_line(arguments, says, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "esper_ray", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_the_program_puts_its_own_place_first_unless_it_is_there():
    program = "import sys; from esper_ray.cli import main; sys.argv = ['esper-ray', '--help']\n"
    program += "sys.path.insert(0, {first!r}); before = list(sys.path)\n"
    program += "try: main()\nexcept SystemExit: print(sys.path == [*{added}, *before])\n"
    for first, added in ((str(ROOT), []), ("elsewhere", [str(ROOT)])):
        command = [sys.executable, "-c", program.format(first=first, added=added)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.endswith("\nTrue\n")


def test_help_needs_neither_torch_nor_ray():
    program = "import sys, runpy; sys.argv = ['esper-ray', *sys.argv[1:]]\n"
    program += "try: runpy.run_module('esper_ray', run_name='__main__')\n"
    program += "except SystemExit: print([name for name in ('torch', 'ray') if name in sys.modules])\n"
    for command in ([], ["train"], ["evaluate"], ["study"]):
        result = subprocess.run(
            [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, check=True
        )
        assert result.stdout.endswith("[]\n")


def test_what_is_printed_into_a_pipe_that_closes_is_no_traceback(tmp_path):
    command = [sys.executable, "-m", "esper_ray", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
