"""Small models and batches for the tests of fastopt.MLP."""

import numpy as np

from fastopt.nn import MLP

N, FEATURES, OUTPUTS = 9, 5, 4


def batch(loss, seed=0, n=N, dtype=np.float64):
    """Return X and targets that are valid for a loss."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, FEATURES)).astype(dtype)
    y = {
        "cross_entropy": lambda: rng.integers(0, OUTPUTS, n),
        "binary_cross_entropy": lambda: rng.integers(0, 2, (n, OUTPUTS)),
        "poisson": lambda: rng.poisson(2.0, (n, OUTPUTS)).astype(float),
    }.get(loss, lambda: rng.standard_normal((n, OUTPUTS)))()
    return X, y


def make(loss="cross_entropy", **options):
    return MLP([FEATURES, 7, 6, OUTPUTS], loss=loss, **{"seed": 1, **options})


def flat(layers):
    return [array for layer in layers for array in layer]
