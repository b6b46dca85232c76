"""fastopt.functional: how arguments are passed, and that nothing of a call is left in the next one."""

import threading
from math import inf, nan

import numpy as np
import pytest
from rules import RULES, same_bits

import fastopt
from fastopt import functional, reference
from fastopt._core.direct import KernelCall

ELEMENTWISE = [rule for rule in RULES if not rule.couples_elements]


def arrays_of(rule, n=50, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    p, g = (rng.standard_normal(n).astype(dtype) for _ in range(2))
    return p, g, rule.with_scalar_state({name: np.full(n, 0.1, dtype) for name in rule.state})


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_states_can_be_passed_by_position_and_by_name(rule):
    results = []
    for by_name in (False, True):
        p, g, state = arrays_of(rule)
        names = [name for name in rule.parameters if name in state]
        function, options = getattr(functional, rule.function), rule.arguments(2)
        in_order = names == list(rule.parameters)[2 : 2 + len(names)]
        for _ in range(3):
            if by_name:
                function(g=g, p=p, **{name: state[name] for name in reversed(names)}, **options)
            elif in_order:
                function(p, g, *[state[name] for name in names], **options)
            else:       # an optional array before them is left out
                given = [state.get(n) for n in list(rule.parameters)[2:] if n in state or n == "buf"]
                function(p, g, *given, **options)
        results.append((p, *[state[name] for name in rule.state]))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


CALLS = [
    {"lr": 0.1}, {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.1, "weight_decay": 0.1}, {"weight_decay": 0.1, "lr": 0.1},
    {"lr": 0.1, "betas": (0.5, 0.9)}, {"lr": 0.1, "betas": [0.5, 0.9]}, {"lr": 0.1, "betas": [0.5, 0.9]},
    {"lr": np.float64(0.1)}, {"lr": 0.1, "maximize": True}, {"lr": 0.1, "convention": "keras"}, {"lr": 0},
    {"lr": lambda step: 0.1 * step}, {"lr": 0.1, "eps": 1e-3}, {"lr": 0.1},
]


def test_a_call_depends_on_its_own_arguments_only():
    actual, expected = ([np.ones(20), np.zeros(20), np.zeros(20)] for _ in range(2))
    rng = np.random.default_rng(0)
    for i, options in enumerate(CALLS * 2):
        g = rng.standard_normal(20)
        for step in (i // len(CALLS) + 1, 5, np.int64(6)):
            functional.adam_(actual[0], g, *actual[1:], step=step, **options)
            step = int(step)
            lr = options["lr"](step - 1) if callable(options["lr"]) else options["lr"]
            reference.adam_(expected[0], g, *expected[1:], step=step, **{**options, "lr": lr})
            assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True)), (options, step)


def test_hyperparameters_that_are_changed_in_place_are_read_again():
    betas = [0.5, 0.9]
    p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    functional.adam_(p, np.ones(3), m, v, lr=0.1, betas=betas, step=2)
    betas[0] = 0.0
    functional.adam_(p, np.full(3, 7.0), m, v, lr=0.1, betas=betas, step=3)
    assert (m == 7.0).all()


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"lr": True}, TypeError), ({"lr": -1.0}, ValueError), ({"lr": nan}, ValueError),
        ({"lr": inf}, ValueError), ({"lr": "fast"}, TypeError), ({"eps": None}, TypeError),
        ({"betas": (0.9, 1.0)}, ValueError),
        ({"maximize": 1.0}, TypeError), ({"convention": "none"}, ValueError), ({"speed": 1.0}, TypeError),
        ({"step": True}, ValueError), ({"step": 0}, ValueError), ({"step": 1.0}, ValueError),
    ],
    ids=str,
)
def test_arguments_are_checked_in_every_call(bad, error):
    p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    good = {"lr": 1.0, "eps": 1e-8, "betas": (0.9, 0.99), "maximize": True, "convention": "torch", "step": 1}
    for _ in range(2):
        functional.adam_(p, np.ones(3), m, v, **good)
        before = p.copy(), m.copy(), v.copy()
        with pytest.raises(error, match=next(iter(bad))):
            functional.adam_(p, np.ones(3), m, v, **{**good, **bad})
        assert all(same_bits(a, b) for a, b in zip(before, (p, m, v), strict=True))


def test_a_missing_or_unknown_argument_is_noticed_after_a_call_with_others():
    p, g, m, v = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    bad_calls = [{"lr": 0.1}, {"lr": 0.1, "speed": 1}, {"step": 1}, {"step": 2, "betas": (0.9, 0.9)}]
    for step in (1, 2):
        functional.adam_(p, g, m, v, lr=0.1, step=step)
        for bad in bad_calls:
            with pytest.raises(TypeError, match=r"adam_\(\): "):
                functional.adam_(p, g, m, v, **bad)
    functional.sgd_(p, g, lr=0.1)
    for bad in ({}, {"step": 1}, {"lr": 0.1, "step": 1}):
        with pytest.raises(TypeError, match=r"sgd_\(\): "):
            functional.sgd_(p, g, **bad)
    functional.momentum_(p, g, m, lr=0.1)
    before = p.copy()
    with pytest.raises(TypeError, match=r"momentum_\(\): "):
        functional.momentum_(p, g, m, step=1)
    assert same_bits(p, before)


def replaced(arrays, i, array):
    return [*arrays[:i], array, *arrays[i + 1 :]]


BAD_ARRAYS = {
    "shape": lambda a: a[:2],
    "axes": lambda a: a[None],
    "dtype": lambda a: a.astype(complex),
    "byte order": lambda a: a.astype(">f8"),
    "integers": lambda a: a.astype(int),
    "list": lambda a: list(a),
    "none": lambda a: None,
}


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("spoil", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_are_checked_in_every_call(i, spoil):
    arrays = [np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)]
    for _ in range(2):
        functional.adam_(*arrays, lr=0.1, step=2)
        before = [a.copy() for a in arrays]
        with pytest.raises((TypeError, ValueError)):
            functional.adam_(*replaced(arrays, i, spoil(arrays[i])), lr=0.1, step=2)
        assert all(same_bits(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize(("i", "k"), [(i, k) for i in range(4) for k in range(i + 1, 4)])
def test_arrays_that_share_memory(i, k):
    """A gradient is copied first; anything else is refused."""
    whole = np.arange(1.0, 6.0)
    arrays = [np.ones(3), np.full(3, 2.0), np.zeros(3), np.zeros(3)]
    arrays[i], arrays[k] = whole[:3], whole[2:]
    if 1 in (i, k):
        expected = [a.copy() for a in arrays]
        functional.adam_(*arrays, lr=0.1, step=2)
        reference.adam_(*expected, lr=0.1, step=2)
        assert all(same_bits(arrays[n], expected[n]) for n in (0, 2, 3))
        return
    with pytest.raises(ValueError, match="share memory"):
        functional.adam_(*arrays, lr=0.1, step=2)
    assert same_bits(whole, np.arange(1.0, 6.0))


@pytest.mark.parametrize("i", [0, 2, 3])
def test_parameters_and_states_have_one_dtype(i):
    arrays = [np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)]
    with pytest.raises((TypeError, ValueError), match="float"):
        functional.adam_(*replaced(arrays, i, arrays[i].astype(np.float32)), lr=0.1, step=2)
    assert all(same_bits(a, np.full(3, float(k < 2))) for k, a in enumerate(arrays))


@pytest.mark.parametrize("layout", ["C", "F", "transposed"])
def test_any_layout_of_the_gradient(layout):
    rng = np.random.default_rng(0)
    p, g, m = (rng.standard_normal((3, 4)) for _ in range(3))
    q, n = p.copy(), m.copy()
    arranged = g.T.copy().T if layout == "transposed" else np.array(g, order=layout)
    functional.momentum_(p, arranged, m, lr=0.1)
    reference.momentum_(q, g, n, lr=0.1)
    assert same_bits(p, q) and same_bits(m, n)


@pytest.mark.parametrize("n", [100, 300_000])
def test_results_do_not_depend_on_threads(n, threads):
    results = []
    for count in (1, 2, 4):
        threads(count)
        rng = np.random.default_rng(0)
        p, g, m, v = (rng.standard_normal(n).astype(np.float32) for _ in range(4))
        functional.adam_(p, g, m, abs(v), lr=0.1, step=3)
        results.append(p)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


def test_calls_in_several_threads_do_not_share_hyperparameters():
    def work(lr, results):
        p = np.zeros(10)
        for step in range(1, 2000):
            functional.sgd_(p, np.ones(10), lr=lr)
            functional.momentum_(p, np.zeros(10), np.zeros(10), lr=lr, step=step)
        results[lr] = p

    results = {}
    workers = [threading.Thread(target=work, args=(float(lr), results)) for lr in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {lr: float(p[0]) for lr, p in results.items()} == {lr: -1999.0 * lr for lr in results}
    assert len(results) == 4


@pytest.mark.parametrize("scalars", [{}, {"lr": 1.0}, {"lr": 1.0, "denom_scale": 1.0, "eps": 1.0}], ids=str)
def test_scalars_that_a_kernel_does_not_have_are_refused(scalars):
    constants = {"decay_factor": 1.0, "eps": 0.0} | {f"beta{i}": 0.0 for i in (1, 2)}
    constants |= {f"one_minus_beta{i}": 1.0 for i in (1, 2)}
    call = KernelCall("adam", constants, False, 0.0, 1.0, False)
    arrays = np.ones(3), np.ones(3), (np.zeros(3), np.zeros(3))
    assert call.update_array({"lr": 1.0, "denom_scale": 1.0}, *arrays)
    before = arrays[0].copy()
    with pytest.raises(TypeError, match="adam: expected the scalars lr, denom_scale"):
        call.update_array(scalars, *arrays)
    with pytest.raises(TypeError, match="adam: unknown scalar 'speed', expected decay_factor, beta1"):
        KernelCall("adam", {"speed": 1.0}, False, 0.0, 1.0, False)
    assert same_bits(arrays[0], before)


def test_functions_equal_an_optimizer():
    p, m, v = np.ones(10), np.zeros(10), np.zeros(10)
    q = p.copy()
    opt = fastopt.AdamW(q, lr=0.1, weight_decay=0.1)
    for step in range(1, 10):
        g = np.full(10, 1.0 / step)
        functional.adamw_(p, g, m, v, lr=0.1, weight_decay=0.1, step=step)
        opt.step(g)
        assert same_bits(p, q)
