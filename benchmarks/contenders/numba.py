"""numba, and the memory-bandwidth limits, which are loops compiled by numba."""

import math
from functools import cache, partial

import numpy as np

from benchmarks.contenders import AVERAGE, DECAY, MAX_NORM, StepContender, bench_worker
from benchmarks.contenders.numpy import ALIGN
from fastopt.cli.bench_worker import LR, SERIAL_UP_TO

jit = bench_worker.Numba.compile


class Numba(StepContender, bench_worker.Numba):
    """The update in one loop compiled with fast-math, called for each array, on all threads or on one."""

    def clip(self, params, grads):
        bench_worker.NumPy.adam(self, params, grads)
        self.e = [p.copy() for p in params]
        self.save_grads(grads)
        return self.variants(self.make_clip)

    def make_clip(self, parallel):
        squares, update = clip_loops(parallel)
        arrays = self.flat(self.p, self.g, self.m, self.v, self.e)

        def step():
            norm = math.sqrt(sum(squares(streams[1]) for streams in arrays))
            values = min(1.0, MAX_NORM / (norm + 1e-6)), 1 - LR * DECAY, AVERAGE, 1 - AVERAGE
            scalars = [np.float32(value) for value in values] + self.scalars()
            for streams in arrays:
                update(*streams, *scalars)

        return step


def clip_loops(parallel):
    from numba import prange

    def squares(g):
        total = np.float32(0)
        for i in prange(g.size):
            total += g[i] * g[i]
        return total

    def update(p, g, m, v, e, scale, decay_factor, average, rest, lr, root, eps, b1, c1, b2, c2):
        for i in prange(p.size):
            d = g[i] * scale
            m[i] = b1 * m[i] + c1 * d
            v[i] = b2 * v[i] + c2 * d * d
            p[i] = decay_factor * p[i] - lr * m[i] / (np.sqrt(v[i]) * root + eps)
            e[i] = average * e[i] + rest * p[i]
            g[i] = 0

    return jit(squares, parallel), jit(update, parallel)


class Limit(Numba):
    """The memory-bandwidth limit: the memory streams of a step, with one multiplication and addition per
    write.

    For Adam it reads p, g, m, v and writes p, m, v. Its variants are "serial" (one thread), "whole" (all
    arrays as one, cut into one contiguous part per thread) and "arrays" (one parallel call per array). All
    streams lie in one block; each array begins on a cache line, at distances that do not alias. Where the
    limit takes few microseconds, it is mostly the call.
    """

    compared = False

    @classmethod
    def supports(cls, workload):
        return True

    def setup(self, workload):
        params = workload.make_params()
        names = sorted({name for streams in workload.passes for name in "".join(streams)})
        whole, arrays = carve([params] * len(names))    # any values, if they are normal numbers
        g = names.index("g")
        self.grads, self.g = whole[g], arrays[0][g].reshape(params[0].shape)
        loops = [(limit_loops(self.threads, len(reads)), reads + writes) for reads, writes in workload.passes]
        steps, product = {}, np.zeros_like(params[0])
        for variant, is_used, parallel, groups in (
            ("whole", self.threads > 1, True, [whole]),
            ("arrays", len(params) > 1, True, arrays),
            ("serial", whole[0].size <= SERIAL_UP_TO or self.threads == 1, False, [whole]),
        ):
            calls = [
                (pair[parallel], [streams[names.index(name)] for name in letters])
                for pair, letters in loops for streams in groups
            ]
            if is_used:
                steps[variant] = partial(self.step, calls, workload.products, params[0], product)
        return steps

    @staticmethod
    def step(calls, products, factor, out):
        for loop, streams in calls:
            loop(*streams)
        for k in range(products):
            np.matmul(factor, factor if k % 3 == 2 else factor.T, out=out)

    def refill(self):
        self.grads.fill(0.01)

    def fill_state(self, value):
        """The limit is that of normal numbers, also for workloads with denormals."""


@cache
def limit_loops(parts, reads):
    """Return a serial and a parallel loop over streams: the first `reads` are read, the others read and
    written.

    Each written stream takes one multiplication and one addition.
    """
    from numba import prange

    a, b = np.float32(0.1), np.float32(0.9)
    part_begin = jit(part_start, False)

    def run(lo, hi, streams):
        total, first = np.float32(0), np.uintp(lo)      # with a signed index the loop would not be vectorized
        for i in range(np.uintp(hi - lo)):
            x = np.float32(reads == 0)      # without reads the written streams tend to 1, not to denormals
            for k in range(reads):
                x += streams[k][first + i]
            for k in range(reads, len(streams)):
                streams[k][first + i] = b * streams[k][first + i] + a * x
            total += x
        return total

    run = jit(run, False)

    def serial(*streams):
        return run(0, streams[0].size, streams)

    def parallel(*streams):
        total, n = np.float32(0), streams[0].size
        for k in prange(parts):
            total += run(part_begin(n, k, parts), part_begin(n, k + 1, parts), streams)
        return total

    return jit(serial, False), jit(parallel, True)


def part_start(n, k, parts):
    """Return the first of n elements in part k: a multiple of 16, which is a cache line."""
    return n if k == parts else n // 16 * k // parts * 16


def carve(streams):
    """Copy streams, which are lists of arrays, into one block.

    Returns
    -------
    whole : list of ndarray
        Each stream as one array.
    arrays : list of list of ndarray
        For each array its streams, views of the block.
    """
    line = ALIGN // 4
    starts = [0]
    for array in streams[0]:
        starts.append(starts[-1] - (-array.size // line) * line)
    # At distances of a multiple of 4 KiB each load would wait for the store of another stream.
    stride = -(-starts[-1] // 1024) * 1024 + 13 * line
    block = np.empty(len(streams) * stride + line, np.float32)
    block.fill(0)
    first = -block.ctypes.data % ALIGN // 4
    whole = []
    for k, stream in enumerate(streams):
        view = block[first + k * stride :][: starts[-1]]
        for array, start in zip(stream, starts, strict=False):
            view[start : start + array.size] = array.reshape(-1)
        whole.append(view)
    arrays = [
        [view[start : start + array.size] for view in whole]
        for array, start in zip(streams[0], starts, strict=False)
    ]
    return whole, arrays
