"""The same bits on every platform: SHA-256 of what rules and layers leave, kept in `hashes.json`.

Numbers that go in are made of whole ones, with no function that could differ from machine to machine.
Adafactor and Muon are left out: their directions are NumPy's sums and products, whose order is NumPy's.

Usage: python tests/core/test_hashes.py --write      after a change that is meant to change results
"""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from layers import Layers, everything
from rules import RULES

import fastopt
from fastopt._core import scalar_math
from fastopt._core.formats import BFLOAT16, encode
from fastopt.nn._core import dispatch
from fastopt.optimizers.state import memory_of

FILE = Path(__file__).parents[1] / "hashes.json"
DTYPES = ["float32", "float64"]
SHAPES = [(3, 5), (), (67,), (2, 3, 4)]
STEPS = 300
LARGE = 70_001  # elements of an array that is shared out among threads
BLOCKS = [(64, 10), (13, 1), (9, 37), (3, 1500)]


@cache
def numbers(shape, dtype, seed):
    """Read-only numbers of both signs from 2^-6 to 2^2, evenly spread between powers of two.

    The words are those of SplitMix64 (Steele, Lea, Flood 2014).
    """
    count = int(np.prod(shape))
    word = np.arange(seed << 32, (seed << 32) + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    fraction = (word >> np.uint64(41)).astype(dtype) * np.dtype(dtype).type(2.0**-23) + 1
    exponent = (word & np.uint64(7)).astype(np.int32) - 6
    sign = np.where(word & np.uint64(8), -1, 1).astype(dtype)
    result = np.ldexp(sign * fraction, exponent).reshape(shape)
    result.flags.writeable = False
    return result


def digest(arrays):
    total = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        total.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()


def walk(rule, dtype, shapes, steps, **around):
    """What steps on arrays of these shapes leave."""
    params = [numbers(shape, dtype, i).copy() for i, shape in enumerate(shapes)]
    opt = rule.make(params, **around)
    norms = []
    for step in range(1, steps + 1):
        grads = [numbers(shape, dtype, step * 16 + i) for i, shape in enumerate(shapes)]
        opt.step(grads, **({"max_norm": 2.0, "clip_value": 0.5, "grad_scale": 3.0} if around else {}))
        norms += [opt.grad_norm] if around else []
    states = [array for state in opt.state for array in state.values()]
    return [*params, *states, *(opt.ema if around else []), np.array(norms)]


def of_rule(rule, dtype):
    """Many steps of the rule alone; few with all around it, on arrays for several threads."""
    return digest([
        *walk(rule, dtype, SHAPES, STEPS),
        *walk(rule, dtype, [(1,), (LARGE,), (513,)], 3, ema=0.9),
    ])  # fmt: skip


FORMATS = {
    "bfloat16": ("bfloat16", {}), "float16": ("float16", {}),
    "bfloat16 to nearest": ("bfloat16", {"rounding": "nearest"}),
    "bfloat16 state": ("float32", {"state_dtype": "bfloat16"}),
    "int8 state": ("float32", {"state_dtype": "int8"}),
    "bfloat16, int8 state": ("bfloat16", {"state_dtype": "int8", "block_size": 512}),
    "split": ("bfloat16", {"master_weights": "split", "state_dtype": "int8"}),
}


def of_format(kind, name):
    """Steps on arrays that are stored with fewer bits."""
    dtype, options = FORMATS[name]
    stored = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    values = [numbers((size,), "float32", i) for i, size in enumerate((LARGE, 5000, 67))]
    params = [encode(x, stored).copy() for x in values]
    opt = getattr(fastopt, kind)(params, lr=0.01, weight_decay=0.1, seed=11, **options)
    for step in range(1, 6):
        opt.step([numbers(p.shape, "float32", step * 16 + i) for i, p in enumerate(params)])
    states = [a for state in opt.state for a in memory_of(state.stored.values())]
    return digest([p.view(np.uint16) if p.dtype == BFLOAT16 else p for p in params] + states)


def of_rows(sparse, dtype):
    """Steps on some rows of a table."""
    table = numbers((50, 7), dtype, 0).copy()
    opt = fastopt.AdamW(table, sparse=sparse, weight_decay=0.1)
    for step in range(1, 101):
        rows = np.arange(5) * step * step % 50
        opt.step_rows(table, rows, numbers((5, 7), dtype, step))
    opt.catch_up()
    return digest([table, *opt.state[0].values()])


def of_layers(dtype):
    def matrix(shape, seed):
        return numbers(shape, dtype, seed)

    layers = Layers(dispatch.layers)
    return digest(array for shape in BLOCKS for array in everything(layers, matrix, shape, [0, shape[0]]))


def of_scalars(dtype):
    """Powers as in bias corrections, and others; logarithms."""
    steps = range(1, 2000)
    powers = [scalar_math.power(beta, t) for beta in (0.5, 0.9, 0.99, 0.999, 0.9999) for t in steps]
    roots = [scalar_math.power(t, exponent) for exponent in (0.25, 0.75, -0.8, 2.5) for t in steps]
    return digest([np.array(powers + roots + [scalar_math.log(t / 2000) for t in steps])])


CASES = {
    **{f"{rule}, {dtype}": (of_rule, rule, dtype) for rule in RULES for dtype in DTYPES},
    **{
        f"rows {sparse}, {dtype}": (of_rows, sparse, dtype)
        for sparse in ("lazy", "exact", "dense")
        for dtype in DTYPES
    },
    **{f"{kind}, {name}": (of_format, kind, name) for kind in ("AdamW", "SGD", "Lion") for name in FORMATS},
    **{f"layers, {dtype}": (of_layers, dtype) for dtype in DTYPES},
    "scalars": (of_scalars, "float64"),
}


def found(name):
    function, *arguments = CASES[name]
    return function(*arguments)


@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_every_platform(name, isa, threads):
    expected = json.loads(FILE.read_text())[name]
    for n in (1, 3):
        threads(n)
        assert found(name) == expected, f"{isa}, {n} threads"


def test_all_and_no_more_is_in_the_file():
    assert json.loads(FILE.read_text()).keys() == CASES.keys()


def test_numbers_are_what_they_should_be():
    x = numbers((10000,), "float32", 7)
    assert 2.0**-6 <= abs(x).min() < 2.0**-5.9 and 2.0**1.9 < abs(x).max() < 2.0**2
    assert 0.45 < (x > 0).mean() < 0.55 and len(np.unique(x)) > 9900
    assert numbers((3,), "float64", 1).tolist() == numbers((3,), "float32", 1).tolist()


def write():
    """Write the file, and say what has changed."""
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    after = {name: found(name) for name in CASES}
    FILE.write_text(json.dumps(after, indent=1) + "\n")
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            print("new" if name not in before else "gone" if name not in after else "changed", name, sep=": ")
    print(f"{FILE}: {len(after)} hashes")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    write()
