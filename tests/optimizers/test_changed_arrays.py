"""Arrays that are changed in place after the optimizer was made."""

import numpy as np
import pytest

import fastopt


def read_only(a):
    a.flags.writeable = False


def larger(a):
    a.resize(10_000, refcheck=False)


def smaller(a):
    a.resize((3, 2), refcheck=False)


def reshaped(a):
    a.shape = (24,)


def transposed(a):
    a.shape = (6, 4)


CHANGES = [read_only, larger, smaller, reshaped, transposed]


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype)")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"ema": 0.5}])
def test_a_parameter_that_was_changed_in_place(change, options):
    params = {"a": np.ones((4, 6)), "b": np.ones((4, 6))}
    opt = fastopt.Adam(params, **options)
    grads = {"a": np.ones((4, 6)), "b": np.ones((4, 6))}
    opt.step(grads)
    opt.step(grads)
    before, steps = params["a"].copy(), opt.steps
    change(params["b"])
    state = [a.copy() for a in opt.state[0].values()]
    with pytest.raises(ValueError, match=r'params\["b"\]: .*resized, reshaped, retyped or made read-only'):
        for _ in range(2):
            opt.step(grads)
    assert (params["a"] == before).all() and opt.steps == steps
    assert all((a == b).all() for a, b in zip(state, opt.state[0].values(), strict=True))


def test_views_of_an_array_that_was_resized():
    flat = np.ones(24)
    params = [flat[:10], flat[10:].reshape(2, 7)]
    opt = fastopt.SGD(params, lr=1.0)
    grads = [np.ones(10), np.ones((2, 7))]
    opt.step(grads)
    flat.shape = (4, 6)     # all elements are where they were
    opt.step(grads)
    assert (flat == -1).all()
    flat.resize(100_000, refcheck=False)
    with pytest.raises(ValueError, match=r"params\[0\]: the array is a view of an array that was resized"):
        opt.step(grads)


def test_a_change_that_was_undone_is_no_change():
    p = np.ones((4, 6))
    opt = fastopt.SGD(p, lr=1.0)
    p.flags.writeable = False
    with pytest.raises(ValueError, match="params: "):
        opt.step(p.copy())
    p.flags.writeable = True
    opt.step(np.ones((4, 6)))
    assert (p == 0).all()


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype)")
@pytest.mark.parametrize("size", [1, 200])      # kept from step to step, and not
def test_a_gradient_that_was_changed_in_place(size):
    shape = (4, 6 * size)
    p = np.ones(shape)
    opt = fastopt.SGD(p, lr=1.0)
    g = np.ones(shape)
    opt.step(g)
    g.shape = (24 * size,)
    with pytest.raises(ValueError, match=r"grads: expected shape \(4, .*, got \(\d+,\)"):
        opt.step(g)
    g.shape = (6 * size, 4)
    with pytest.raises(ValueError, match="grads: expected shape"):
        opt.step(g)
    g.shape = shape
    g.flags.writeable = False
    with pytest.raises(ValueError, match="zero_grad=True needs a writeable array"):
        opt.step(g, zero_grad=True)
    opt.step(g)
    assert (p == -1).all()
    g.flags.writeable = True
    g.dtype = np.int64
    with pytest.raises(TypeError, match="got int64"):
        opt.step(g)
    g.dtype = np.float64
    g.resize((2, 2), refcheck=False)
    with pytest.raises(ValueError, match="grads: expected shape"):
        opt.step(g)
    opt.step(np.ones(shape), zero_grad=True)
    assert opt.steps == 3


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype)")
def test_rows_that_are_behind(change):
    p = np.ones((4, 6))
    opt = fastopt.Adam(p, sparse="exact")
    opt.step_rows(p, [1], np.ones((1, 6)))
    opt.step_rows(p, [2], np.ones((1, 6)))
    change(p)
    for call in (opt.catch_up, opt.state_dict, lambda: opt.step(fastopt.Rows([1], np.ones((1, 6))))):
        with pytest.raises(ValueError, match="params: the array was resized"):
            call()
