"""Plain NumPy, and the matrix products of a training step alone."""

import math

import numpy as np

from benchmarks.contenders import AVERAGE, DECAY, MAX_NORM, StepContender, TrainingContender, bench_worker
from fastopt.cli.bench_worker import LR

ALIGN = 64      # bytes of a cache line


class NumPy(StepContender, bench_worker.NumPy):
    """Adam in three lines of NumPy, as in many training loops."""

    threaded = False

    def clip(self, params, grads):
        self.adam(params, grads)
        self.e = [p.copy() for p in params]
        self.save_grads(grads)
        return {"step": self.clip_and_update}

    def clip_and_update(self):
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in self.g))
        for g, p in zip(self.g, self.p, strict=True):
            g *= min(1.0, MAX_NORM / (norm + 1e-6))
            p *= 1 - LR * DECAY
        self.update()
        for g, p, e in zip(self.g, self.p, self.e, strict=True):
            g.fill(0)
            e[...] = AVERAGE * e + (1 - AVERAGE) * p


class NumPyTraining(TrainingContender, bench_worker.NumPy):
    """A training loop as people write it in NumPy."""

    def setup(self, workload):
        super().setup(workload)
        self.net = workload.make_params()
        self.adam([p for layer in self.net for p in layer], [])
        self.rng = np.random.default_rng(0)

    def train(self, epochs):
        rows, batch = self.workload.rows, self.workload.batch
        for _ in range(epochs):
            order = self.rng.permutation(rows)
            for start in range(0, rows, batch):
                chosen = order[start : start + batch]
                self.g = [g for grads in self.gradients(self.X[chosen], self.y[chosen]) for g in grads]
                self.update()

    def gradients(self, X, y):
        inputs = [X]
        for W, b in self.net[:-1]:
            inputs.append(np.maximum(inputs[-1] @ W + b, 0))
        W, b = self.net[-1]
        z = inputs[-1] @ W + b
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        self.loss = -np.mean(np.log(p[rows, y]))
        delta = p
        delta[rows, y] -= 1
        delta /= len(y)
        grads = []
        for a, (W, _) in zip(inputs[::-1], self.net[::-1], strict=True):
            grads.append([a.T @ delta, delta.sum(axis=0)])
            if a is not X:
                delta = (delta @ W.T) * (a > 0)
        return grads[::-1]


class Floor(TrainingContender, bench_worker.NumPy):
    """The matrix products of the training steps alone, through NumPy's BLAS."""

    compared = False
    forms = ("", "float64", "uint8", "sparse", "batch-norm", "dropout")

    def setup(self, workload):
        weights = [W for W, _ in workload.make_params()]
        self.epoch = [products(weights, batch) for batch in sorted({*workload.batches}, reverse=True)]
        self.counts = [workload.batches.count(len(listed[0][0])) for listed in self.epoch]

    def train(self, epochs):
        for _ in range(epochs):
            for listed, count in zip(self.epoch, self.counts, strict=True):
                for _ in range(count):
                    for left, right, out in listed:
                        np.matmul(left, right, out=out)


def products(weights, batch):
    """Return the matrix products of a step, forward and then backward from the last layer.

    Returns
    -------
    list of (left, right, out)
        Three for each layer; two for the first one, which needs no gradient of its input.
    """
    rng = np.random.default_rng(0)
    weights = [aligned(W) for W in weights]
    widths = [len(weights[0]), *(W.shape[1] for W in weights)]
    dtype = weights[0].dtype
    values, deltas = ([aligned(np.zeros((batch, n), dtype)) for n in widths] for _ in range(2))
    for array in (values[0], deltas[-1]):
        rng.random(array.shape, dtype, out=array)
    listed = [(values[i], W, values[i + 1]) for i, W in enumerate(weights)]
    for i, W in reversed(list(enumerate(weights))):
        listed.append((values[i].T, deltas[i + 1], aligned(np.zeros_like(W))))
        if i:
            listed.append((deltas[i + 1], W.T, deltas[i]))
    return listed


def aligned(array):
    """Return a copy that begins on a cache line, which makes products up to 5 % faster."""
    memory = np.empty(array.nbytes + ALIGN, np.uint8)
    first = -memory.ctypes.data % ALIGN
    copy = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
