"""Random sparse gradients, and comparisons of optimizers bit for bit."""

import numpy as np
from rules import same_bits

ROWS, WIDTH = 30, 5


def table(rng, dtype, rows=ROWS, width=WIDTH):
    return rng.standard_normal((rows, width)).astype(dtype)


def batch(rng, dtype, rows=ROWS, width=WIDTH, k=8):
    """Random rows, mostly from the first quarter of the table and with duplicates, and their gradients."""
    ids = rng.integers(0, rows if rng.random() < 0.1 else max(rows // 4, 1), k)
    return ids, rng.standard_normal((k, width)).astype(dtype)


def as_dense(p, rows, grads):
    full = np.zeros_like(p)
    np.add.at(full, np.asarray(rows, int), grads)
    return full


def arrays_of(opt, params):
    return [*params, *(a for state in opt.state for a in state.values())]


def all_same(a, b):
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))
