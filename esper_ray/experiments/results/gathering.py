"""Puts kept figures together again, of one code each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from esper_ray.experiments.results.kept_units import KeptUnits, Made
from esper_ray.experiments.results.plan import Plan, Unit
from esper_ray.experiments.study.study_results import StudyResults, TrainingResults
from esper_ray.keeping.packed import unpack
from esper_ray.measuring.playing import Played
from esper_ray.measuring.search.host_pool import HostPool


@dataclass(frozen=True)
class Gathered:
    """What is known of a study.

    Attributes:
        name: Of the study.
        results: Of the trainings that are done.
        pools: By world, what searches on its first hosts can try.
        made: By unit, how its figures came about; all by the same code.
        missing: Units that are to be made by that code.
        current: Whether that is the code as it is now.
    """

    name: str
    results: StudyResults
    pools: Mapping[str, HostPool]
    made: Mapping[Unit, Made]
    missing: tuple[Unit, ...]
    current: bool


def gather(plan: Plan, kept: KeptUnits, name: str) -> Gathered | None:
    """What is known of a study by one code: the one at hand, if a table can be made of what it has, or an older one.

    Figures of different codes never meet in a table.

    Args:
        plan: The studies.
        kept: Where figures are.
        name: Of the study.

    Returns:
        None where no code has all controls, and a training of every arm.

    Raises:
        UserError: a damaged file.
    """
    units = [unit for unit in plan.units() if unit.study == name]
    made = {unit: of for unit in units if (of := kept.made(unit)) is not None}
    count = Counter(of.code for of in made.values())
    for code in sorted(count, key=lambda code: (code == plan.hashes[name], count[code]), reverse=True):
        by_code = {unit: of for unit, of in made.items() if of.code == code}
        needed = {unit for unit in units if unit.kind == "controls"}
        arms = {unit.of for unit in by_code if unit.kind == "training"}
        if needed <= by_code.keys() and arms == set(plan.studies[name].arms):
            missing = tuple(unit for unit in units if unit not in by_code)
            return _gathered(plan, kept, name, by_code, missing, code == plan.hashes[name])
    return None


def _gathered(
    plan: Plan, kept: KeptUnits, name: str, made: Mapping[Unit, Made], missing: tuple[Unit, ...], current: bool
) -> Gathered:
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
            arrays = {field: unpack(text) for field, text in figures.pool.items()}
            pools[unit.of] = HostPool(**{field: array.astype(np.float64) for field, array in arrays.items()})
    return Gathered(name, StudyResults(study, trainings, controls), pools, made, missing, current)
