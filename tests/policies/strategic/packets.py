"""Packets of all shapes, for Hypothesis."""

from hypothesis import strategies as st

from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, SeedStage
from policies.strategic.graph_columns import (
    Activations,
    Allowed,
    Connects,
    Feeds,
    Graph,
    Influences,
    Layers,
    Monitors,
    Parameters,
    Tunes,
)
from policies.strategic.messages import KEYS, Budgets, Hardware, SeedState, SystemState, flat_sizes
from policies.strategic.packet_values import METRICS

NAMES = st.text(min_size=1, max_size=6)
NOT_NEGATIVE = st.floats(0.0, 1e30)
SHARES = st.floats(0.0, 1.0)
COUNTS = st.integers(1, 2**53)
TEXTS = ("layer_type", "activation_type", "optimizer_family")
WHOLE = ("input_channels", "output_channels", "in_degree", "out_degree", "count")
OF_SHARES = (
    *("dropout_rate", "update_frequency", "loss_share", "depth", "saturation_rate", "momentum"),
    *("activation_frequency", "nonlinearity_strength"),
)


def entries(name):
    if name in TEXTS:
        return NAMES
    return COUNTS if name in WHOLE else SHARES if name in OF_SHARES else NOT_NEGATIVE


@st.composite
def tables(draw, kind, keys, size):
    """A table with ``keys`` and any of its measured columns, with gaps."""
    columns = {}
    for name, field in kind.model_fields.items():
        if not field.is_required() and draw(st.booleans()):
            columns[name] = tuple(draw(st.lists(st.none() | entries(name), min_size=size, max_size=size)))
    return kind(**keys, **columns)


@st.composite
def nodes(draw, kind, most):
    names = draw(st.lists(NAMES, max_size=most, unique=True))
    return draw(tables(kind, {"name": tuple(names)}, len(names)))


@st.composite
def edges(draw, kind, sources, targets, **more):
    pairs = []
    if sources and targets:
        pair = st.tuples(st.integers(0, sources - 1), st.integers(0, targets - 1), *more.values())
        pairs = draw(st.lists(pair, max_size=6, unique=True))
    keys = dict(zip(("source", "target", *more), zip(*pairs, strict=True), strict=True)) if pairs else {}
    return draw(tables(kind, {name: keys.get(name, ()) for name in ("source", "target", *more)}, len(pairs)))


@st.composite
def graphs(draw, seeds):
    layers, activations = draw(nodes(Layers, 5)), draw(nodes(Activations, 3))
    parameters = draw(nodes(Parameters, 3))
    more = draw(st.integers(0, 10**6))
    return Graph(
        layers=layers,
        layer_count=layers.size + more,
        sampled=more > 0,
        activations=activations,
        parameters=parameters,
        connects=draw(edges(Connects, layers.size, layers.size)),
        feeds=draw(edges(Feeds, layers.size, activations.size)),
        influences=draw(edges(Influences, activations.size, layers.size)),
        tunes=draw(edges(Tunes, parameters.size, layers.size)),
        allowed=draw(edges(Allowed, seeds, parameters.size, method=st.sampled_from(BLENDING_METHODS))),
    )


@st.composite
def seed_states(draw, slot, layers):
    stage = draw(st.sampled_from(SeedStage))
    seed = SeedState(slot=slot, stage=stage)
    if not seed.is_living or draw(st.booleans()):
        return seed
    watched = draw(st.none() | st.lists(st.integers(0, layers - 1), max_size=3, unique=True)) if layers else None
    level = draw(st.integers(0, 4))
    return SeedState(
        slot=slot,
        stage=stage,
        seed_id=draw(st.none() | NAMES),
        blueprint=draw(st.none() | NAMES),
        alpha=draw(st.none() | SHARES),
        alpha_schedule=draw(st.none() | NAMES),
        internal_level=level,
        internal_max_level=max(level, 1),
        risk=draw(st.none() | st.floats(-2.0, 2.0)),
        activity_level=draw(st.none() | SHARES),
        quarantine_only=draw(st.none() | st.booleans()),
        allowed_blending_methods=draw(st.none() | st.just(BLENDING_METHODS[:2])),
        monitored_layers=None if watched is None else draw(tables(Monitors, {"layer": tuple(watched)}, len(watched))),
    )


def sent_keys(state):
    return [key for key in KEYS if any(value is not None for value in state.measurements(key))]


@st.composite
def packets(draw, most_seeds=3):
    """A :class:`SystemState`: without seeds, without layers, without edges, sampled or whole."""
    slots = SlotConfig.for_row(draw(st.integers(1, most_seeds))).slot_ids if draw(st.booleans()) else ()
    graph = draw(graphs(len(slots)))
    metrics = draw(st.lists(st.sampled_from(tuple(METRICS)), unique=True))
    internal_levels = draw(st.booleans())
    sizes = flat_sizes(len(slots), internal_levels)
    observed = draw(st.booleans())
    state = SystemState(
        run_id=draw(NAMES),
        packet_id=draw(NAMES),
        timestamp_ns=draw(st.integers(0, 2**63 - 1)),
        declared=KEYS,
        epoch=draw(st.integers(0, 200)),
        max_epochs=draw(st.none() | st.integers(1, 200)),
        validation_loss=draw(st.none() | NOT_NEGATIVE),
        validation_accuracy=draw(st.none() | st.floats(0.0, 100.0)),
        metrics={name: draw(st.floats(METRICS[name].least, METRICS[name].most)) for name in metrics},
        graph=graph,
        seeds=tuple(draw(seed_states(slot, graph.layers.size)) for slot in slots),
        internal_levels=internal_levels,
        budgets=draw(st.none() | st.just(Budgets(living_seeds=2))),
        observation=(0.5,) * sizes["observation"] if observed else None,
        blueprint_indices=(-1,) * sizes["blueprint_indices"] if observed else None,
        action_mask=(1,) * sizes["action_mask"] if observed else None,
        hardware=draw(st.none() | st.just(Hardware(device="cpu", cpu_cores=2))),
    )
    declared = dict.fromkeys([*sent_keys(state), *draw(st.lists(st.sampled_from(KEYS)))])
    return SystemState(**{**dict(state), "declared": tuple(declared)})
