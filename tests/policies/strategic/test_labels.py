"""Labels against episodes worked out by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.strategic.labels import RISK_HORIZON, UNKNOWN_RISK, risk_labels, score_gained
from policies.strategic.schema import RISK_CLASSES

NAN, INF = float("nan"), float("inf")
LOSSES = st.one_of(st.floats(0, 3), st.sampled_from([NAN, INF]))


def names(labels):
    return ["UNKNOWN" if label == UNKNOWN_RISK else RISK_CLASSES[label] for label in labels.tolist()]


def risks(losses, stopped=None):
    """Of an episode whose validation losses these are, the untrained host's first."""
    losses = torch.tensor(losses, dtype=torch.float64)
    ended = torch.zeros(len(losses) - 1, dtype=torch.bool)
    if stopped is not None:
        ended[stopped] = True
    return names(risk_labels(losses[:-1], losses[1:], ended))


def test_the_largest_rise_within_five_epochs_says_the_risk():
    losses = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.03, 1.0, 1.1, 1.0, 1.2]
    # The 1.03 follows decisions 1 to 5, the 1.1 decisions 3 to 7, the 1.2 decisions 5 to 9. Decision 6 begins at 1.03,
    # and decision 8 at 1.1.
    assert risks(losses) == ["SAFE", "LOW", "LOW", "MODERATE", "MODERATE", "HIGH", "HIGH", "HIGH", "MODERATE", "HIGH"]


def test_a_rise_must_exceed_its_limit():
    assert risks([0.0, 0.02]) == ["SAFE"]
    assert risks([0.0, 0.075]) == ["LOW"]
    assert risks([0.0, 0.15]) == ["MODERATE"]
    assert risks([0.0, 0.1500001]) == ["HIGH"]
    assert risks([2.0, 0.1]) == ["SAFE"]


def test_a_stop_is_critical_for_the_five_decisions_before_it():
    assert risks([1.0] * 9, stopped=7) == ["SAFE"] * 3 + ["CRITICAL"] * 5
    assert risks([1.0, INF], stopped=0) == ["CRITICAL"]


def test_a_loss_that_was_not_measured_gives_no_class_but_a_stop_does():
    assert risks([1.0, NAN, 1.0, 1.0]) == ["UNKNOWN", "UNKNOWN", "SAFE"]
    assert risks([1.0, NAN], stopped=0) == ["CRITICAL"]
    assert risks([1.0, INF]) == ["HIGH"]


def by_hand(before, after, stopped):
    """The rule read out, step by step."""
    labels = []
    for at, loss in enumerate(before):
        rises = [value - loss for value in after[at : at + RISK_HORIZON]]
        if any(stopped[at : at + RISK_HORIZON]):
            labels.append("CRITICAL")
        elif any(rise != rise for rise in rises):
            labels.append("UNKNOWN")
        else:
            limits = {"HIGH": 0.15, "MODERATE": 0.075, "LOW": 0.02}
            labels.append(next((name for name, limit in limits.items() if max(rises) > limit), "SAFE"))
    return labels


@given(st.lists(st.tuples(LOSSES, LOSSES, st.booleans()), min_size=1, max_size=14))
def test_all_steps_at_once_are_the_steps_one_by_one(steps):
    before, after, stopped = (list(column) for column in zip(*steps, strict=True))
    tensors = torch.tensor(before, dtype=torch.float64), torch.tensor(after, dtype=torch.float64)
    assert names(risk_labels(*tensors, torch.tensor(stopped))) == by_hand(before, after, stopped)
    batch = [tensor.expand(2, 3, -1) for tensor in (*tensors, torch.tensor(stopped))]
    assert all(names(row) == by_hand(before, after, stopped) for row in risk_labels(*batch).flatten(0, 1))


def test_what_is_gained_counts_from_each_step_to_the_end():
    assert score_gained(torch.tensor([0.5, -0.25, 1.0])).tolist() == [1.25, 0.75, 1.0]
