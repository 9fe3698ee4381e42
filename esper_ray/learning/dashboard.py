"""How TensorBoard presents a run: pages of charts, histograms of what the policy chose, hyperparameters.

Everything goes through the run's own writer. SummaryWriter.add_hparams would open a second run beside it for the
hyperparameters alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.metadata import create_summary_metadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.hparams.api_pb2 import Experiment, HParamInfo
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from esper_ray.config import TrainConfig

LAYOUT: dict[str, dict[str, list[str]]] = {
    "World": {
        "score: accuracy/100 minus rent": ["World/score$", "World/score_by_(horizon|task)/.*"],
        "accuracy of the committed network, %": ["World/accuracy$"],
        "parameters of the committed network": ["World/parameters$"],
        "components of the return": ["World/reward/.*"],
        "seeds per episode, by fate": ["World/seeds/.*"],
        "share of episodes that the governor stopped": ["World/governor_stops$"],
    },
    "Policy": {
        "share of each op": ["Policy/op_share/.*"],
        "share of each blueprint among the germinations": ["Policy/blueprint_share/.*"],
        "entropy where a head is available, 1 = uniform": ["Policy/entropy_available/.*"],
        "largest ratio of new to old probability": ["Policy/ratio_max/.*"],
        "share of clipped ratios": ["Policy/clip_share/.*"],
        "divergence from the rollout's policy": ["Policy/kl$"],
    },
    "Critic": {
        "squared errors of V and Q, scaled": ["Critic/(q_)?value_loss$"],
        "error over spread of returns": ["Critic/value_nrmse$"],
        "explained variance": ["Critic/explained_variance$"],
        "largest minus smallest Q": ["Critic/q_spread$"],
        "mean advantage of each op": ["Critic/advantage_mean/.*"],
        "scale of returns": ["Critic/return_scale(/.*)?$"],
    },
    "Speed": {
        "host epochs per second": ["Speed/epochs_per_second$"],
        "seconds per iteration and per update": ["Speed/(iteration|update)_seconds$"],
    },
}
"""Charts of the Custom Scalars page: category, title, regular expressions of the tags in it."""

RESULTS = {
    "World/score": "score",
    "World/accuracy": "accuracy, %",
    "World/parameters": "parameters",
    "Critic/explained_variance": "explained variance",
    "Speed/epochs_per_second": "host epochs per second",
}
"""Tags that the HParams page shows beside the hyperparameters."""


SHOWN_FIRST = ("env/task", "learner/entropy_coeff", "learner/lr", "run/iterations", "run/seed")
"""Settings that the HParams page shows unless others are chosen."""


def write_layout(writer: SummaryWriter) -> None:
    """Write the Custom Scalars page."""
    pages = {
        category: {title: ["Multiline", tags] for title, tags in charts.items()} for category, charts in LAYOUT.items()
    }
    writer.add_custom_scalars(pages)


def write_hyperparameters(writer: SummaryWriter, config: TrainConfig) -> None:
    """Write every setting that has a value, and which results to show beside them."""
    values = hyperparameters(config)
    metrics = [hparams.Metric(tag, display_name=name) for tag, name in RESULTS.items()]
    # Without a type or a domain: TensorBoard takes the first run's list for all runs, and they have other values. What
    # is marked as differing comes first, and only the first five settings are shown until more are chosen.
    names = [HParamInfo(name=name, differs=name in SHOWN_FIRST) for name in values]
    experiment = Experiment(hparam_infos=names, metric_infos=[metric.as_proto() for metric in metrics])
    summary = Summary()
    summary.value.add(
        tag=metadata.EXPERIMENT_TAG,
        metadata=metadata.create_summary_metadata(HParamsPluginData(experiment=experiment)),
        tensor=metadata.NULL_TENSOR,
    )
    writer.file_writer.add_summary(summary)
    writer.file_writer.add_summary(hparams.hparams_pb(values))


def hyperparameters(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """Settings as flat ``part/field`` values of the kinds that TensorBoard knows; a mapping becomes a text."""
    flat: dict[str, bool | int | float | str] = {}
    for part, settings in dataclasses.asdict(config).items():
        for name, value in settings.items():
            known = isinstance(value, bool | int | float | str)
            flat[f"{part}/{name}"] = value if known else _as_text(value)
    return flat


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={entry}" for key, entry in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def write_choices(writer: SummaryWriter, tag: str, counts: Mapping[str, float], step: int) -> None:
    """Write how often each choice was made as a histogram with one bin per choice, numbered from 0.

    Args:
        writer: Of the run.
        tag: Name of the histogram.
        counts: By name of the choice, all of them, in order. The histogram's description lists them.
        step: Horizontal position.
    """
    numbers = np.arange(len(counts))
    bins = np.stack([numbers - 0.5, numbers + 0.5, list(counts.values())], axis=1)
    legend = ", ".join(f"{number} {name}" for number, name in enumerate(counts))
    summary = Summary()
    summary.value.add(
        tag=tag,
        metadata=create_summary_metadata(display_name=tag, description=legend),
        tensor=make_tensor_proto(bins, np.float64),
    )
    writer.file_writer.add_summary(summary, step)
