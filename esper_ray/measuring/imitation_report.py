"""How far a strategic policy agrees with what is on record, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from policies.strategic.schema import RISK_CLASSES


def agreement_table(title: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Shares of agreement, all heads together and head by head, of which more than one choice was admitted.

    Args:
        title: Above it.
        found: Label → what :meth:`policies.strategic.agreement.Agreement.to_json` says.
    """
    table = Table(
        title=title,
        caption="%: the most probable choice, given the op on record, is the one on record, where there was a choice; "
        "joint: in all heads",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("on record")
    heads = next(iter(found.values()))["heads"]
    for name in ("steps", "joint", *(head.removeprefix("alpha_") for head in heads)):
        table.add_column(name, justify="right", no_wrap=True)
    for label, of in found.items():
        shares = (head["agreement"] for head in of["heads"].values())
        table.add_row(label, f"{of['steps']:,}", _percent(of["agreement"]), *map(_percent, shares))
    return table


def outcome_table(title: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Recall of each risk, and how well values foretell what was gained. Arguments as for :func:`agreement_table`."""
    table = Table(
        title=title,
        caption="%: of the steps of this risk those that are called so, of so many; value: root mean squared error in "
        "units of the score, and the share of the variance of what was gained that is explained",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("on record")
    for name in (*RISK_CLASSES, "error", "explained"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, of in found.items():
        recalls = (f"{_percent(risk['recall'])} of {risk['steps']:,}" for risk in of["risk"].values())
        value = of["value"]
        error = "–" if value["error"] is None else f"{value['error']:.3f}"
        table.add_row(label, *recalls, error, _percent(value["explained"]))
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
