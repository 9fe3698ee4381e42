"""A packet of a chain of layers in which everything is measured, for tests to change."""

import math

from envs.action_masks import mask_size
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import SeedStage
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
from policies.strategic.messages import KEYS, SeedState, SystemState

SLOTS = SlotConfig.for_row(2)
METRICS = {"loss": 0.7, "gradient_norm": 1.3, "samples_per_s": 4000.0, "hook_latency_ms": 9.0}


def wave(count, start=0.2, step=0.37):
    """Different numbers between 0 and 1."""
    return tuple(0.5 + 0.5 * math.sin(start + step * at) for at in range(count))


def steps(count, lengths):
    """Edges from each of so many to the ones so far behind."""
    pairs = [(at, at + step) for step in lengths for at in range(count - step)]
    return {"source": tuple(source for source, _ in pairs), "target": tuple(target for _, target in pairs)}


def chain(layers=4, seeds=2):
    """Layers that the next two read, each with an activation that reads it and the one before; one parameter group."""
    names = tuple(f"layer{at}" for at in range(layers))
    rows = tuple(range(layers))
    to_next, to_same = steps(layers, (1, 2)), steps(layers, (0, 1))
    return Graph(
        layers=Layers(
            name=names,
            layer_type=tuple(("conv2d", "linear")[at % 2] for at in rows),
            input_channels=tuple(8 + at for at in rows),
            output_channels=tuple(9 + at for at in rows),
            activation_type=("relu",) * layers,
            dropout_rate=wave(layers, 0.1),
            weight_norm=wave(layers, 0.3),
            gradient_norm=wave(layers, 0.5),
            update_frequency=wave(layers, 0.7),
            loss_share=wave(layers, 0.9),
            in_degree=tuple(int(at > 0) for at in rows),
            out_degree=tuple(int(at < layers - 1) for at in rows),
            depth=tuple(at / max(layers - 1, 1) for at in rows),
        ),
        layer_count=layers,
        activations=Activations(
            name=names,
            activation_type=("relu",) * layers,
            saturation_rate=wave(layers, 1.1),
            gradient_flow=wave(layers, 1.3),
            computational_cost=wave(layers, 1.5),
        ),
        parameters=Parameters(
            name=("all",),
            count=(1234,),
            learning_rate=(0.03,),
            momentum=(0.8,),
            gradient_variance=(0.02,),
            optimizer_family=("sgd",),
        ),
        connects=Connects(
            **to_next,
            connection_strength=wave(len(to_next["source"])),
            data_flow_volume=wave(len(to_next["source"]), 0.4),
            latency_ms=wave(len(to_next["source"]), 0.6),
        ),
        feeds=Feeds(
            **to_same,
            activation_frequency=wave(len(to_same["source"])),
            saturation_events=wave(len(to_same["source"]), 0.8),
        ),
        influences=Influences(
            **to_next,
            gradient_contribution=wave(len(to_next["source"]), 1.2),
            nonlinearity_strength=wave(len(to_next["source"]), 1.4),
        ),
        tunes=Tunes(
            source=(0,) * layers, target=rows, update_magnitude=wave(layers, 1.6), convergence_rate=wave(layers)
        ),
        allowed=Allowed(
            source=tuple(range(seeds)), target=(0,) * seeds, method=("linear", "sigmoid", "cosine")[:seeds]
        ),
    )


def seed(slot="r0c0", stage=SeedStage.TRAINING, **fields):
    """A seed of which everything is measured that is not in Obs V3."""
    known = {
        "blueprint": "norm",
        "kind": "small",
        "specialisation": "texture",
        "scope": 0.5,
        "risk_tolerance": 0.4,
        "activity_level": 0.3,
        "success_rate": 0.6,
        "risk": 0.2,
        "quarantine_only": False,
        "allowed_blending_methods": ("linear", "sigmoid"),
        "monitored_layers": Monitors(
            layer=(0, 2), monitoring_frequency=(1.0, 2.0), adaptation_trigger_threshold=(0.1, 0.3)
        ),
    }
    return SeedState(slot=slot, stage=stage, **(known | fields))


def state(graph=None, seeds=None, slots=SLOTS, **fields):
    """A packet of :func:`chain`, with a seed in the first slot and none in the second."""
    if seeds is None:
        seeds = (seed(), SeedState(slot="r0c1", stage=SeedStage.DORMANT))
    known = {
        "metrics": METRICS,
        "observation": tuple(wave(ObservationLayout(slots).size)),
        "action_mask": (1,) * mask_size(slots.heads),
        "internal_levels": slots.internal_levels,
    }
    if not seeds:
        known = {"metrics": METRICS}
    return SystemState(
        run_id="run",
        packet_id="packet",
        timestamp_ns=0,
        declared=KEYS,
        epoch=3,
        graph=chain(seeds=len(seeds)) if graph is None else graph,
        seeds=seeds,
        **(known | fields),
    )


def changed(message, **fields):
    """A message with other fields, checked anew."""
    return type(message)(**(dict(message) | fields))
