"""The table "Formulas and equivalent calls" in docs/numpy-loop.md: both columns are run."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import schedules

PAGE = (Path(__file__).parents[2] / "docs" / "numpy-loop.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## Formulas and equivalent calls")[2].partition("\n## ")[0]
ROW = re.compile(r"^\| (.+?) \| `(.+?)` \| `(.+?)` \|$", re.M)
ROWS = {name: (formula, call) for name, formula, call in ROW.findall(TABLE)}
OPTIMIZERS = {name: getattr(fastopt.optimizers, name) for name in fastopt.optimizers.__all__}
VALUES = {"lr": 0.1, "mu": 0.9, "rho": 0.8, "b1": 0.7, "b2": 0.95, "decay": 0.02}


def run_formula(name, eps, grads):
    """Run the left column on arrays of its own."""
    start = float("starts at 1" in name)
    names = {**VALUES, "eps": eps, "sqrt": np.sqrt, "w": np.ones(5)}
    names |= {state: np.zeros(5) for state in "vmu"} | {"s": np.full(5, start)}
    for t, g in enumerate(grads, 1):
        exec(ROWS[name][0], names | (updated := {"t": t, "g": g}), updated)
        names |= updated
    return names["w"]


def test_the_table_is_found():
    assert len(ROWS) >= 18 and len(ROWS) == TABLE.count("\n| ") - 1


@pytest.mark.parametrize("name", ROWS)
def test_the_formula_and_the_call_are_the_same(name):
    for eps in (1e-8, 0.3):
        grads = list(np.random.default_rng(0).standard_normal((6, 5)))
        w = np.ones(5)
        names = {**VALUES, "eps": eps, "sqrt": np.sqrt, "schedules": schedules, "w": w}
        opt = eval(ROWS[name][1], OPTIMIZERS | names)
        for g in grads:
            opt.step(g)
        np.testing.assert_allclose(w, run_formula(name, eps, grads), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ROWS)
def test_no_two_formulas_are_the_same(name):
    """Otherwise the comparison could not tell them apart."""
    grads = list(np.random.default_rng(0).standard_normal((6, 5)))
    results = {other: run_formula(other, 0.3, grads) for other in ROWS}
    same = [other for other in ROWS if np.allclose(results[name], results[other])]
    constant = {"momentum", "momentum, learning rate inside"}     # differ only if the learning rate changes
    assert same == [name] or set(same) == constant


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_views_of_a_flat_vector_are_separate_after_pickling(duplicate):
    flat = np.zeros(6)
    views = [flat[:4].reshape(2, 2), flat[4:]]
    opt = fastopt.SGD(views, lr=1.0)
    vector, arrays, other = duplicate((flat, views, opt))
    other.step([np.ones((2, 2)), np.ones(2)])
    assert not vector.any() and not flat.any()
    assert (arrays[0] == -1.0).all() and (arrays[1] == -1.0).all()   # pickled together
