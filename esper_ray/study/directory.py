"""Where the trainings, schedules and episodes of a study lie."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from esper_ray.config import TrainConfig
from esper_ray.controls import BEST_SCHEDULE, FOLLOWING, INDEPENDENT, Trained
from esper_ray.export import file_sha256
from esper_ray.run_directory import RunDirectory
from esper_ray.search.files import read_schedule
from esper_ray.study.definition import Study
from esper_ray.study.playing import Playing


@dataclass(frozen=True)
class Training:
    """One run of a study."""

    arm: str
    seed: int
    config: TrainConfig
    path: Path

    @property
    def iterations_done(self) -> int:
        """Of the latest checkpoint."""
        index = RunDirectory(self.path).index()
        return index["latest"].iteration if index else 0

    def is_finished(self) -> bool:
        """Whether all iterations are done."""
        return self.iterations_done >= self.config.run.iterations

    def open(self) -> RunDirectory:
        """Begin the run, or find what there is of it.

        Raises:
            UserError: it was begun with other settings.
        """
        return RunDirectory.begun(self.path, self.config)


class StudyDirectory:
    """``runs/ARM/seed-K`` with the trainings, ``episodes/EVALUATION/POLICY.json`` and the report.

    Args:
        path: Made if absent.
        study: What is studied.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = path.resolve(), study

    @property
    def trainings(self) -> list[Training]:
        """All of them, seed by seed."""
        return [
            Training(
                arm,
                seed,
                dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed)),
                self.path / "runs" / arm / f"seed-{seed}",
            )
            for seed in self.study.seeds
            for arm, config in self.study.configs.items()
        ]

    def schedule_path(self, evaluation: str) -> Path:
        """File of the best schedule for a world."""
        return self.path / "schedules" / f"{evaluation}.json"

    def searches(self) -> dict[str, Path]:
        """By world the file of its best schedule, if the study asks for it."""
        wanted = self.study.worlds if BEST_SCHEDULE in self.study.controls else {}
        return {evaluation: self.schedule_path(evaluation) for evaluation in wanted}

    def controls(self) -> list[Playing]:
        """The independent controls' episodes in all worlds, but for schedules that are yet to be found."""
        return [
            self._playing(control, None, evaluation, None)
            for evaluation in self.study.worlds
            for control in self.study.controls
            if control in INDEPENDENT and (control != BEST_SCHEDULE or self.schedule_path(evaluation).is_file())
        ]

    def evaluations(self, training: Training) -> list[Playing]:
        """A trained policy's episodes in all worlds.

        Raises:
            UserError: it has no checkpoint.
        """
        trained = Trained.open(training.path, self.study.checkpoint)
        digest = file_sha256(trained.weights)
        return [
            self._playing(training.arm, training.seed, evaluation, trained, digest) for evaluation in self.study.worlds
        ]

    def _playing(
        self,
        policy: str,
        seed: int | None,
        evaluation: str,
        trained: Trained | None,
        weights_sha256: str | None = None,
    ) -> Playing:
        study = self.study
        name = policy if seed is None else f"{policy}.seed-{seed}"
        return Playing(
            policy,
            seed,
            evaluation,
            study.worlds[evaluation],
            trained,
            weights_sha256,
            () if trained is None else tuple(control for control in FOLLOWING if control in study.controls),
            read_schedule(self.schedule_path(evaluation)) if policy == BEST_SCHEDULE else None,
            study.episodes,
            study.evaluation_seed,
            self.path / "episodes" / evaluation / f"{name}.json",
        )
