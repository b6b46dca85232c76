"""fastopt.solver takes whatever the article's NumPy lines take, with their result."""
# ruff: noqa: NPY002 (the solver draws from NumPy's global state, as the article does)

import itertools

import numpy as np
import pytest
from tutorial_nets import convolutional, fully_connected

import fastopt
from fastopt import solver
from fastopt.nn import check_gradients
from fastopt.nn.data import load_digits

LR, MU, BETA1, BETA2 = 0.1, 0.9, 0.9, 0.999


# --- the article's lines; each replaces the items of the lists --------------------------------------


def numpy_vanilla(states, p, g, t):
    p[0] -= LR * g[0]


def numpy_momentum(states, p, g, t):
    (v,) = states
    v[0] = MU * v[0] + LR * g[0]
    p[0] -= v[0]


def numpy_adagrad(states, p, g, t):
    (c,) = states
    c[0] = c[0] + g[0] ** 2
    p[0] -= LR * g[0] / (np.sqrt(c[0]) + 1e-8)


def numpy_rmsprop(states, p, g, t):
    (c,) = states
    c[0] = 0.9 * c[0] + (1 - 0.9) * g[0] ** 2
    p[0] -= LR * g[0] / (np.sqrt(c[0]) + 1e-4)


def numpy_adam(states, p, g, t):
    v, c = states
    v[0] = BETA1 * v[0] + (1 - BETA1) * g[0]
    c[0] = BETA2 * c[0] + (1 - BETA2) * g[0] ** 2
    p[0] -= LR * (v[0] / (1 - BETA1**t)) / (np.sqrt(c[0] / (1 - BETA2**t)) + 1e-4)


UPDATES = {
    "vanilla": (0, numpy_vanilla, lambda s, p, g, t: solver.vanilla_update(p, g, LR)),
    "momentum": (1, numpy_momentum, lambda s, p, g, t: solver.momentum_update(*s, p, g, LR, MU)),
    "adagrad": (1, numpy_adagrad, lambda s, p, g, t: solver.adagrad_update(*s, p, g, LR)),
    "rmsprop": (1, numpy_rmsprop, lambda s, p, g, t: solver.rmsprop_update(*s, p, g, LR)),
    "adam": (2, numpy_adam, lambda s, p, g, t: solver.adam_update(*s, p, g, LR, t=t)),
}


# --- kinds of arrays, made from a float64 array ------------------------------------------------------


def with_gaps(a):
    whole = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    view = whole[..., ::2]
    view[...] = a
    return view


def unaligned(a):
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = {
    "float64": lambda a: a.copy(),
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "byte order": lambda a: a.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "Fortran order, float32": lambda a: np.asfortranarray(a.astype(np.float32)),
    "axes permuted": lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
    "gaps": with_gaps,
    "gaps, float32": lambda a: with_gaps(a.astype(np.float32)),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "unaligned": unaligned,
    "masked": lambda a: np.ma.masked_array(a, mask=a > 1.0),
    "complex": lambda a: a.astype(complex),
}
PARAMS = {**LAYOUTS, "read-only": read_only, "integer": lambda a: (10 * a).astype(int)}
GRADS = {
    **LAYOUTS,
    "read-only": read_only,
    "integer": lambda a: (10 * a).astype(int),
    "short integer": lambda a: (10 * a).astype(np.int16),
    "boolean": lambda a: a > 0.0,
    "last axis": lambda a: a[0].copy(),
    "last axis, float32": lambda a: a[0].astype(np.float32),
    "first axis": lambda a: a[:, :1].copy(),
    "one more axis": lambda a: a[None],
    "another length": lambda a: a[..., :2],
    "number": lambda a: 0.5,
    "integer number": lambda a: 3,
    "NumPy number": lambda a: np.float32(0.5),
    "0-d array": lambda a: np.array(0.5),
    "list": lambda a: a.tolist(),
    "None": lambda a: None,
}
STATES = {
    "like the parameter": np.zeros_like,
    "float64": lambda p: np.zeros(p.shape),
    "float32": lambda p: np.zeros(p.shape, np.float32),
    "gaps": lambda p: with_gaps(np.zeros(p.shape)),
    "integer": lambda p: np.zeros(p.shape, int),
    "last axis": lambda p: np.zeros(p.shape[1:]),
    "number": lambda p: 0.0,
    "another length": lambda p: np.zeros((*p.shape[:-1], 7)),
    "read-only": lambda p: read_only(np.zeros(p.shape)),
}
SHAPES = [(3, 4), (1, 5), (2, 3, 4)]
CASES = [
    *itertools.product(PARAMS, ["float64", "float32", "last axis"], ["like the parameter"]),
    *itertools.product(["float64", "float32", "Fortran order", "gaps"], GRADS, ["like the parameter"]),
    *itertools.product(["float64", "float32", "Fortran order"], ["float64", "last axis"], STATES),
]


def run(step, p, grads, states):
    """Return the error of a step or None, after up to three of them."""
    for t, g in enumerate(grads, 1):
        try:
            step(states, p, g, t)
        except (TypeError, ValueError) as error:
            return error
    return None


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize(("param", "grad", "state"), dict.fromkeys(CASES))
@pytest.mark.filterwarnings("ignore:.*encountered in", "ignore:Casting complex")
def test_updates_take_what_numpy_takes(name, param, grad, state):
    count, numpy_step, step = UPDATES[name]
    for shape in SHAPES:
        rng = np.random.default_rng(0)
        start = rng.standard_normal(shape)
        grads = [[GRADS[grad](rng.standard_normal(shape))] for _ in range(3)]
        p, q = [PARAMS[param](start)], [PARAMS[param](start)]
        states, numpy_states = ([[STATES[state](p[0])] for _ in range(count)] for _ in range(2))
        array, before = p[0], p[0].copy()
        states_before = [np.copy(s[0]) for s in states]

        expected = run(numpy_step, q, grads, numpy_states)
        actual = run(lambda s, p, g, t: step([[x] for x in s], [p], [g], t), p, grads, states)
        assert (actual is None) == (expected is None), (actual, expected)
        assert p[0] is array
        if expected is not None:    # NumPy may have written something before; nothing is written here
            assert isinstance(actual, TypeError | ValueError)
            np.testing.assert_array_equal(p[0], before)
            for s, s_before in zip(states, states_before, strict=True):
                np.testing.assert_array_equal(s[0], s_before)
            continue
        rough = {"f": 2e-5, "e": 2e-2}
        dtypes = [np.asarray(a).dtype.char for a in (array, grads[0][0], *states_before)]
        tolerance = max(rough.get(char, 1e-12) for char in dtypes)
        np.testing.assert_allclose(p[0], q[0], rtol=tolerance, atol=tolerance)
        for s, numpy_s in zip(states, numpy_states, strict=True):
            np.testing.assert_allclose(s[0], numpy_s[0], rtol=tolerance, atol=tolerance)


def layers_of(rng, dtype=np.float64):
    return [[rng.standard_normal(shape).astype(dtype) for shape in layer] for layer in LAYERS]


LAYERS = [[(6, 5), (1, 5)], [], [(5, 4), (1, 4)], [(4, 3), (1, 3)]]


def numpy_layers(numpy_step, states, params, grads, t):
    for i, layer in enumerate(params):
        for k in range(len(layer)):
            p, one = [layer[k]], [[s[i][k]] for s in states]
            numpy_step(one, p, [grads[len(params) - 1 - i][k]], t)
            for s, new in zip(states, one, strict=True):
                s[i][k] = new[0]


def zeros(layers):
    return [[np.zeros_like(a) for a in layer] for layer in layers]


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize(("i", "k", "kind"), [(0, 0, "gaps"), (2, 1, "Fortran order"), (3, 0, "float32")])
def test_one_unusual_parameter_among_others(name, i, k, kind):
    count, numpy_step, step = UPDATES[name]
    rng = np.random.default_rng(0)
    params = layers_of(rng)
    params[i][k] = PARAMS[kind](params[i][k])
    expected = [[a.copy() for a in layer] for layer in params]
    states, numpy_states = ([zeros(params) for _ in range(count)] for _ in range(2))
    arrays = [a for layer in params for a in layer]
    for t in range(1, 4):
        grads = [[g if g.shape[0] > 1 else g[0] for g in layer] for layer in layers_of(rng)[::-1]]
        step(states, params, grads, t)
        numpy_layers(numpy_step, numpy_states, expected, grads, t)
    for a, b in zip(arrays, [a for layer in expected for a in layer], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5 if kind == "float32" else 1e-12)
    assert all(a is b for a, b in zip(arrays, [a for layer in params for a in layer], strict=True))


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("shared", ["parameters", "columns", "states", "gradients", "gradient and parameter"])
def test_arrays_that_share_memory(name, shared):
    """Tied parameters are updated once per place, and state arrays that are shared become separate ones."""
    count, numpy_step, step = UPDATES[name]
    results = []
    for is_numpy in (False, True):
        rng = np.random.default_rng(0)
        params = [[rng.standard_normal((4, 4)), rng.standard_normal((4, 4))]]
        states = [zeros(params) for _ in range(count)]
        grads = [[rng.standard_normal((4, 4)) for _ in range(2)]]
        if shared == "parameters":
            params[0][1] = params[0][0].T
        elif shared == "columns":
            whole = rng.standard_normal((4, 8))
            params = [[whole[:, ::2], whole[:, 1::2]]]
        elif shared == "states":
            states = [[[s[0][0], s[0][0]]] for s in states]
        elif shared == "gradients":
            grads[0][1] = grads[0][0]
        else:
            grads[0][0] = params[0][0]
        for t in range(1, 3):
            if is_numpy:
                numpy_layers(numpy_step, states, params, grads, t)
            else:
                step(states, params, grads, t)
        results.append([*params[0], *(s for state in states for s in state[0])])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_numbers_as_parameters():
    params, states = [[1.0, np.float64(2.0)], [np.array(3.0)]], [[0.0, 0.0], [0.0]]
    solver.momentum_update(states, params, [[2], [1.0, 0.5]], 0.1)
    assert params == [[0.9, 1.95], [2.8]] and states == [[0.1, 0.05], [0.2]]


def test_a_layer_may_be_an_array():
    params, states = [np.ones(3), np.ones((1, 2))], [np.zeros(3), np.zeros((1, 2))]
    solver.momentum_update(states, params, [np.ones(2), np.full(3, 2.0)], 0.1)
    assert (params[0] == 0.8).all() and (params[1] == 0.9).all()
    solver.momentum_update(states, params, [0.0, np.zeros(3, int)], 0.1, 0.5)
    np.testing.assert_allclose(params[0], 0.7)
    np.testing.assert_allclose(params[1], 0.85)


def test_float64_gradients_outside_the_range_of_float32():
    p = np.zeros(2, np.float32)
    solver.vanilla_update([[p]], [[np.array([1e39, -1e39])]], 1e-39)
    np.testing.assert_allclose(p, [-1.0, 1.0], rtol=1e-6)


def test_small_integers_do_not_overflow():
    p = np.zeros(1)
    cache = [[np.zeros(1)]]
    solver.adagrad_update(cache, [[p]], [[np.array([100], np.int8)]])
    assert cache[0][0][0] == 10000.0


# --- networks as in tutorials -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits()
    return X[:300].astype(np.float64), y[:300]


NETWORKS = {"fully connected": fully_connected, "convolutional": convolutional}
TRAINERS = {
    "sgd": (solver.sgd, numpy_vanilla, {}),
    "momentum": (solver.sgd_momentum, numpy_momentum, {"mu": MU}),
    "nesterov": (solver.sgd_momentum, None, {"mu": MU, "nesterov": True}),
    "adagrad": (solver.adagrad, numpy_adagrad, {}),
    "rmsprop": (solver.rmsprop, numpy_rmsprop, {}),
    "adam": (solver.adam, numpy_adam, {"beta1": BETA1, "beta2": BETA2}),
}


def make(network, dtype, digits):
    X, y = digits
    return NETWORKS[network](dtype), X if network == "fully connected" else X.reshape(-1, 1, 8, 8), y


def numpy_training(net, X, y, name, epochs):
    """The article's loop with the article's lines; for Nesterov momentum, at the look-ahead point."""
    step = TRAINERS[name][1]
    states, t = [zeros(net.params) for _ in range(2)], 0
    for _ in range(epochs):
        order = np.random.permutation(len(X))
        for start in range(0, len(X), 32):
            batch, t = order[start : start + 32], t + 1
            if step is not None:
                grads = net.train_step(X[batch], y[batch])[1]
                numpy_layers(step, states[: 2 if name == "adam" else name != "sgd"], net.params, grads, t)
                continue
            saved = [[a.copy() for a in layer] for layer in net.params]
            for layer, velocity in zip(net.params, states[0], strict=True):
                for p, v in zip(layer, velocity, strict=True):
                    p -= MU * v
            grads = net.train_step(X[batch], y[batch])[1]
            for layer, copies in zip(net.params, saved, strict=True):
                for p, copy in zip(layer, copies, strict=True):
                    p[...] = copy
            numpy_layers(numpy_momentum, states[:1], net.params, grads, t)
    return net


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", TRAINERS)
def test_networks_of_tutorials_are_trained(name, network, dtype, digits, monkeypatch):
    train, _, options = TRAINERS[name]
    lr = {"sgd": 0.1, "momentum": 0.02, "nesterov": 0.02, "adagrad": 0.05}.get(name, 0.005)
    monkeypatch.setitem(globals(), "LR", lr)
    net, X, y = make(network, dtype, digits)
    arrays = [a for layer in net.params for a in layer]
    before = net.train_step(X, y)[0]
    np.random.seed(0)
    train(net, X, y, 32, 3, lr, verbose=False, **options)
    assert net.train_step(X, y)[0] < 0.8 * before
    expected, *_ = make(network, dtype, digits)
    np.random.seed(0)
    numpy_training(expected, X, y, name, 3)
    tolerance = 1e-9 if dtype == np.float64 else 2e-3
    for layer, expected_layer in zip(net.params, expected.params, strict=True):
        for a, b in zip(layer, expected_layer, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert all(a is b for a, b in zip(arrays, [a for layer in net.params for a in layer], strict=True))
    assert {a.dtype for a in arrays} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", [fastopt.SGD, fastopt.Adam, fastopt.RMSprop], ids=lambda o: o.__name__)
def test_networks_of_tutorials_in_the_trainer(optimizer, network, dtype, digits):
    net, X, y = make(network, dtype, digits)
    before = net.train_step(X, y)[0]
    lr = 0.1 if optimizer is fastopt.SGD else 0.005
    trainer = fastopt.Trainer(net, optimizer(net.params, lr=lr))
    history = trainer.fit(X, y, 32, epochs=3, verbose=0, seed=0)
    assert net.train_step(X, y)[0] < 0.8 * before
    assert history.history["loss"][-1] < history.history["loss"][0]
    state = trainer.state_dict()
    trainer.fit(X, y, 32, verbose=0)
    trainer.load_state_dict(state)
    for layer, name in zip(net.params, range(len(net.params)), strict=True):
        for k, array in enumerate(layer):
            np.testing.assert_array_equal(array, state["net"][f"params[{name}][{k}]"])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_of_networks_of_tutorials_are_checked(network, dtype, digits):
    net, X, y = make(network, dtype, digits)
    before = [[a.copy() for a in layer] for layer in net.params]
    X = X[:3]
    good = check_gradients(net, X, y[:3])
    assert good < (1e-5 if dtype == np.float64 else 2e-2)
    for layer, copies in zip(net.params, before, strict=True):
        for a, copy in zip(layer, copies, strict=True):
            np.testing.assert_array_equal(a, copy)
    train_step = net.train_step

    def wrong_step(X, y):
        loss, grads = train_step(X, y)
        grads[0][1][0] += 0.1
        return loss, grads

    net.train_step = wrong_step
    assert check_gradients(net, X, y[:3]) == pytest.approx(0.1, rel=0.2)
