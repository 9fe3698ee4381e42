"""What the trainings and controls of a study came to, wherever it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esper_ray.experiments.study.study_directory import StudyDirectory, Training
from esper_ray.experiments.study.study_episodes import StudyPlaying
from esper_ray.experiments.study.study_file import Study
from esper_ray.measuring.controls import FOLLOWING, LEARNED_GREEDY, STATIC_FINAL
from esper_ray.measuring.curves import Curve, read_curves
from esper_ray.measuring.playing import Played

FloatArray = npt.NDArray[np.float64]

SCORE_TAG, SECONDS_TAG = "World/score", "Speed/iteration_seconds"
SHORT_LABELS = {LEARNED_GREEDY: "greedy", STATIC_FINAL: "static final"}


@dataclass(frozen=True)
class TrainingResults:
    """One training, in plain values, as JSON keeps them.

    Attributes:
        seed: Of the training.
        epochs: Host epochs trained, at each point of the learning curve.
        scores: Committed validation score there.
        seconds: That the training took; None if that is not known.
        weights_sha256: Of the policy that has played.
        played: What its policy, and those who follow it, did: by world and policy.
    """

    seed: int
    epochs: list[float]
    scores: list[float]
    seconds: float | None
    weights_sha256: str
    played: dict[str, dict[str, Played]]

    @property
    def curve(self) -> Curve:
        """Score over training."""
        return Curve(np.array(self.epochs, float), np.array(self.scores, float))


@dataclass(frozen=True)
class StudyResults:
    """All of a study.

    Attributes:
        study: What was studied.
        trainings: By arm, one or more.
        controls: By world and control.
    """

    study: Study
    trainings: Mapping[str, Sequence[TrainingResults]]
    controls: Mapping[str, Mapping[str, Played]]

    @classmethod
    def read(cls, directory: StudyDirectory) -> StudyResults:
        """Of a study that is done."""
        trainings: dict[str, list[TrainingResults]] = {arm: [] for arm in directory.study.arms}
        for training in directory.trainings:
            trainings[training.arm].append(training_results(training, directory.evaluations(training)))
        controls = directory.controls()
        return cls(
            directory.study,
            trainings,
            {world: control_results(controls, world) for world in directory.study.worlds},
        )

    def in_world(self, world: str) -> tuple[dict[str, list[Played]], dict[str, str]]:
        """Everybody's episodes there.

        Returns:
            By the name that a report gives a policy, its episodes of every training, arms first; and for those who
            come from an arm's trainings the arm.
        """
        played: dict[str, list[Played]] = {arm: [] for arm in self.trainings}
        origins: dict[str, str] = {}
        for arm, trainings in self.trainings.items():
            for training in trainings:
                for policy, episodes in training.played[world].items():
                    name = f"{arm}, {SHORT_LABELS[policy]}" if policy in FOLLOWING else arm
                    played.setdefault(name, []).append(episodes)
                    origins[name] = arm
        return played | {name: [episodes] for name, episodes in self.controls[world].items()}, origins


def training_results(training: Training, playings: Sequence[StudyPlaying]) -> TrainingResults:
    """Of a training that is finished, and has played."""
    curves = read_curves(training.path, [SCORE_TAG, SECONDS_TAG])
    score, seconds = curves[SCORE_TAG], curves[SECONDS_TAG].values
    return TrainingResults(
        training.seed,
        score.epochs.tolist(),
        score.values.tolist(),
        float(seconds.mean() * training.config.run.iterations) if len(seconds) else None,
        playings[0].settings()["weights_sha256"],
        {playing.evaluation: playing.kept() for playing in playings},
    )


def control_results(controls: Sequence[StudyPlaying], world: str) -> dict[str, Played]:
    """Of the controls that have played in a world, by name."""
    return {
        name: episodes
        for playing in controls
        if playing.evaluation == world
        for name, episodes in playing.kept().items()
    }
