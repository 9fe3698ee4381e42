"""Puts kept figures together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esper_ray.experiments.results.kept_units import KeptUnits, Made
from esper_ray.experiments.results.plan import Plan, Unit
from esper_ray.experiments.study.study_results import StudyResults, TrainingResults
from esper_ray.measuring.playing import Played
from esper_ray.measuring.search.host_pool import HostPool


@dataclass(frozen=True)
class Gathered:
    """What is known of a study.

    Attributes:
        name: Of the study.
        results: Of the trainings that are done.
        pools: By world, what searches on its first hosts can try.
        made: By unit, how its figures came about; all by the code as it is now.
        missing: Units that are yet to be made.
    """

    name: str
    results: StudyResults
    pools: Mapping[str, HostPool]
    made: Mapping[Unit, Made]
    missing: tuple[Unit, ...]


def gather(plan: Plan, kept: KeptUnits, name: str) -> Gathered | None:
    """What the code and the study's file, as they are now, have found; figures of any others are not looked at.

    Args:
        plan: The studies.
        kept: Where figures are.
        name: Of the study.

    Returns:
        None where controls are missing, or a training of some arm.

    Raises:
        UserError: a damaged file.
    """
    units = [unit for unit in plan.units() if unit.study == name]
    made = {unit: of for unit in units if (of := kept.made(unit)) is not None and of.code == plan.hashes[name]}
    needed = {unit for unit in units if unit.kind == "controls"}
    arms = {unit.of for unit in made if unit.kind == "training"}
    if not needed <= made.keys() or arms != set(plan.studies[name].arms):
        return None
    return _gathered(plan, kept, name, made, tuple(unit for unit in units if unit not in made))


def _gathered(plan: Plan, kept: KeptUnits, name: str, made: Mapping[Unit, Made], missing: tuple[Unit, ...]) -> Gathered:
    study = plan.studies[name]
    trainings: dict[str, list[TrainingResults]] = {arm: [] for arm in study.arms}
    controls: dict[str, dict[str, Played]] = {}
    pools = {}
    for unit in made:
        figures = kept.figures(unit)
        if unit.kind == "training":
            trainings[unit.of].append(figures)
        elif unit.kind == "controls":
            controls[unit.of] = figures.played
        else:
            pools[unit.of] = HostPool.of_texts(figures.pool)
    return Gathered(name, StudyResults(study, trainings, controls), pools, made, missing)
