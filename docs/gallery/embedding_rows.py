"""
Embedding rows: sparse gradients
================================

A minibatch uses a few rows of an embedding table, and only these have a gradient. The time of a step on rows
is proportional to the number of these rows, whatever the size of the table; the time of a dense step is
proportional to the size of the table.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

import fastopt

ROWS, WIDTH = 256, 32  # rows per minibatch, and elements per row
rng = np.random.default_rng(0)


def microseconds(step, repetitions=20):
    """Return the median time of a step."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e6 * np.median(times)


sizes = [1_000, 10_000, 100_000]
by_rows, dense = [], []
for size in sizes:
    table = rng.standard_normal((size, WIDTH), dtype=np.float32)
    rows, grads = rng.integers(0, size, ROWS), rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
    whole = np.zeros_like(table)
    np.add.at(whole, rows, grads)
    lazy, usual = fastopt.Adam(table, sparse="lazy"), fastopt.Adam(table.copy())
    by_rows.append(microseconds(lambda lazy=lazy, t=table, r=rows, g=grads: lazy.step_rows(t, r, g)))
    dense.append(microseconds(lambda usual=usual, whole=whole: usual.step(whole)))
    print(f"{size:7} rows in the table: {by_rows[-1]:6.0f} µs on rows, {dense[-1]:6.0f} µs dense")

figure, panel = plt.subplots()
panel.loglog(sizes, dense, "o-", label="dense gradient")
panel.loglog(sizes, by_rows, "s--", label=f"{ROWS} rows")
panel.set(xlabel="Rows in the table", ylabel="Time per step (µs)", title=f"Adam, {WIDTH} columns, float32")
figure.legend(loc="outside right center")
plt.show()

# %%
# Rows without a gradient are unchanged. This is lazy Adam, like ``SparseAdam`` in torch. With
# ``sparse="exact"``, the steps that a row has missed are applied when the row is needed, and the result is
# that of dense steps.

table = np.ones((5, 2), np.float32)
opt = fastopt.Adam(table, lr=0.1, sparse="lazy")
opt.step_rows(table, np.array([3, 1, 3]), np.ones((3, 2), np.float32))  # the gradients of row 3 are added
print(table)

# %%
# :doc:`/sparse-rows` compares the three modes and states how accurate they are.
