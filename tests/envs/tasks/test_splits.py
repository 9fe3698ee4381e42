"""The stratified split, against scikit-learn's."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from envs.tasks.digits import digits_splits
from envs.tasks.splits import stratified_split


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    held_out=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
def test_split_is_that_of_scikit_learn(counts, held_out, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3 - 4, counts))
    num_held_out = int(np.ceil(held_out * len(labels)))
    assume(min(num_held_out, len(labels) - num_held_out) >= len(counts))  # scikit-learn wants one of each label
    expected = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=seed)
    for part, wanted in zip(stratified_split(labels, held_out, seed), expected, strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_digits_are_those_that_scikit_learn_loads():
    images, labels = load_digits(return_X_y=True)
    train, rest = train_test_split(np.arange(len(labels)), test_size=0.4, stratify=labels, random_state=0)
    validation, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    mean, std = images[train].astype(np.float32).mean(), images[train].astype(np.float32).std()
    for name, index in {"train": train, "validation": validation, "test": test}.items():
        x, y = digits_splits()[name].x, digits_splits()[name].y
        np.testing.assert_array_equal(x.flatten(1).numpy(), (images[index].astype(np.float32) - mean) / std)
        np.testing.assert_array_equal(y.numpy(), labels[index])
