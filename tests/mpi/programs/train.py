"""Train small models in many ways on all ranks, and write hashes of the results.

Usage: ``train.py DIRECTORY NUMBER``, with the number of cases. A case is an optimizer with options, which is
trained with and without ``sharded=True``. Rank r writes the file ``r.json`` with the hash of each array of
each case.
"""

import functools
import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import fastopt
from fastopt import mpi

sys.path.append(str(Path(__file__).parents[2]))

from rules import MATRIX_RULES, RULES

# The first is divided between ranks; the norm of the others is summed in one block.
SHAPES = {"W": (160, 140), "b": (7,), "V": (7, 3), "s": ()}
LARGE = {"W": (300, 140), "it's": (7,), "sums": (200, 100)}      # "sums" is a key of state dicts, too
STEPS = 3


def make_params(dtypes=("f4",), order="C", shapes=SHAPES):
    rng = np.random.default_rng(mpi.rank())     # the ranks differ until they are made equal
    params = {}
    for k, (name, shape) in enumerate(shapes.items()):
        dtype = dtypes[k % len(dtypes)]
        params[name] = np.asarray(0.1 * rng.normal(size=shape), order=order).astype(dtype)
    mpi.broadcast_parameters(params)
    return params


@functools.cache
def noise(step, shard, shape):
    return np.random.default_rng([step, shard]).normal(size=shape)


def gradients(params, step, shard):
    """Gradients of a micro-shard: made up, but of this micro-shard and the parameters alone."""
    return {
        name: np.asarray(noise(step, shard, p.shape) + 0.1 * np.asarray(p, "f8")).astype(p.dtype)
        for name, p in params.items()
    }


def train(opt, params, gradients=gradients, n_samples=21, steps=STEPS, **options):
    """Take some steps, and return everything that has been computed."""
    for step in range(steps):
        for shard, part in opt.split(n_samples):
            opt.accumulate(gradients(params, step, shard), shard, weight=part.stop - part.start)
        opt.step(**options)
    return results(opt, params)


def results(opt, params):
    state = opt.state_dict()
    found = dict(params) | {"steps": opt.steps, "skipped": opt.skipped_steps, "norm": opt.grad_norm or 0.0}
    for key, own in [*state["state"].items(), *((n, state[n]) for n in ("ema", "lookahead") if n in state)]:
        for name, value in own.items():
            if isinstance(value, dict):
                found |= {f"{key}.{name}.{n}": a for n, a in value.items()}
            else:
                found[f"{key}.{name}"] = value
    return found


# --- Cases ---


def simple(optimizer, *, step_options=None, params=None, wrap=None, **options):
    """A case that trains an optimizer of some parameters."""

    def case(sharded):
        own = make_params(**params or {})
        opt = mpi.DistributedOptimizer(optimizer(own, **options), sharded=sharded, **wrap or {})
        return train(opt, own, **step_options or {})

    return case


def missing(sharded):
    """A parameter without gradients in some micro-shards, and one without any in the second step."""
    params = make_params()

    def some_gradients(params, step, shard):
        grads = gradients(params, step, shard)
        if shard % 2:
            grads["W"] = None
        if step == 1:
            del grads["b"]
        return grads

    return train(mpi.DistributedOptimizer(fastopt.Adam(params), sharded=sharded), params, some_gradients)


def rows(sharded, sparse="dense"):
    params = make_params()

    def some_rows(params, step, shard):
        chosen = np.random.default_rng(shard).integers(160, size=30)
        return {"W": fastopt.Rows(chosen, gradients(params, step, shard)["W"][chosen])}

    opt = mpi.DistributedOptimizer(fastopt.Adam(params, sparse=sparse), sharded=sharded)
    return train(opt, params, some_rows)


def lazy_rows(sharded):
    return rows(False, "lazy")


def exact_rows(sharded):
    return rows(False, "exact")


def groups(sharded):
    """Groups with hyperparameters of their own, which change, and a group whose parameters are frozen."""
    params = make_params()
    groups = [
        {"params": [params["W"], params["b"]], "lr": 0.1},
        {"params": params["V"], "lr": 0.01, "weight_decay": 0.1},
        {"params": params["s"], "lr": 0.0},
    ]

    def in_groups(_, step, shard):
        grads = gradients(params, step, shard)
        return [[grads["W"], grads["b"]], grads["V"], grads["s"]]

    opt = mpi.DistributedOptimizer(fastopt.SGD(groups, momentum=0.0), sharded=sharded)
    found = {f"before.{key}": value for key, value in train(opt, params, in_groups, max_norm=3.0).items()}
    opt.groups[0]["lr"] *= 0.5
    opt.groups[1]["momentum"] = 0.9         # selects another kernel, which has state
    return found | train(opt, params, in_groups)


def not_finite(sharded):
    params = make_params()

    def some_gradients(params, step, shard):
        grads = gradients(params, step, shard)
        if step == 1 and shard == 7:
            grads["W"][150, 3] = np.inf
        return grads

    opt = mpi.DistributedOptimizer(fastopt.Adam(params, skip_nonfinite=True), sharded=sharded)
    return train(opt, params, some_gradients, max_norm=1.0)


def averages(sharded):
    params = make_params()
    opt = mpi.DistributedOptimizer(fastopt.Adam(params, ema=0.5), sharded=sharded)
    found = train(opt, params)
    found |= {f"ema.{name}": average.copy() for name, average in opt.ema.items()}
    before = {name: p.copy() for name, p in params.items()}
    with opt.swapped_ema():
        found |= {f"swapped.{name}": p.copy() for name, p in params.items()}
    assert all(np.array_equal(p, before[name]) for name, p in params.items())
    return found


def schedule_free(sharded):
    params = make_params()
    opt = mpi.DistributedOptimizer(fastopt.SGDScheduleFree(params, lr=0.1), sharded=sharded)
    found = train(opt, params)
    with opt.averaged():
        found |= {f"averaged.{name}": p.copy() for name, p in params.items()}
    opt.keep_average()
    return found | {f"kept.{name}": p.copy() for name, p in params.items()}


def flushed(sharded):
    params = make_params()
    opt = mpi.DistributedOptimizer(fastopt.Adam(params, accumulate=2), sharded=sharded)
    train(opt, params, steps=3)
    assert opt.flush(max_norm=1.0)
    return results(opt, params)


CASES = {
    "lr schedule": simple(fastopt.Adam, lr=fastopt.schedules.Exponential(0.1, 0.5)),
    "clipping": simple(fastopt.Adam, step_options={"max_norm": 0.5, "clip_value": 0.2, "grad_scale": 0.3}),
    "few samples": simple(fastopt.Adam, step_options={"n_samples": 3}),
    "eleven micro-shards": simple(fastopt.Adam, wrap={"shards": 11}),
    "Fortran order": simple(fastopt.AdamW, params={"order": "F"}),
    "two dtypes": simple(fastopt.AdamW, params={"dtypes": ("f4", "f8")}, step_options={"max_norm": 1.0}),
    "float16": simple(fastopt.Adam, params={"dtypes": ("f2", "f4")}, ema=0.9),
    "int8 state": simple(fastopt.Adam, params={"shapes": LARGE}, state_dtype="int8"),
    "bfloat16 state": simple(fastopt.Adam, state_dtype="bfloat16"),
    "lookahead": simple(fastopt.Adam, lookahead=(2, 0.5)),
    "SWA": simple(fastopt.SGD, ema=fastopt.schedules.SWA(1)),
    "accumulation": simple(fastopt.Adam, accumulate=2),
    "independent decay": simple(fastopt.Adam, independent_weight_decay=0.1),
    "centralized": simple(fastopt.Adam, centralize=True),
    "unit clipping": simple(fastopt.Adam, unit_clip=0.01),
    "LAMB, clipped": simple(fastopt.LAMB, step_options={"max_norm": 0.5}, ema=0.9),
    "Muon, clipped": simple(fastopt.Muon, step_options={"max_norm": 0.5}),
}
for case in (missing, groups, rows, lazy_rows, exact_rows, not_finite, averages, schedule_free, flushed):
    CASES[case.__name__] = case
if find_spec("ml_dtypes"):
    from ml_dtypes import bfloat16

    CASES["bfloat16"] = simple(fastopt.Adam, params={"dtypes": (bfloat16,)}, ema=0.9)
    CASES["split"] = simple(fastopt.Adam, params={"dtypes": (bfloat16,)}, master_weights="split")
N_OPTIONS = len(CASES)
CASES |= {str(rule): simple(rule.make) for rule in (*RULES, *MATRIX_RULES)}
NOT_SHARDED = {str(rule) for rule in RULES if rule.options.get("rowwise")}


def digest(value):
    array = np.asarray(value)
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def main(directory, number):
    found = {}
    for name, case in [*CASES.items()][: int(number)]:
        for sharded in (False, True):
            if not (sharded and name in NOT_SHARDED):
                arrays = case(sharded)
                found[f"{name} {sharded}"] = {key: digest(value) for key, value in arrays.items()}
    Path(directory, f"{mpi.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
