"""The words of the world: stages, operations, blueprints, heads, and the sizes that follow from them.

Pure Python, imported by everything, importing nothing. Every size used elsewhere is derived from these
enumerations.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class SeedStage(IntEnum):
    """Life of a slot. GERMINATED..FOSSILIZED are *living*: occupied, paying rent, holding parameters."""

    UNKNOWN = 0
    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    HOLDING = 5
    FOSSILIZED = 6
    PRUNED = 7
    EMBARGOED = 8
    RESETTING = 9


TRANSITIONS: dict[SeedStage, tuple[SeedStage, ...]] = {
    SeedStage.UNKNOWN: (SeedStage.DORMANT,),
    SeedStage.DORMANT: (SeedStage.GERMINATED,),
    SeedStage.GERMINATED: (SeedStage.TRAINING, SeedStage.PRUNED),
    SeedStage.TRAINING: (SeedStage.BLENDING, SeedStage.PRUNED),
    SeedStage.BLENDING: (SeedStage.HOLDING, SeedStage.PRUNED),
    SeedStage.HOLDING: (SeedStage.FOSSILIZED, SeedStage.BLENDING, SeedStage.PRUNED),
    SeedStage.FOSSILIZED: (),
    SeedStage.PRUNED: (SeedStage.EMBARGOED,),
    SeedStage.EMBARGOED: (SeedStage.RESETTING,),
    SeedStage.RESETTING: (SeedStage.DORMANT,),
}
"""Every stage change that can happen within an episode (an episode's end removes seeds outright)."""


def stages_before(stage: SeedStage) -> tuple[SeedStage, ...]:
    """The stages from which a slot can enter ``stage``."""
    return tuple(before for before, then in TRANSITIONS.items() if stage in then)


DEVELOPING_STAGES = stages_before(SeedStage.PRUNED)
"""Stages of a seed whose fate is open."""

LIVING_STAGES = (*DEVELOPING_STAGES, SeedStage.FOSSILIZED)
"""Stages in which a slot is occupied."""

COMPUTING_STAGES = tuple(stage for stage in LIVING_STAGES if stage != SeedStage.GERMINATED)
"""Stages of a seed that has weights."""

ADVANCES = {
    before: then
    for before in DEVELOPING_STAGES
    for then in TRANSITIONS[before]
    if then in DEVELOPING_STAGES and then > before
}
"""Where ADVANCE leads from each stage that has a next one."""

RETARGETABLE_STAGES = (
    SeedStage.BLENDING,
    *(stage for stage in stages_before(SeedStage.BLENDING) if stage not in ADVANCES),
)
"""Stages with an alpha that can be given another target: BLENDING, and what falls back to it."""


class LifecycleOp(IntEnum):
    """The first head of the action: what to do this epoch. The last two exist with internal levels only."""

    WAIT = 0
    GERMINATE = 1
    SET_ALPHA_TARGET = 2
    PRUNE = 3
    FOSSILIZE = 4
    ADVANCE = 5
    GROW_INTERNAL = 6
    SHRINK_INTERNAL = 7


class Blueprint(IntEnum):
    """Kinds of seed module. An empty slot is ``NO_BLUEPRINT`` in an observation.

    Those with an internal structure (``INTERNAL_KINDS``) come last and exist with internal levels only.
    """

    NOOP = 0
    CONV_LIGHT = 1
    ATTENTION = 2
    NORM = 3
    DEPTHWISE = 4
    BOTTLENECK = 5
    CONV_SMALL = 6
    CONV_HEAVY = 7
    LORA = 8
    LORA_LARGE = 9
    MLP_SMALL = 10
    MLP = 11
    FLEX_ATTENTION = 12
    CONV_LADDER = 13


NO_BLUEPRINT = -1


class SeedInternalKind(IntEnum):
    """Structure inside a seed that can be grown and shrunk while the seed lives."""

    NONE = 0
    CONV_LADDER = 1


INTERNAL_KINDS: dict[Blueprint, SeedInternalKind] = {Blueprint.CONV_LADDER: SeedInternalKind.CONV_LADDER}
"""Internal structure of each blueprint that has one; the others' is NONE."""

INTERNAL_MAX_LEVEL = {SeedInternalKind.NONE: 1, SeedInternalKind.CONV_LADDER: 4}
"""Highest level of each kind, at least 1 always."""

INTERNAL_START_LEVEL = {SeedInternalKind.NONE: 0, SeedInternalKind.CONV_LADDER: 1}
"""Level of each kind at germination."""

INTERNAL_OPS = (LifecycleOp.GROW_INTERNAL, LifecycleOp.SHRINK_INTERNAL)


class AlphaMode(IntEnum):
    """Whether alpha rests, moves along a ramp, or jumped this epoch. HOLD and STEP are *settled*."""

    HOLD = 0
    RAMP = 1
    STEP = 2


class AlphaAlgorithm(IntEnum):
    """How a seed's delta enters the host."""

    ADD = 0
    MULTIPLY = 1
    GATE = 2


class AlphaCurve(IntEnum):
    """Shape of an alpha ramp; the sigmoids differ in steepness (see ``SIGMOID_STEEPNESS``)."""

    LINEAR = 0
    COSINE = 1
    SIGMOID_GENTLE = 2
    SIGMOID = 3
    SIGMOID_SHARP = 4


SIGMOID_STEEPNESS = {AlphaCurve.SIGMOID_GENTLE: 6.0, AlphaCurve.SIGMOID: 12.0, AlphaCurve.SIGMOID_SHARP: 24.0}


class RampShape(IntEnum):
    """How a seed is blended in over the part of a window that a blending schedule gives it.

    A table of its own: the length of ``AlphaCurve`` is the size of a head, which stored weights keep.
    """

    LINEAR = 0
    COSINE = 1
    WARMUP_HOLD = 2
    SIGMOID = 3


NO_SHAPE = -1
"""In place of a ``RampShape``: the seed is blended in by the curve of its style."""

BLENDING_METHODS = tuple(shape.name.lower() for shape in RampShape)
"""The shapes as they are spelled in messages and registries, in their order."""

RAMP_SIGMOID_STEEPNESS = 10.0


class GerminationStyle(IntEnum):
    """A pair: the alpha curve used at blending, and the algorithm (``STYLE_CURVE``, ``STYLE_ALGORITHM``)."""

    LINEAR_ADD = 0
    LINEAR_MULTIPLY = 1
    SIGMOID_ADD = 2
    GATED_GATE = 3


STYLE_CURVE = (AlphaCurve.LINEAR, AlphaCurve.LINEAR, AlphaCurve.SIGMOID, AlphaCurve.SIGMOID)
STYLE_ALGORITHM = (AlphaAlgorithm.ADD, AlphaAlgorithm.MULTIPLY, AlphaAlgorithm.ADD, AlphaAlgorithm.GATE)


class Tempo(IntEnum):
    """Choice of the ramp from TRAINING's end to the alpha target; ``TEMPO_EPOCHS`` gives its length."""

    FAST = 0
    STANDARD = 1
    SLOW = 2


TEMPO_EPOCHS = (3, 5, 8)


class AlphaTarget(IntEnum):
    """Choice of the alpha to reach; ``ALPHA_TARGET_VALUES`` gives it."""

    HALF = 0
    SEVENTY = 1
    FULL = 2


ALPHA_TARGET_VALUES = (0.5, 0.7, 1.0)


class AlphaSpeed(IntEnum):
    """Choice of a retarget's or prune's ramp; ``ALPHA_SPEED_EPOCHS`` gives its length (0: at once)."""

    INSTANT = 0
    FAST = 1
    MEDIUM = 2
    SLOW = 3


ALPHA_SPEED_EPOCHS = (0, 3, 5, 8)


@dataclass(frozen=True)
class HeadSpec:
    """One head of a factored action.

    Attributes:
        name: Key in logs and dicts.
        size: Number of choices.
        choices: A name per choice, for logs and pictures.
        needed_by: Values of the first head for which this head matters. The first head itself matters
            always and lists all of its own values.
        masked_by_op: The head's mask has one row per value of the first head instead of a single row.
        entropy_coefficient: Weight of the head's entropy bonus among the heads: above 1 for choices that are made
            rarely or have many entries.
    """

    name: str
    size: int
    choices: tuple[str, ...]
    needed_by: tuple[int, ...]
    masked_by_op: bool = False
    entropy_coefficient: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1 or len(self.choices) != self.size:
            raise ValueError(
                f"head {self.name!r} has size {self.size} but {len(self.choices)} named choices: give one name each"
            )


HEADS_NEEDED: dict[LifecycleOp, tuple[str, ...]] = {
    LifecycleOp.WAIT: ("op",),
    LifecycleOp.GERMINATE: ("op", "slot", "blueprint", "style", "tempo", "alpha_target"),
    LifecycleOp.SET_ALPHA_TARGET: ("op", "slot", "style", "alpha_target", "alpha_speed", "alpha_curve"),
    LifecycleOp.PRUNE: ("op", "slot", "alpha_speed", "alpha_curve"),
    LifecycleOp.FOSSILIZE: ("op", "slot"),
    LifecycleOp.ADVANCE: ("op", "slot"),
    LifecycleOp.GROW_INTERNAL: ("op", "slot"),
    LifecycleOp.SHRINK_INTERNAL: ("op", "slot"),
}
"""Which heads matter for which op: the one table behind masks, log-probabilities, loss and metrics."""

_HEAD_ENUMS: dict[str, type[IntEnum]] = {
    "style": GerminationStyle,
    "tempo": Tempo,
    "alpha_target": AlphaTarget,
    "alpha_speed": AlphaSpeed,
    "alpha_curve": AlphaCurve,
}

_ENTROPY_COEFFICIENTS = {
    "op": 1.0,
    "slot": 1.0,
    "blueprint": 1.3,
    "style": 1.2,
    "tempo": 1.3,
    "alpha_target": 1.2,
    "alpha_speed": 1.2,
    "alpha_curve": 1.2,
}

HEAD_NAMES = ("op", "slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve")
"""Order of the heads everywhere: action columns, tensors, dicts, logs."""


def ops_in_use(internal_levels: bool) -> tuple[LifecycleOp, ...]:
    """The ops of a world with or without internal levels, numbered from 0 without a gap."""
    return tuple(op for op in LifecycleOp if internal_levels or op not in INTERNAL_OPS)


def blueprints_in_use(internal_levels: bool) -> tuple[Blueprint, ...]:
    """The blueprints of a world with or without internal levels, numbered from 0 without a gap."""
    return tuple(blueprint for blueprint in Blueprint if internal_levels or blueprint not in INTERNAL_KINDS)


def head_specs(slot_ids: tuple[str, ...], internal_levels: bool = False) -> tuple[HeadSpec, ...]:
    """The eight heads of a world, in ``HEAD_NAMES`` order.

    Args:
        slot_ids: Slots of its hosts.
        internal_levels: Whether seeds can be grown and shrunk inside.
    """
    ops, blueprints = ops_in_use(internal_levels), blueprints_in_use(internal_levels)
    choices = {
        "op": tuple(op.name for op in ops),
        "slot": slot_ids,
        "blueprint": tuple(blueprint.name for blueprint in blueprints),
        **{name: tuple(member.name for member in enum) for name, enum in _HEAD_ENUMS.items()},
    }
    return tuple(
        HeadSpec(
            name,
            len(choices[name]),
            choices[name],
            needed_by=tuple(int(op) for op in ops if name in HEADS_NEEDED[op]),
            masked_by_op=name == "slot",
            entropy_coefficient=_ENTROPY_COEFFICIENTS[name],
        )
        for name in HEAD_NAMES
    )
