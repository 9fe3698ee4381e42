"""Where the trainings, schedules and episodes of a study lie."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from esper_ray.config import TrainConfig
from esper_ray.errors import UserError
from esper_ray.experiments.study.study_episodes import StudyPlaying
from esper_ray.experiments.study.study_file import Study
from esper_ray.keeping.run_directory import RunDirectory
from esper_ray.measuring.controls import BEST_SCHEDULE, FOLLOWING, INDEPENDENT, TRAINING_SCHEDULE
from esper_ray.measuring.search.schedule_files import read_schedule
from esper_ray.measuring.trained import Trained
from policies.learned import LEARNED


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
        run = RunDirectory(self.path)
        return run.iterations_done() if run.config_path.is_file() else 0

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
        path: Made if absent. A study that takes the trainings of another one expects that one's directory beside it.
        study: What is studied.

    Attributes:
        trainer: Where the trainings lie: the other study's directory, or this one.

    Raises:
        UserError: it would be the other study's directory.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = path.resolve(), study
        self.trainer = self
        if study.trained_by is not None:
            self.trainer = StudyDirectory(self.path.with_name(study.trained_by), study.trainer)
            if self.trainer.path == self.path:
                raise UserError(f"{path} is for the study {study.trained_by!r}: give another --output beside it")

    @property
    def trainings(self) -> list[Training]:
        """All of them, seed by seed."""
        return [
            Training(
                arm,
                seed,
                dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed)),
                self.trainer.path / "runs" / arm / f"seed-{seed}",
            )
            for seed in self.study.seeds
            for arm, config in self.study.configs.items()
        ]

    def schedule_path(self, evaluation: str) -> Path:
        """File of the best schedule for a world."""
        return self.path / "schedules" / f"{evaluation}.json"

    def lacking(self) -> list[str]:
        """What the study needs of another one's directory and does not find there, in words."""
        if self.trainer is self:
            return []
        lacking = [f"{training.arm}, seed {training.seed}" for training in self.trainings if not training.is_finished()]
        if TRAINING_SCHEDULE in self.study.controls and not self._training_schedule().is_file():
            lacking.append("the best schedule")
        return lacking

    def _training_schedule(self) -> Path:
        return self.trainer.schedule_path(self.study.training_evaluation())

    def _schedule_of(self, policy: str, evaluation: str) -> Path | None:
        """File of the schedule that a control plays in a world, if it is one that was searched for."""
        if policy == BEST_SCHEDULE:
            return self.schedule_path(evaluation)
        return self._training_schedule() if policy == TRAINING_SCHEDULE else None

    def searches(self) -> dict[str, Path]:
        """By world the file of its best schedule, if the study asks for it."""
        wanted = self.study.worlds if BEST_SCHEDULE in self.study.controls else {}
        return {evaluation: self.schedule_path(evaluation) for evaluation in wanted}

    def controls(self) -> list[StudyPlaying]:
        """The independent controls' episodes in all worlds, but for schedules that are yet to be found."""
        return [
            self._playing(control, evaluation, (control,))
            for evaluation in self.study.worlds
            for control in self.study.controls
            if control in INDEPENDENT
            and ((schedule := self._schedule_of(control, evaluation)) is None or schedule.is_file())
        ]

    def evaluations(self, training: Training) -> list[StudyPlaying]:
        """A trained policy's episodes in all worlds.

        Raises:
            UserError: it has no checkpoint.
        """
        trained = Trained.open(training.path, self.study.checkpoint)
        policies = (LEARNED, *(control for control in FOLLOWING if control in self.study.controls))
        return [
            self._playing(training.arm, evaluation, policies, training.seed, trained)
            for evaluation in self.study.worlds
        ]

    def _playing(
        self,
        policy: str,
        evaluation: str,
        policies: tuple[str, ...],
        seed: int | None = None,
        trained: Trained | None = None,
    ) -> StudyPlaying:
        schedule = self._schedule_of(policy, evaluation)
        name = policy if seed is None else f"{policy}.seed-{seed}"
        return StudyPlaying(
            self.study.worlds[evaluation],
            policies,
            trained,
            None if schedule is None else read_schedule(schedule),
            self.study.episodes,
            self.study.evaluation_seed,
            policy,
            evaluation,
            self.path / "episodes" / evaluation / f"{name}.json",
        )
