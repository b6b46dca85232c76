"""fastopt.KeyedOptimizer: one array per call, a state per key, and new arrays."""

import copy
import pickle

import numpy as np
import pytest
from rules import OPTIMIZERS, same_bits

import fastopt
from fastopt import KeyedOptimizer, schedules

SHAPES = {"W": (4, 3), "b": (3,), 7: (), ("conv", 0): (2, 1, 3, 3)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.__name__)
def test_updates_equal_those_of_an_optimizer_per_array(optimizer, dtype):
    rng = np.random.default_rng(0)
    arrays = {key: np.array(rng.standard_normal(shape), dtype) for key, shape in SHAPES.items()}
    expected = {key: w.copy() for key, w in arrays.items()}
    opt, separate = KeyedOptimizer(optimizer), {key: optimizer(w) for key, w in expected.items()}
    for _ in range(4):
        for key, w in arrays.items():
            g = np.array(rng.standard_normal(w.shape), dtype)
            before, g_before = w.copy(), g.copy()
            updated = opt.update(w, g, key)
            separate[key].step(g)
            assert same_bits(w, before) and same_bits(g, g_before)
            assert not np.shares_memory(updated, w) and updated.dtype == dtype
            assert same_bits(updated, expected[key])
            arrays[key] = updated
    assert {key: o.steps for key, o in opt.optimizers.items()} == dict.fromkeys(SHAPES, 4)


def test_weights_that_the_caller_changed_are_taken_over():
    opt = KeyedOptimizer(fastopt.SGD, lr=0.5, momentum=0.5)
    w = opt.update(np.ones(2), np.ones(2), "w")
    w = opt.update(np.full(2, 10.0), np.ones(2), "w")
    assert w.tolist() == [10.0 - 0.75] * 2
    view = np.full((4, 4), 1.0)[:, ::2][:2].T
    assert opt.update(view, np.zeros((2, 2)), "view").shape == (2, 2)


def test_without_a_key_an_object_serves_one_array():
    opt = KeyedOptimizer(fastopt.Adam, lr=0.1)
    w = np.ones(3)
    for _ in range(3):
        w = opt.update(w, np.ones(3))
    np.testing.assert_allclose(w, 0.7)
    with pytest.raises(ValueError, match=r"w: expected the array that the previous update .* returned"):
        opt.update(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"w: expected float64 of shape \(3,\).* its own key"):
        opt.update(np.ones(4), np.ones(4))
    assert opt.update(np.ones(3), np.ones(3), key="another") is not None
    assert opt.optimizers[None].steps == 3


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_are_independent(duplicate):
    """Some code makes an optimizer per array with ``copy.copy``."""
    opt = KeyedOptimizer(fastopt.Adam, lr=0.1)
    w = opt.update(np.ones(3), np.ones(3), "w")
    other = duplicate(opt)
    a, b = opt.update(w, np.full(3, 2.0), "w"), other.update(w, np.full(3, 2.0), "w")
    assert same_bits(a, b)
    opt.update(a, np.full(3, -9.0), "w")
    expected = copy.deepcopy(other).update(b, np.ones(3), "w")
    assert same_bits(other.update(b, np.ones(3), "w"), expected)
    assert other.optimizers["w"].steps == 3 and opt.optimizers["w"].steps == 3


def test_a_copy_without_keys_takes_any_array_first():
    opt = KeyedOptimizer(fastopt.SGD, lr=0.1)
    w = opt.update(np.ones(2), np.ones(2))
    other = copy.copy(opt)
    assert same_bits(other.update(w, np.ones(2)), opt.update(w, np.ones(2)))
    with pytest.raises(ValueError, match="pass a key"):
        other.update(w, np.ones(2))


def test_gradients_are_broadcast_and_converted():
    opt = KeyedOptimizer(fastopt.SGD, lr=0.5)
    w = np.zeros((1, 3), np.float32)
    for g in (np.ones(3), 1, np.ones((1, 3), np.int8), [[1.0, 1.0, 1.0]]):
        updated = opt.update(w, g, "w")
        assert updated.dtype == np.float32 and updated.tolist() == [[-0.5] * 3]


def test_schedules_and_options_of_a_step():
    opt = KeyedOptimizer(fastopt.SGD, lr=schedules.Step(1.0, 1, 0.5))
    w, b = np.zeros(1), np.zeros(1)
    for _ in range(3):
        w = opt.update(w, np.full(1, 8.0), "w", clip_value=1.0)
    assert w[0] == -1.75
    assert opt.update(b, np.ones(1), "b")[0] == -1.0    # its own first step


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda o: o.update(np.ones(2, int), np.ones(2), "w"), TypeError, "w: expected an array of float32"),
        (lambda o: o.update(None, np.ones(2), "w"), TypeError, "w: expected an array"),
        (lambda o: o.update(np.ones(2), np.ones(3), "w"), ValueError, r"g: .* shape \(2,\), got float64"),
        (lambda o: o.update(np.ones(2), np.ones((2, 2)), "w"), ValueError, r"g: .* of shape \(2, 2\)"),
        (lambda o: o.update(np.ones(2), None, "w"), TypeError, "g: expected numbers"),
        (lambda o: o.update(np.ones(2), 1j, "w"), TypeError, "g: expected numbers .* complex128"),
        (lambda o: o.update(np.ones(2, np.float32), 1.0, "w"), ValueError, "w: expected float64 of shape"),
        (lambda o: o.update(np.ones(2), 1.0, "w", speed=1), TypeError, "speed"),
        (lambda o: o.update(np.ones(2), 1.0, []), TypeError, "unhashable"),
    ],
)
def test_bad_input_changes_nothing(call, error, message):
    opt = KeyedOptimizer(fastopt.Adam, lr=0.1)
    twin = copy.copy(opt)
    w = opt.update(np.ones(2), np.ones(2), "w")
    twin.update(np.ones(2), np.ones(2), "w")
    with pytest.raises(error, match=message):
        call(opt)
    assert same_bits(opt.update(w, np.ones(2), "w"), twin.update(w, np.ones(2), "w"))
    assert list(opt.optimizers) == ["w"]


def test_hyperparameters_are_checked_at_once():
    with pytest.raises(ValueError, match="lr: expected"):
        KeyedOptimizer(fastopt.Adam, lr=-1.0)
    with pytest.raises(TypeError, match="speed"):
        KeyedOptimizer(fastopt.Adam, speed=1.0)
    for bad in ("Adam", fastopt.Adam(np.ones(1)), int):
        with pytest.raises(TypeError, match=r"optimizer: expected a class such as fastopt.Adam"):
            KeyedOptimizer(bad)
