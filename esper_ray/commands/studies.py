"""``study``, ``results``, ``tune`` and ``compare``: several runs."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from envs.ranges import OtherProcesses, check_numbers
from esper_ray.commands.checks import WORKERS, writable
from esper_ray.errors import UserError
from esper_ray.keeping.lock import held
from esper_ray.keeping.writing import make_directories, replace_figure, replace_text
from esper_ray.terminal import command

if TYPE_CHECKING:
    from esper_ray.experiments.results.kept_units import KeptUnits
    from esper_ray.experiments.results.making import UnitMaker
    from esper_ray.experiments.results.plan import Unit


@dataclass(frozen=True)
class Study:
    """Train every arm of a study with several seeds, evaluate all on held-out hosts, report. Resumes by itself."""

    study: tyro.conf.Positional[Path]
    """YAML file, see docs/studies.md."""
    output: Path | None = None
    """Directory for runs, results and report; by default runs/studies/NAME, after the file."""
    workers: OtherProcesses = WORKERS
    """Processes that share the evaluations; 0 plays them in this one."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Do what is not done yet, then report."""
        from esper_ray.experiments.study import study_file
        from esper_ray.experiments.study.study_directory import StudyDirectory
        from esper_ray.experiments.study.study_parts import StudyInterruptedError
        from esper_ray.experiments.study.study_report import write_report
        from esper_ray.experiments.study.study_run import run_study
        from esper_ray.measuring.evaluation_report import comparison_table, evaluation_table

        spec = study_file.Study.read(self.study)
        spec.load_data()
        directory = StudyDirectory(self.output or Path("runs") / "studies" / self.study.stem, spec)
        if lacking := directory.lacking():
            trainer = self.study.with_name(f"{spec.trained_by}{self.study.suffix}")
            output = self.output and self.output.with_name(directory.trainer.path.name)
            first = _command("study", trainer, output)
            raise UserError(f"{directory.trainer.path} lacks {'; '.join(lacking)}: first run {first}")
        with held(directory.path):
            try:
                run_study(directory, self.workers, console)
            except (StudyInterruptedError, KeyboardInterrupt):
                again = _command("study", self.study, self.output)
                raise KeyboardInterrupt(f"what is done is kept; go on with: {again}") from None
            report = write_report(directory)
        for evaluation in report["evaluations"].values():
            console.print(evaluation_table(evaluation))
            for arm in spec.arms:
                console.print(comparison_table(evaluation, arm))
        console.print(f"written: {directory.path}/study.md, study.json and pictures beside them")


@dataclass(frozen=True)
class Results:
    """Make what is missing of the results, unit by unit, and write docs/results.md from what there is."""

    plan: Path = Path("studies/results")
    """Directory with plan.yaml, which names the studies beside it (docs/studies.md)."""
    kept: Path = Path("studies/kept")
    """Directory of the finished units' figures, which are committed."""
    docs: Path = Path("docs")
    """Directory that results.md, results.json and their pictures are written into."""
    runs: Path = Path("runs/results")
    """Directory for what is under way."""
    unit: str | None = None
    """Make this one alone, as --list names it, whether or not it is missing. If its figures are there, made by the same
    code, they are compared in place of being replaced."""
    list: bool = False
    """Only say which units there are, and which are missing."""
    page_only: bool = False
    """Make nothing; write the page from what there is."""
    workers: OtherProcesses = WORKERS
    """Processes that share the evaluations and the searches; 0 plays them in this one."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)

    def run(self, console: Console) -> None:
        """Make, compare or list units, and write the page."""
        from esper_ray.experiments.results.kept_units import KeptUnits
        from esper_ray.experiments.results.making import UnitMaker
        from esper_ray.experiments.results.plan import Plan
        from esper_ray.experiments.results.results_page import write_results
        from esper_ray.experiments.study.study_parts import StudyInterruptedError

        plan, kept = Plan(self.plan), KeptUnits(self.kept)
        maker = UnitMaker(plan, kept, self.runs, self.workers, console)
        if self.list:
            for unit in plan.units():
                console.print(f"{unit}: {'made' if maker.is_made(unit) else 'missing'}", soft_wrap=True)
            return
        if self.unit is not None and maker.is_made(plan.unit(self.unit)):
            self._compare(maker, plan.unit(self.unit), kept, console)
            return
        with held(self.runs):
            units = [] if self.page_only else maker.missing() if self.unit is None else [plan.unit(self.unit)]
            for study in dict.fromkeys(unit.study for unit in units):
                plan.studies[study].load_data()
            for place, unit in enumerate(units):
                console.print(f"unit {place + 1} of {len(units)}: {unit}", style="bold")
                try:
                    maker.make(unit)
                except (StudyInterruptedError, KeyboardInterrupt):
                    raise KeyboardInterrupt("finished units are kept; the same command goes on") from None
                console.print(f"kept: {kept.file(unit)}", soft_wrap=True)
            write_results(plan, kept, self.docs)
        console.print(f"written: {self.docs}/results.md and results.json")

    def _compare(self, maker: UnitMaker, unit: Unit, kept: KeptUnits, console: Console) -> None:
        """Make a unit again, in a directory of its own, and hold its figures against those that are kept."""
        from tempfile import TemporaryDirectory

        from rich.table import Table

        from esper_ray.experiments.results.making import differing, mean_scores
        from esper_ray.process import processor

        make_directories(self.runs)
        with TemporaryDirectory(dir=self.runs, prefix="again-") as again:
            figures = maker.elsewhere(Path(again)).figures(unit)
        before, made = kept.figures(unit), kept.made(unit)
        assert made is not None, "only what is made is compared"
        if not (differences := differing(before, figures)):
            console.print(f"{unit} was made again: the same figures")
            return
        table = Table("mean score of", "kept", "again", "difference")
        again_scores = mean_scores(figures)
        for name, score in mean_scores(before).items():
            table.add_row(name, f"{score:.4f}", f"{again_scores[name]:.4f}", f"{again_scores[name] - score:+.4f}")
        if table.row_count:
            console.print(table)
        message = f"{unit} was made again, and differs from what is kept in {', '.join(differences)}"
        if (here := processor()) != made.processor:
            message += (
                f". It was kept on {made.processor}, and this is {here}, which rounds in another way: expect scores of "
                "controls to differ a little, and a training to end as one with another seed does"
            )
        raise UserError(message)


@dataclass(frozen=True)
class Tune:
    """Try settings drawn at random, stop the worse trials early (ASHA), report. Resumes by itself."""

    tuning: tyro.conf.Positional[Path]
    """YAML file, see docs/tuning.md."""
    output: Path | None = None
    """Directory for trials, results and report; by default runs/tunings/NAME, after the file."""
    address: str | None = None
    """Ray cluster to train on, as for train. Trials learn on this machine; their runners live where there is room."""

    def run(self, console: Console) -> None:
        """Do what is not done yet, then report."""
        from esper_ray.cluster import in_a_job
        from esper_ray.experiments.tuning import tuning_file
        from esper_ray.experiments.tuning.tuning_directory import TuningDirectory
        from esper_ray.experiments.tuning.tuning_report import tuning_table, write_report
        from esper_ray.experiments.tuning.tuning_run import run_tuning

        spec = tuning_file.Tuning.read(self.tuning)
        output = self.output or Path("runs") / "tunings" / self.tuning.stem
        if in_a_job() and not output.is_absolute():
            raise UserError(
                f"a job's working directory is thrown away after it, and {output} with it: give an absolute --output"
            )
        spec.base.env.load_data()
        directory = TuningDirectory(output, spec)
        with held(directory.path):
            try:
                failures = run_tuning(directory, self.address, console)
            except KeyboardInterrupt:
                again = _command("tune", self.tuning, self.output)
                raise KeyboardInterrupt(f"what is done is kept; go on with: {again}") from None
            console.print(tuning_table(directory, write_report(directory, failures)))
        console.print(
            f"written: {directory.path}/tune.md, tune.json and best.yaml    "
            f"watch: {shlex.join(['tensorboard', '--logdir', str(directory.path / 'trials')])}"
        )
        if failures:
            name, reason = next(iter(failures.items()))
            raise UserError(
                f"{len(failures)} of {spec.samples} trials failed, {name} because of: {reason}. Mend that; the same "
                "command goes on with them"
            )


@dataclass(frozen=True)
class Compare:
    """Put runs side by side: settings that differ, learning curves, evaluations."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories, two or more; paths, or URIs (s3://, gs://, hdfs://, file://)."""
    output: Path | None = None
    """Directory for comparison.png and comparison.md; by default the current one."""

    def run(self, console: Console) -> None:
        """Print the tables and write both."""
        from esper_ray.experiments.compare import compare, comparison_figure, comparison_markdown, comparison_tables
        from esper_ray.keeping.storage import at_hand

        if len(self.runs) < 2:
            raise UserError("give two or more run directories to compare")
        output = self.output or Path()
        picture, page = (writable(output / name) for name in ("comparison.png", "comparison.md"))
        with ExitStack() as stack:
            comparison = compare([stack.enter_context(at_hand(run)) for run in dict.fromkeys(self.runs)])
        for table in comparison_tables(comparison):
            console.print(table)
        replace_figure(picture, comparison_figure(comparison))
        replace_text(page, comparison_markdown(comparison))
        console.print(f"written: {picture} and {page.name}")


def _command(name: str, file: Path, output: Path | None) -> str:
    return command(name, file, *(("--output", output) if output else ()))
