"""Train small models in many ways on all ranks, and write the results: ``train.py DIRECTORY``.

Each case is a function that returns arrays by name. Those of rank r are written to ``CASE-r.npz``.
"""

import sys
from pathlib import Path

import numpy as np

import fastopt
from fastopt import mpi

SHAPES = {"W": (5, 7), "b": (7,), "V": (7, 3), "s": ()}


def make_params(dtypes=("f4",), seed=0):
    rng = np.random.default_rng(seed + mpi.rank())  # the ranks differ until they are made equal
    params = {}
    for k, (name, shape) in enumerate(SHAPES.items()):
        dtype = dtypes[k % len(dtypes)]
        params[name] = np.asarray(rng.normal(size=shape), dtype)
    mpi.broadcast_parameters(params)
    return params


def gradients(params, samples):
    """Mean gradients of some samples: made up, but of these samples and parameters alone."""
    grads = {}
    for name, p in params.items():
        own = [np.random.default_rng([i, p.size]).normal(size=p.shape) for i in samples]
        grads[name] = np.asarray(np.mean(own, axis=0) + 0.1 * p, p.dtype)
    return grads


def train(opt, params, n_samples=21, steps=4, gradients=gradients, **options):
    """Take some steps, each on another global batch."""
    for step in range(steps):
        for shard, part in opt.split(n_samples):
            samples = np.arange(part.start, part.stop) + 100 * step
            opt.accumulate(gradients(params, samples), shard, weight=len(samples))
        opt.step(**options)
    return dict(params)


def adam():
    params = make_params()
    return train(mpi.DistributedOptimizer(fastopt.Adam(params, lr=0.1)), params)


def two_dtypes():
    params = make_params(("f4", "f8"))
    return train(mpi.DistributedOptimizer(fastopt.AdamW(params, lr=0.1)), params)


def fortran_order():
    params = {name: np.asfortranarray(a) for name, a in make_params().items()}
    return train(mpi.DistributedOptimizer(fastopt.SGD(params, lr=0.1, momentum=0.9)), params)


def eleven_shards():
    params = make_params()
    return train(mpi.DistributedOptimizer(fastopt.Adam(params, lr=0.1), shards=11), params)


def few_samples():
    """Some micro-shards have no samples, and two ranks may have none at all."""
    params = make_params()
    return train(mpi.DistributedOptimizer(fastopt.Adam(params, lr=0.1)), params, n_samples=3)


def clipped():
    params = make_params()
    opt = mpi.DistributedOptimizer(fastopt.Adam(params, lr=0.1, ema=0.9))
    result = train(opt, params, max_norm=0.5, clip_value=0.2)
    return result | {f"ema {name}": a for name, a in opt.ema.items()} | {"norm": opt.grad_norm}


def missing():
    """A parameter without gradients in some micro-shards, and one without any in the second step."""
    params = make_params()

    def some_gradients(params, samples):
        grads = gradients(params, samples)
        if samples[0] % 2:
            grads["W"] = None
        if samples[0] // 100 == 1:
            del grads["b"]
        return grads

    opt = mpi.DistributedOptimizer(fastopt.Adam(params, lr=0.1))
    result = train(opt, params, gradients=some_gradients)
    return result | {"steps": [state.steps for state in opt.state]}


def rows():
    params = make_params()

    def some_rows(params, samples):
        chosen = np.random.default_rng(samples[0]).integers(5, size=3)
        return {"W": fastopt.Rows(chosen, gradients(params, samples)["W"][chosen])}

    return train(mpi.DistributedOptimizer(fastopt.Adam(params, lr=0.1)), params, gradients=some_rows)


def accumulated():
    params = make_params()
    return train(mpi.DistributedOptimizer(fastopt.Adam(params, lr=0.1, accumulate=2)), params, steps=5)


CASES = [accumulated, adam, clipped, few_samples, fortran_order, missing, rows, eleven_shards, two_dtypes]


def main(directory):
    for case in CASES:
        np.savez(Path(directory, f"{case.__name__}-{mpi.rank()}.npz"), **case())


if __name__ == "__main__":
    main(sys.argv[1])
