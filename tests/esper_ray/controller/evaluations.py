"""Packets, proposals and sheets for the controller's tests."""

from dataclasses import dataclass

from hypothesis import strategies as st

from envs.vocabulary import (
    HEADS_NEEDED,
    AlphaCurve,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    SeedStage,
    Tempo,
)
from esper_ray.controller.commands import SeedOperation, Severity
from policies.strategic.messages import KEYS, Budgets, SeedState, SystemState

DECLARED = tuple(key for key in KEYS if key.startswith(("run.", "metrics.", "seeds.")))
EMPTY = SeedState(slot="stem", stage=SeedStage.DORMANT)


@dataclass(frozen=True)
class Sheet:
    risk: float | None = 0.0
    quarantined: str | None = None
    hazard: Severity | None = None


def packet(epoch=1, seeds=(EMPTY,), **fields):
    return SystemState(
        run_id="run", packet_id=str(epoch), timestamp_ns=0, declared=DECLARED, epoch=epoch, seeds=seeds, **fields
    )


def seed(stage=SeedStage.TRAINING, blueprint="norm", slot="stem", **fields):
    return SeedState(slot=slot, stage=stage, blueprint=blueprint, seed_id=f"{blueprint} 1", **fields)


def operation(op, **heads):
    known = {
        "slot": "stem",
        "blueprint": Blueprint.NORM,
        "style": GerminationStyle.LINEAR_ADD,
        "tempo": Tempo.STANDARD,
        "alpha_target": AlphaTarget.FULL,
        "alpha_speed": AlphaSpeed.FAST,
        "alpha_curve": AlphaCurve.LINEAR,
    } | heads
    return SeedOperation(op=op, **{name: known[name] for name in HEADS_NEEDED[op] if name != "op"})


WAIT, GERMINATE, PRUNE = (operation(op) for op in (LifecycleOp.WAIT, LifecycleOp.GERMINATE, LifecycleOp.PRUNE))


METRIC_VALUES = {
    "gradient_norm": (1.0, 30.0),
    "samples_per_s": (0.0, 50.0, 100.0),
    "hook_latency_ms": (1.0, 75.0),
    "apply_ms": (0.0, 31.0, 1e30),
    "grad_var": (0.0, 2.0),
    "grad_conflict_rate": (0.5, 0.6),
    "gpu_util_percent": (10.0, 100.0),
    "gpu_mem_free_gb": (0.0, 4.0),
    "cpu_util_percent": (95.0, 10.0),
    "process_memory_share": (0.1, 0.9, 1.0),
    "isolation_violations": (0.0, 1.0),
}
LOSSES = st.sampled_from((None, 0.0, 0.5, 0.6, 1.0, 1e30))
LIVING = st.builds(
    seed,
    st.sampled_from((SeedStage.GERMINATED, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED)),
    age_epochs=st.sampled_from((None, 0, 51)),
    quarantine_only=st.sampled_from((None, False, True)),
)


@st.composite
def seen_packets(draw):
    """Packets with any of what signals read, on either side of where they begin."""
    seeds = tuple(draw(LIVING | st.just(EMPTY)).model_copy(update={"slot": slot}) for slot in ("stem", "head"))
    return packet(
        draw(st.integers(0, 12)),
        seeds,
        validation_loss=draw(LOSSES),
        training_loss=draw(LOSSES),
        metrics=draw(st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in METRIC_VALUES.items()})),
        budgets=draw(st.sampled_from((None, Budgets(), Budgets(living_seeds=1)))),
    )
