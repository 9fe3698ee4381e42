"""Units are made once under the same code, kept in files, and put together from these alone."""

import json
import re
import subprocess
from contextlib import nullcontext

import numpy as np
import pytest
import yaml
from rich.console import Console

import esper_ray.learning.training
from esper_ray.cli import parse
from esper_ray.errors import UserError
from esper_ray.experiments.results import code_hash, plan
from esper_ray.experiments.results.gathering import gather
from esper_ray.experiments.results.kept_units import KeptUnits
from esper_ray.experiments.results.making import UnitMaker, differing
from esper_ray.experiments.results.plan import Plan, Unit
from esper_ray.experiments.results.verdicts import targets
from esper_ray.experiments.study.study_parts import StudyInterruptedError
from esper_ray.measuring.search.host_pool import train_pool
from tests.esper_ray.experiments.study.small import FakeTraining
from tests.places import ROOT

SMALL = {
    "title": "Small ones",
    "preset": "debug",
    "settings": {"max_epochs": 12, "hosts_per_runner": 2, "iterations": 2},
    "seeds": 2,
    "evaluations": {"same": None},
    "episodes": 4,
    "controls": ["never_grow", "fixed_schedule", "best_schedule", "static_final"],
    "search_epochs": 720,
    "host_search": 2,
}
ELSEWHERE = {
    "trained_by": "small",
    "title": "The same elsewhere",
    "evaluations": {"wide": {"task": "digits_mixed", "task_args": {"variants": "wide_first"}}},
    "episodes": 2,
    "controls": ["never_grow", "training_schedule"],
}
ORDER = [
    "small/controls.same",
    "elsewhere/controls.wide",
    "small/learned.seed-0",
    "elsewhere/learned.seed-0",
    "small/learned.seed-1",
    "elsewhere/learned.seed-1",
    "small/search.same",
]


class Workshop:
    """A plan of two small studies, in a directory of its own."""

    def __init__(self, path, monkeypatch):
        self.path, self.monkeypatch = path, monkeypatch
        monkeypatch.setattr("esper_ray.experiments.results.making.CANDIDATES", 5)
        self.write("small", SMALL)
        self.write("elsewhere", ELSEWHERE)
        (path / "results").mkdir()
        generalist = {"study": "small", "specialists": {"same": "small"}}
        (path / "results" / "plan.yaml").write_text(
            yaml.safe_dump({"studies": ["small", "elsewhere"], "generalist": generalist})
        )
        (path / "results" / "head.md").write_text("# Results\n")
        (path / "results" / "small.md").write_text("Small ones are small.\n")
        self.kept = KeptUnits(path / "kept")

    def write(self, name, study):
        (self.path / f"{name}.yaml").write_text(yaml.safe_dump(study))

    def command(self, *words, training=None):
        self.monkeypatch.setattr(esper_ray.learning.training, "train", training or FakeTraining())
        places = {name: str(self.path / name) for name in ("kept", "docs", "runs")}
        flags = [word for name, place in places.items() for word in (f"--{name}", place)]
        command = parse(["results", "--plan", str(self.path / "results"), "--workers", "0", *flags, *words])
        console = Console(record=True, quiet=False, width=200, file=(self.path / "said").open("w"))
        command.run(console)
        return console.export_text()

    def plan(self):
        return Plan(self.path / "results")

    def maker(self):
        return UnitMaker(self.plan(), self.kept, self.path / "runs", 0, Console(quiet=True))


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    return Workshop(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A plan that is done, and what was said."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Workshop(tmp_path_factory.mktemp("done"), monkeypatch)
        made.said = made.command()
        yield made


def test_units_come_in_the_order_in_which_they_need_each_other(workshop):
    assert [str(unit) for unit in workshop.plan().units()] == ORDER
    said = workshop.command("--list")
    assert said.splitlines() == [f"{unit}: missing" for unit in ORDER]


def test_a_plan_that_plays_what_nobody_trains_is_refused(workshop):
    (workshop.path / "results" / "plan.yaml").write_text(yaml.safe_dump({"studies": ["elsewhere", "small"]}))
    with pytest.raises(UserError, match="must name small before elsewhere"):
        workshop.plan()


@pytest.mark.parametrize(
    ("generalist", "says"),
    [
        ({"study": "small", "specialists": {"same": "nobody"}}, "names the study 'nobody', which is not on the plan"),
        ({"study": "small", "specialists": {"wide": "elsewhere"}}, "elsewhere is no specialist for 'wide'"),
        ({"study": "small", "specialists": {"same": "elsewhere"}}, "elsewhere is no specialist for 'same'"),
    ],
)
def test_specialists_of_other_worlds_are_refused(generalist, says, workshop):
    content = {"studies": ["small", "elsewhere"], "generalist": generalist}
    (workshop.path / "results" / "plan.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=says):
        workshop.plan()


def test_everything_is_made_once_and_the_page_says_all_of_it(done):
    assert [line for line in done.said.splitlines() if line.startswith("unit ")] == [
        f"unit {place} of 7: {name}" for place, name in enumerate(ORDER, start=1)
    ]
    again = done.command(training=FakeTraining(stop_after=0))
    assert "unit" not in again
    assert set(done.command("--list").splitlines()) == {f"{unit}: made" for unit in ORDER}
    page = (done.path / "docs" / "results.md").read_text()
    for words in (
        "# Results",
        "## Small ones",
        "Small ones are small.",
        "## The same elsewhere",
        "### same: to a target",
        "a search on each host",
    ):
        assert words in page
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert len(pictures) == len(set(pictures)) >= 7
    for picture in pictures:
        assert (done.path / "docs" / picture).read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((done.path / "docs" / "results.json").read_text())
    headline = numbers["headline"]
    assert headline["training_seeds"] == {"small": 2, "elsewhere": 2}
    assert set(headline["above_playable"]) == {"same", "wide"}
    low, high = headline["search_multiple"]["same"]
    assert 1.0 <= low <= 16.0
    assert high is None or low <= high
    assert headline["generalist_gap"] == {"same": [pytest.approx(0.0), pytest.approx(0.0)]}, "it is its own specialist"
    assert set(numbers["units"]) == set(ORDER)
    assert "**Missing**" not in page


def test_who_does_not_look_is_not_charged_for_looking(done):
    gathered = gather(done.plan(), done.kept, "small")
    _, by_share = targets(gathered, "same")
    assert by_share.keys() == {0.90, 0.95}
    for reached in by_share.values():
        played, _ = gathered.results.in_world("same")
        assert {"learned", "never_grow", "fixed_schedule", "best_schedule", "learned, static final"} <= reached.keys()
        for name, of_policy in reached.items():
            if of_policy.epoch is None:
                continue
            spent, looks = (
                np.mean([getattr(run, flops)[:, of_policy.epoch - 1].mean() for run in played[name]])
                for flops in ("training_flops", "evaluation_flops")
            )
            assert 0.0 < looks < spent
            assert of_policy.flops == pytest.approx(spent if name == "learned" else spent - looks)
        assert any(of_policy.epoch is not None for name, of_policy in reached.items() if name != "learned")
    task = gathered.results.study.worlds["same"].make_task()
    trained, looked_at = task.batches_per_epoch * task.batch_size, len(task.splits["validation"].y)
    (never,) = gathered.results.in_world("same")[0]["never_grow"]
    epochs = np.arange(1, never.accuracy.shape[1] + 1)
    share = looked_at * (epochs + 1) / (3 * trained * epochs + looked_at * (epochs + 1))
    np.testing.assert_allclose(never.evaluation_flops / never.training_flops, share[None].repeat(4, axis=0))


def test_a_unit_that_is_made_again_gives_the_same_figures(done):
    for unit in ("small/search.same", "elsewhere/learned.seed-1", "elsewhere/controls.wide"):
        assert f"{unit} was made again: the same figures" in done.command("--unit", unit)


def test_figures_that_are_others_are_noticed_whatever_they_are(done):
    plan = done.plan()
    for name in ("small/controls.same", "small/learned.seed-0", "small/search.same"):
        unit = plan.unit(name)
        one, other = done.kept.figures(unit), done.kept.figures(unit)
        assert not differing(one, other)
        if unit.kind == "search":
            other.pool["hits"] += "A"
        else:
            played = other.played if unit.kind == "controls" else other.played["same"]
            next(iter(played.values())).seconds[:] = [1.0]
            assert not differing(one, other), "times depend on the machine"
            next(iter(played.values())).measures["score"][0] += 1e-12
        assert differing(one, other)


def test_a_unit_that_comes_out_otherwise_is_told_by_its_scores_and_by_the_processor(workshop, monkeypatch):
    name = "small/controls.same"
    workshop.command("--unit", name)
    file = workshop.kept.file(workshop.plan().unit(name))
    content = json.loads(file.read_text())
    scores = content["figures"]["played"]["never_grow"]["measures"]["score"]
    content["figures"]["played"]["never_grow"]["measures"]["score"] = [score - 0.25 for score in scores]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"differs from what is kept in played$"):
        workshop.command("--unit", name)
    (row,) = [
        line for line in (workshop.path / "said").read_text().splitlines() if "never_grow" in line and "│" in line
    ]
    kept, again = np.mean(scores) - 0.25, np.mean(scores)
    assert [float(number) for number in row.split("│")[2:5]] == pytest.approx([kept, again, 0.25], abs=1e-4)
    monkeypatch.setattr("esper_ray.process.processor", lambda: "another one")
    with pytest.raises(UserError, match=rf"kept on {re.escape(content['made']['processor'])}, and this is another one"):
        workshop.command("--unit", name)


def test_what_other_code_has_made_is_missing(workshop, monkeypatch):
    workshop.command("--unit", "small/controls.same")
    page = workshop.command("--unit", "small/learned.seed-0") and (workshop.path / "docs" / "results.md").read_text()
    assert "**Missing**: learned.seed-1, search.same." in page
    assert gather(workshop.plan(), workshop.kept, "small") is not None
    monkeypatch.setattr(plan, "code_hash", lambda files: f"other {[file.name for file in files]}")
    assert set(workshop.command("--list").splitlines()) == {f"{unit}: missing" for unit in ORDER}
    workshop.command("--unit", "small/learned.seed-1")
    assert gather(workshop.plan(), workshop.kept, "small") is None
    page = workshop.command("--page-only") and (workshop.path / "docs" / "results.md").read_text()
    assert "**Missing**: 1 of 4 units are made, too few for a table." in page
    assert "| policy |" not in page
    assert "Small ones are small." not in page, "there is nothing yet to remark on"


def test_code_that_is_changed_while_a_unit_is_made_makes_none_and_leaves_nothing_to_go_on_with(workshop, monkeypatch):
    hashes = iter(["one"] * 2 + ["other"] * 2 + ["one"] * 8)
    monkeypatch.setattr(plan, "code_hash", lambda files: next(hashes))
    unit = Unit("small", "controls", "same")
    with pytest.raises(UserError, match="the study was changed while it was made"):
        workshop.maker().make(unit)
    assert not workshop.maker().is_made(unit)
    assert [path.name.split("-")[:2] for path in (workshop.path / "runs").iterdir()] == [["one", "changed"]]


def test_a_file_that_was_written_meanwhile_is_a_change_even_if_it_is_as_before(workshop, monkeypatch):
    monkeypatch.setattr("esper_ray.experiments.results.making.changed_since", lambda began: [ROOT / "envs" / "a.py"])
    with pytest.raises(UserError, match=r"envs/a\.py was changed while it was made"):
        workshop.maker().make(Unit("small", "controls", "same"))


def test_a_policy_that_is_another_than_on_its_trainers_table_is_not_played(workshop):
    workshop.command("--unit", "small/learned.seed-0")
    file = workshop.kept.file(Unit("small", "training", "learned", 0))
    content = json.loads(file.read_text())
    content["figures"]["weights_sha256"] = "others"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"another one than that of small/learned\.seed-0"):
        workshop.command("--unit", "elsewhere/learned.seed-0")


def test_a_search_that_was_interrupted_trains_no_host_twice(workshop, monkeypatch):
    trained = []

    def interrupted(env, seed, count):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(seed)
        return train_pool(env, seed, count)

    def counted(env, seed, count):
        trained.append(seed)
        return train_pool(env, seed, count)

    unit = Unit("small", "search", "same")
    for function, ends in ((interrupted, pytest.raises(KeyboardInterrupt)), (counted, nullcontext())):
        monkeypatch.setattr("esper_ray.experiments.results.making.train_pool", function)
        with ends:
            workshop.maker().make(unit)
    assert len(set(trained)) == len(trained) == 2
    assert workshop.maker().is_made(unit)


def test_an_interrupted_training_keeps_nothing_and_goes_on(workshop):
    workshop.monkeypatch.setattr(esper_ray.learning.training, "train", FakeTraining(stop_after=1))
    maker = workshop.maker()
    unit = Unit("small", "training", "learned", 0)
    with pytest.raises(StudyInterruptedError):
        maker.make(unit)
    assert not maker.is_made(unit)
    second = FakeTraining()
    workshop.monkeypatch.setattr(esper_ray.learning.training, "train", second)
    maker.make(unit)
    assert second.iterations == [("learned", 0, 2)]
    assert maker.is_made(unit)


def test_a_damaged_file_is_named(workshop):
    file = workshop.path / "kept" / "small" / "controls.same.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"made": 1}')
    with pytest.raises(UserError, match=r"controls\.same\.json is damaged, remove it"):
        workshop.command("--list")


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    for package in code_hash.PACKAGES:
        (tmp_path / package / "__pycache__").mkdir(parents=True)
        (tmp_path / package / "a.py").write_text("one")
    (tmp_path / "constraints.txt").write_text("absent-package==1\n")
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git("init", "-q")
    git("add", ".")
    return tmp_path


def test_the_hash_is_of_every_file_that_matters_and_of_no_other(checkout):
    study, other = checkout / "a.yaml", checkout / "b.yaml"
    study.write_text("seeds: 1")
    other.write_text("seeds: 1")
    first = code_hash.code_hash([study], checkout)
    seen = {first, code_hash.code_hash([study, other], checkout)}
    (checkout / "envs" / "__pycache__" / "a.pyc").write_text("two")
    (checkout / "docs.md").write_text("two")
    assert code_hash.code_hash([study], checkout) == first
    for path in ("envs/a.py", "policies/a.py", "esper_ray/a.py", "constraints.txt", "a.yaml"):
        (checkout / path).write_text("two")
        seen.add(code_hash.code_hash([study], checkout))
    assert len(seen) == 7
    assert {path.name for path in code_hash.changed_since(0.0, checkout)} == {"a.py"}
    assert not code_hash.changed_since(2e10, checkout)


def test_files_that_git_does_not_know_and_other_versions_are_refused(checkout, tmp_path_factory):
    (checkout / "constraints.txt").write_text("numpy==0.0.1\n")
    with pytest.raises(UserError, match=r"figures are made with numpy 0\.0\.1, and .* is installed: run make install"):
        code_hash.code_hash([], checkout)
    (checkout / "envs" / "b.py").write_text("one")
    with pytest.raises(UserError, match=r"commit or remove envs/b\.py"):
        code_hash.code_hash([], checkout)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(UserError, match=r"has no constraints\.txt: clone the repository"):
        code_hash.code_hash([], elsewhere)


def test_the_repositorys_plan_can_be_read():
    shipped = Plan(ROOT / "studies" / "results")
    assert all(len(code) == 64 for code in shipped.hashes.values())
    assert (ROOT / "studies" / "results" / "head.md").read_text().startswith("# Results\n")
