"""fastopt.solver: the article's functions against plain NumPy, and against the code as printed.

The nets here are the article's kind: plain NumPy, gradients from the last layer to the first.
"""
# ruff: noqa: NPY002 (the solver draws from NumPy's global state, as the article does)

import re
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import solver
from fastopt.nn import MLP
from fastopt.nn.data import load_digits, train_test_split

# --- networks ---------------------------------------------------------------------------------------


class TwoLayers:
    """Dense, ReLU (a layer without parameters), dense, softmax cross-entropy."""

    def __init__(self, inputs, hidden, outputs, seed=0):
        rng = np.random.default_rng(seed)
        self.W1 = rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, hidden))
        self.b1 = np.zeros(hidden)
        self.W2 = rng.normal(0.0, np.sqrt(2.0 / hidden), (hidden, outputs))
        self.b2 = np.zeros((1, outputs))
        self.params = [[self.W1, self.b1], [], [self.W2, self.b2]]

    def train_step(self, X, y):
        hidden = np.maximum(X @ self.W1 + self.b1, 0.0)
        scores = hidden @ self.W2 + self.b2
        scores -= scores.max(axis=1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        loss = -log_p[np.arange(len(y)), y].mean()
        back = np.exp(log_p)
        back[np.arange(len(y)), y] -= 1.0
        back /= len(y)
        last = [hidden.T @ back, back.sum(axis=0, keepdims=True)]
        back = (back @ self.W2.T) * (hidden > 0.0)
        return loss, [last, [], [X.T @ back, back.sum(axis=0)]]

    def predict(self, X):
        return np.argmax(np.maximum(X @ self.W1 + self.b1, 0.0) @ self.W2 + self.b2, axis=1)


class Scripted:
    """A network with predefined gradients that records its inputs."""

    SHAPES = (((3, 2), (2,)), (), ((2, 1, 4, 2),), ((), (0, 3)))

    def __init__(self, steps, seed=0):
        rng = np.random.default_rng(seed)
        self.params = [[rng.normal(size=shape) for shape in layer] for layer in self.SHAPES]
        self.script = [
            [[rng.normal(size=shape) for shape in layer] for layer in reversed(self.SHAPES)]
            for _ in range(steps)
        ]
        self.seen_params, self.batches = [], []

    def train_step(self, X, y):
        self.seen_params.append(copied(self.params))
        self.batches.append((X, y))
        return 0.5, self.script[len(self.batches) - 1]

    def predict(self, X):
        return np.zeros(len(X), dtype=int)


def copied(layers):
    return [[array.copy() for array in layer] for layer in layers]


def zeros(layers):
    return [[np.zeros_like(array) for array in layer] for layer in layers]


def flat(layers):
    return np.concatenate([array.ravel() for layer in layers for array in layer])


def twelve_samples():
    return np.arange(24.0).reshape(12, 2), np.arange(12) % 2


# --- optimizers in plain NumPy -------------------------------------------------------------------
# Each returns (start, update): the initial state of one parameter, and the function of a step.


def plain_sgd(lr):
    return lambda p: (), lambda p, g, s, t: -lr * g


def plain_momentum(lr, mu=0.9):
    def update(p, g, s, t):
        s[0][...] = mu * s[0] + lr * g
        return -s[0]

    return lambda p: (np.zeros_like(p),), update


def plain_adagrad(lr):
    def update(p, g, s, t):
        s[0][...] += g**2
        return -lr * g / (np.sqrt(s[0]) + 1e-8)

    return lambda p: (np.zeros_like(p),), update


def plain_rmsprop(lr, decay_rate=0.9):
    def update(p, g, s, t):
        s[0][...] = decay_rate * s[0] + (1 - decay_rate) * g**2
        return -lr * g / (np.sqrt(s[0]) + 1e-4)

    return lambda p: (np.zeros_like(p),), update


def plain_adam(lr, beta1=0.9, beta2=0.999, eps=1e-4):
    def update(p, g, s, t):
        s[0][...] = beta1 * s[0] + (1 - beta1) * g
        s[1][...] = beta2 * s[1] + (1 - beta2) * g**2
        return -lr * (s[0] / (1 - beta1**t)) / (np.sqrt(s[1] / (1 - beta2**t)) + eps)

    return lambda p: (np.zeros_like(p), np.zeros_like(p)), update


def plain_training(net, X, y, minibatch_size, epoch, rule, restart=False, redraw=True):
    """The article's loop in plain NumPy.

    `restart` and ``redraw=False`` put two of the printed faults back: state created again in every
    epoch, and minibatches drawn once and for all.
    """
    start, update = rule
    batches = None
    for number in range(epoch):
        if batches is None or redraw:
            order = np.random.permutation(len(X))
            cuts = [order[i : i + minibatch_size] for i in range(0, len(X), minibatch_size)]
            batches = [(X[cut], y[cut]) for cut in cuts]
        if number == 0 or restart:
            t, state = 0, [[start(p) for p in layer] for layer in net.params]
        for X_batch, y_batch in batches:
            _, grads = net.train_step(X_batch, y_batch)
            t += 1
            for layer, states, layer_grads in zip(net.params, state, grads[::-1], strict=True):
                for p, s, g in zip(layer, states, layer_grads, strict=True):
                    p += update(p, g, s, t)
    return net


RULES = {
    "sgd": (solver.sgd, plain_sgd),
    "sgd_momentum": (solver.sgd_momentum, plain_momentum),
    "adagrad": (solver.adagrad, plain_adagrad),
    "rmsprop": (solver.rmsprop, plain_rmsprop),
    "adam": (solver.adam, plain_adam),
}
WITH_STATE = [name for name in RULES if name != "sgd"]


# --- digits -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits()
    return train_test_split(X.astype(np.float64), y, test_size=0.25, seed=0)


LEARNERS = {
    "sgd": (solver.sgd, 0.2, {}),
    "momentum": (solver.sgd_momentum, 0.05, {}),
    "nesterov": (solver.sgd_momentum, 0.05, {"nesterov": True}),
    "adagrad": (solver.adagrad, 0.05, {}),
    "rmsprop": (solver.rmsprop, 0.005, {}),
    "adam": (solver.adam, 0.005, {}),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_digits_are_learned(name, digits):
    X_train, X_test, y_train, y_test = digits
    train, learning_rate, options = LEARNERS[name]
    np.random.seed(0)
    net = TwoLayers(64, 32, 10)
    assert solver.accuracy(y_test, net.predict(X_test)) < 0.5
    returned = train(net, X_train, y_train, 32, 12, learning_rate, verbose=False, **options)
    assert returned is net
    assert solver.accuracy(y_test, net.predict(X_test)) >= 0.93


def test_digits_are_learned_by_mlp(digits):
    X_train, X_test, y_train, y_test = digits
    np.random.seed(0)
    net = MLP([64, 32, 10], seed=0)
    solver.adam(net, X_train.astype(np.float32), y_train, 32, 12, 0.005, verbose=False)
    assert solver.accuracy(y_test, net.predict(X_test.astype(np.float32))) >= 0.93


# --- against plain NumPy -------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_training_agrees_with_plain_numpy(name, digits):
    X, _, y, _ = digits
    train, rule = RULES[name]
    np.random.seed(3)
    got = train(TwoLayers(64, 8, 10), X[:100], y[:100], 16, 4, 0.01, verbose=False)
    np.random.seed(3)
    expected = plain_training(TwoLayers(64, 8, 10), X[:100], y[:100], 16, 4, rule(0.01))
    np.testing.assert_allclose(flat(got.params), flat(expected.params), rtol=1e-9, atol=1e-12)


OPTIONS = [
    (solver.sgd_momentum, {"mu": 0.5}, plain_momentum(0.1, 0.5)),
    (solver.rmsprop, {"decay_rate": 0.5}, plain_rmsprop(0.1, 0.5)),
    (solver.adam, {"beta1": 0.5, "beta2": 0.9}, plain_adam(0.1, 0.5, 0.9)),
]


@pytest.mark.parametrize(("train", "options", "rule"), OPTIONS, ids=["mu", "decay_rate", "betas"])
def test_options_reach_the_optimizer(train, options, rule):
    X, y = twelve_samples()
    got = train(Scripted(6), X, y, 4, 2, 0.1, verbose=False, **options)
    expected = plain_training(Scripted(6), X, y, 4, 2, rule)
    np.testing.assert_allclose(flat(got.params), flat(expected.params), rtol=1e-12, atol=1e-15)


def update_cases():
    """Yield update functions and the same optimizers in plain NumPy."""
    yield "vanilla", lambda s, p, g, t: solver.vanilla_update(p, g, 0.1), plain_sgd(0.1)
    yield "vanilla-default", lambda s, p, g, t: solver.vanilla_update(p, g), plain_sgd(0.01)
    yield (
        "momentum",
        lambda s, p, g, t: solver.momentum_update(s[0], p, g, 0.1, 0.5),
        plain_momentum(0.1, 0.5),
    )
    yield (
        "momentum-default",
        lambda s, p, g, t: solver.momentum_update(s[0], p, g),
        plain_momentum(0.01, 0.9),
    )
    yield "adagrad", lambda s, p, g, t: solver.adagrad_update(s[0], p, g, 0.1), plain_adagrad(0.1)
    yield "adagrad-default", lambda s, p, g, t: solver.adagrad_update(*s, p, g), plain_adagrad(0.01)
    yield (
        "rmsprop",
        lambda s, p, g, t: solver.rmsprop_update(s[0], p, g, 0.1, 0.5),
        plain_rmsprop(0.1, 0.5),
    )
    yield (
        "rmsprop-default",
        lambda s, p, g, t: solver.rmsprop_update(s[0], p, g),
        plain_rmsprop(0.01, 0.9),
    )
    yield (
        "adam",
        lambda s, p, g, t: solver.adam_update(s[0], s[1], p, g, 0.1, 0.5, 0.9, t=t, eps=1e-3),
        plain_adam(0.1, 0.5, 0.9, 1e-3),
    )
    yield (
        "adam-default",
        lambda s, p, g, t: solver.adam_update(s[0], s[1], p, g, t=t),
        plain_adam(0.01),
    )


@pytest.mark.parametrize(
    ("update", "rule"), [case[1:] for case in update_cases()], ids=[c[0] for c in update_cases()]
)
def test_updates_agree_with_plain_numpy(update, rule):
    start, plain = rule
    net, expected = Scripted(5), copied(Scripted(5).params)
    arrays = [id(p) for layer in net.params for p in layer]
    count = len(start(np.zeros(1)))
    states = [zeros(net.params) for _ in range(count)]
    plain_states = [[start(p) for p in layer] for layer in expected]
    for t, grads in enumerate(net.script, start=1):
        before = copied(grads)
        update(states, net.params, grads, t)
        for layer, layer_states, layer_grads in zip(
            expected, plain_states, grads[::-1], strict=True
        ):
            for p, s, g in zip(layer, layer_states, layer_grads, strict=True):
                p += plain(p, g, s, t)
        assert np.array_equal(flat(before), flat(grads))
    np.testing.assert_allclose(flat(net.params), flat(expected), rtol=1e-12, atol=1e-15)
    for k, state in enumerate(states):
        kept = [[s[k] for s in layer] for layer in plain_states]
        np.testing.assert_allclose(flat(state), flat(kept), rtol=1e-12, atol=1e-15)
    assert [id(p) for layer in net.params for p in layer] == arrays


def test_gradients_in_the_order_of_the_parameters():
    class Forwards(Scripted):
        grads_reversed = False

        def train_step(self, X, y):
            loss, grads = super().train_step(X, y)
            return loss, grads[::-1]

    X, y = twelve_samples()
    forwards, backwards = Forwards(6), Scripted(6)
    solver.adam(forwards, X, y, 4, 2, 0.1, verbose=False)
    solver.adam(backwards, X, y, 4, 2, 0.1, verbose=False)
    assert np.array_equal(flat(forwards.params), flat(backwards.params))


def test_the_learning_rate_may_be_a_schedule():
    X, y = twelve_samples()
    net = Scripted(6)
    start = flat(net.params)
    solver.sgd(net, X, y, 4, 2, lambda step: 0.1 * step, verbose=False)
    steps = sum(0.1 * t * flat(grads[::-1]) for t, grads in enumerate(net.script))
    np.testing.assert_allclose(flat(net.params), start - steps, rtol=1e-12)


def test_the_learning_rate_is_inside_the_velocity():
    X, y = twelve_samples()
    net = Scripted(6)
    p, v = flat(net.params), 0.0
    solver.sgd_momentum(net, X, y, 4, 2, lambda step: 0.1 / (1 + step), 0.5, False)
    for step, grads in enumerate(net.script):
        v = 0.5 * v + 0.1 / (1 + step) * flat(grads[::-1])
        p = p - v
    np.testing.assert_allclose(flat(net.params), p, rtol=1e-12)


# --- corrections: what the printed code does, and what this one does ------------------------------


@pytest.mark.parametrize("name", WITH_STATE)
def test_state_is_kept_through_all_epochs(name):
    train, rule = RULES[name]
    X, y = twelve_samples()
    paths = {}
    for epoch in (1, 3):
        actual = train(Scripted(9), X, y, 4, epoch, 0.1, verbose=False)
        right = plain_training(Scripted(9), X, y, 4, epoch, rule(0.1))
        printed = plain_training(Scripted(9), X, y, 4, epoch, rule(0.1), restart=True)
        paths[epoch] = flat(actual.params), flat(right.params), flat(printed.params)
    actual, right, printed = paths[1]
    np.testing.assert_allclose(actual, right, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(printed, right)  # One epoch does not reveal the error.
    actual, right, printed = paths[3]
    np.testing.assert_allclose(actual, right, rtol=1e-12, atol=1e-15)
    assert np.abs(printed - right).max() > 0.01


def test_a_restarted_adam_takes_its_first_step_again_in_every_epoch():
    # The first step of Adam equals the learning rate for any gradient. After a hundred gradients of 1, a
    # gradient of 0.01 should hardly change the step.
    class Settled(Scripted):
        SHAPES = (((1,),),)

        def __init__(self):
            super().__init__(101)
            self.script = [[[np.ones(1)]]] * 100 + [[[np.full(1, -0.01)]]]

    X, y = np.zeros((101, 1)), np.zeros(101)

    def last_step(net):
        return flat(net.params)[0] - flat(net.seen_params[-1])[0]

    # Epochs of one step each, so that the printed code restarts before the last one.
    printed = plain_training(Settled(), X, y, 101, 101, plain_adam(0.1), restart=True)
    actual = solver.adam(Settled(), X, y, 101, 101, 0.1, verbose=False)
    assert last_step(printed) == pytest.approx(0.1, rel=0.02)  # the state was discarded
    assert last_step(actual) == pytest.approx(-0.09, rel=0.02)  # the first moment is kept


def test_minibatches_are_shuffled_in_every_epoch():
    X, y = twelve_samples()

    def epochs(net):
        """Return the samples of the three minibatches of each epoch."""
        seen = [tuple(batch[:, 0].astype(int)) for batch, _ in net.batches]
        return [seen[i : i + 3] for i in range(0, len(seen), 3)]

    np.random.seed(0)
    actual = epochs(solver.sgd(Scripted(12), X, y, 4, 4, 0.1, verbose=False))
    printed = epochs(plain_training(Scripted(12), X, y, 4, 4, plain_sgd(0.1), redraw=False))
    for epoch in actual + printed:
        assert sorted(sum(epoch, ())) == list(range(0, 24, 2))
    grouped = [{frozenset(batch) for batch in epoch} for epoch in actual]
    assert all(one != other for i, one in enumerate(grouped) for other in grouped[:i])
    assert printed[1:] == printed[:-1]


def printed_adagrad_update(cache, params, grads, learning_rate):
    """AdaGrad with the printed index, which selects the list of layers instead of the layer."""
    for _, layer, layer_grads in zip(cache, params, grads[::-1], strict=True):
        for i in range(len(layer)):
            cache[i] += layer_grads[i] ** 2
            layer[i] -= learning_rate * layer_grads[i] / (np.sqrt(cache[i]) + 1e-8)


def test_adagrad_has_one_cache_per_array():
    W, b = np.ones((3, 2)), np.ones(2)
    grads = [[np.full((3, 2), 2.0), np.full(2, 4.0)]]
    # With a weight and a bias, the list of the layer is used as an array.
    with pytest.raises(ValueError, match="inhomogeneous"):
        printed_adagrad_update(zeros([[W, b]]), [[W.copy(), b.copy()]], grads, 0.1)
    cache, params = zeros([[W, b]]), [[W, b]]
    solver.adagrad_update(cache, params, grads, 0.1)
    assert np.all(cache[0][0] == 4.0) and np.all(cache[0][1] == 16.0)
    np.testing.assert_allclose(flat(params), 0.9, rtol=1e-7)

    # With one array per layer the shapes match, and all layers share one cache.
    layers = [[np.ones(2)], [np.ones(2)]]
    grads = [[np.full(2, 2.0)], [np.full(2, 1.0)]]
    printed_layers = copied(layers)
    printed_adagrad_update([np.zeros(2), np.zeros(2)], printed_layers, grads, 0.1)
    cache = zeros(layers)
    solver.adagrad_update(cache, layers, grads, 0.1)
    assert flat(cache).tolist() == [1.0, 1.0, 4.0, 4.0]
    np.testing.assert_allclose(flat(layers), 0.9, rtol=1e-7)
    np.testing.assert_allclose(printed_layers[1][0], 1 - 0.1 * 2 / np.sqrt(1 + 4), rtol=1e-7)


def printed_adam_step(shared, params, grads, learning_rate, t):
    """Adam with one list for both moments, as printed."""
    for c, v, layer, layer_grads in zip(shared, shared, params, grads[::-1], strict=True):
        for i in range(len(layer)):
            c[i] = 0.9 * c[i] + 0.1 * layer_grads[i]
            v[i] = 0.999 * v[i] + 0.001 * layer_grads[i] ** 2
            mt, vt = c[i] / (1 - 0.9**t), v[i] / (1 - 0.999**t)
            layer[i] -= learning_rate * mt / (np.sqrt(vt) + 1e-4)


def test_adam_has_two_moments(digits):
    X_train, _, y_train, _ = digits
    printed, actual = TwoLayers(64, 32, 10), TwoLayers(64, 32, 10)
    _, grads = printed.train_step(X_train, y_train)
    with np.errstate(invalid="ignore"):
        printed_adam_step(zeros(printed.params), printed.params, grads, 0.005, 1)
    # The square root of an average of gradients is NaN if the gradient is negative.
    negative = flat(grads[::-1]) < 0.0
    assert np.array_equal(np.isnan(flat(printed.params)), negative) and negative.sum() > 500

    velocity, cache = zeros(actual.params), zeros(actual.params)
    start = flat(actual.params)
    solver.adam_update(velocity, cache, actual.params, grads, 0.005, t=1)
    g = flat(grads[::-1])
    np.testing.assert_allclose(flat(velocity), 0.1 * g, rtol=1e-12)
    np.testing.assert_allclose(flat(cache), 0.001 * g**2, rtol=1e-12)
    np.testing.assert_allclose(flat(actual.params), start - 0.005 * g / (np.abs(g) + 1e-4), rtol=1e-9)


def test_adam_rejects_one_list_for_both_moments():
    net = Scripted(1)
    shared, before = zeros(net.params), flat(net.params)
    with pytest.raises(ValueError, match=r"^cache: expected arrays of its own"):
        solver.adam_update(shared, shared, net.params, net.script[0], t=1)
    assert np.array_equal(flat(net.params), before) and not flat(shared).any()


@pytest.mark.parametrize("name", LEARNERS)
def test_only_the_lines_of_the_article_are_printed(name, capsys):
    train, learning_rate, options = LEARNERS[name]
    X, y = twelve_samples()
    train(Scripted(6), X, y, 4, 2, learning_rate, X_test=X[:8], y_test=y[:8] * 0, **options)
    line = "Loss = 0.5000 | Training Accuracy = 0.5000 | Test Accuracy = 1.0000"
    assert capsys.readouterr().out.splitlines() == ["Epoch 1", line, "Epoch 2", line]
    train(Scripted(3), X, y, 4, 1, learning_rate, **options)
    line = "Loss = 0.5000 | Training Accuracy = 0.5000"
    assert capsys.readouterr().out.splitlines() == ["Epoch 1", line]
    train(Scripted(3), X, y, 4, 1, learning_rate, verbose=False, **options)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_printed_loss_is_that_of_the_last_minibatch(capsys):
    class Counting(Scripted):
        def train_step(self, X, y):
            _, grads = super().train_step(X, y)
            return float(len(self.batches)), grads

    X, y = twelve_samples()
    solver.sgd(Counting(6), X, y, 5, 2, 0.1)
    losses = re.findall(r"Loss = (\S+) ", capsys.readouterr().out)
    assert losses == ["3.0000", "6.0000"]


def printed_nesterov(net, X, y, minibatch_size, epoch, learning_rate, mu=0.9):
    """Nesterov momentum with the printed look-ahead: with the wrong sign, and not undone."""
    velocity = zeros(net.params)
    for _ in range(epoch):
        for X_batch, y_batch in solver.get_minibatches(X, y, minibatch_size):
            for layer, v in zip(net.params, velocity, strict=True):
                for i in range(len(layer)):
                    layer[i] += mu * v[i]
            _, grads = net.train_step(X_batch, y_batch)
            for layer, v, layer_grads in zip(net.params, velocity, grads[::-1], strict=True):
                for i in range(len(layer)):
                    v[i] = mu * v[i] + learning_rate * layer_grads[i]
                    layer[i] -= v[i]
    return net


def test_nesterov_keeps_its_momentum():
    # Scripted gradients do not depend on the parameters, so the look-ahead must have no effect.
    X, y = twelve_samples()
    printed = flat(printed_nesterov(Scripted(9), X, y, 4, 3, 0.1).params)
    vanilla = flat(solver.sgd(Scripted(9), X, y, 4, 3, 0.1, verbose=False).params)
    momentum = flat(solver.sgd_momentum(Scripted(9), X, y, 4, 3, 0.1, verbose=False).params)
    actual = solver.sgd_momentum(Scripted(9), X, y, 4, 3, 0.1, verbose=False, nesterov=True)
    np.testing.assert_allclose(printed, vanilla, rtol=1e-10, atol=1e-13)  # the momentum was canceled
    assert np.abs(momentum - vanilla).max() > 0.1
    assert np.array_equal(flat(actual.params), momentum)  # parameters are restored bit for bit


def test_nesterov_looks_ahead_along_the_velocity():
    X, y = twelve_samples()
    net, mu = Scripted(6), 0.8
    p, v = flat(net.params), np.zeros(flat(net.params).size)
    solver.sgd_momentum(net, X, y, 4, 2, 0.1, mu=mu, verbose=False, nesterov=True)
    for seen, grads in zip(net.seen_params, net.script, strict=True):
        np.testing.assert_allclose(flat(seen), p - mu * v, rtol=1e-12, atol=1e-15)
        v = mu * v + 0.1 * flat(grads[::-1])
        p = p - v
    np.testing.assert_allclose(flat(net.params), p, rtol=1e-12, atol=1e-15)


class Recording(TwoLayers):
    """Records the parameters at which gradients are computed."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.seen_params = []

    def train_step(self, X, y):
        self.seen_params.append(flat(self.params))
        return super().train_step(X, y)


def test_nesterov_equals_the_reformulation(digits):
    # With theta = p - mu * v, the look-ahead points are the parameters of fastopt.SGD(nesterov=True).
    X, _, y, _ = digits
    X, y = X[:100], y[:100]
    np.random.seed(1)
    actual = Recording(64, 8, 10)
    solver.sgd_momentum(actual, X, y, 16, 3, 0.05, verbose=False, nesterov=True)
    np.random.seed(1)
    reformulated = Recording(64, 8, 10)
    optimizer = fastopt.SGD(reformulated.params, lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(3):
        for X_batch, y_batch in solver.get_minibatches(X, y, 16):
            _, grads = reformulated.train_step(X_batch, y_batch)
            optimizer.step(grads[::-1])
    assert len(actual.seen_params) == len(reformulated.seen_params) == 21
    np.testing.assert_allclose(actual.seen_params, reformulated.seen_params, rtol=1e-9, atol=1e-11)


def test_nesterov_is_faster_than_the_printed_code(digits):
    X, _, y, _ = digits

    def loss(train, **options):
        np.random.seed(0)
        net = train(TwoLayers(64, 16, 10), X, y, 32, 3, 0.02, **options)
        return net.train_step(X, y)[0]

    vanilla = loss(solver.sgd, verbose=False)
    printed = loss(printed_nesterov)
    actual = loss(solver.sgd_momentum, verbose=False, nesterov=True)
    assert printed > 0.9 * vanilla
    assert actual < 0.5 * printed


def test_nesterov_restores_the_parameters_after_an_error():
    class Failing(Scripted):
        def train_step(self, X, y):
            if len(self.batches) == 2:
                raise RuntimeError("no gradient today")
            return super().train_step(X, y)

    X, y = twelve_samples()
    net, two_steps = Failing(6), Scripted(6)
    with pytest.raises(RuntimeError, match="no gradient today"):
        solver.sgd_momentum(net, X, y, 4, 1, 0.1, verbose=False, nesterov=True)
    solver.sgd_momentum(two_steps, X[:8], y[:8], 4, 1, 0.1, verbose=False)
    assert np.array_equal(flat(net.params), flat(two_steps.params))


@pytest.mark.parametrize("mu", [0.0, lambda step: 0.5 + 0.1 * step], ids=["zero", "schedule"])
def test_nesterov_accepts_any_momentum(mu):
    X, y = twelve_samples()
    actual = solver.sgd_momentum(Scripted(3), X, y, 4, 1, 0.1, mu, False, nesterov=True)
    momentum = solver.sgd_momentum(Scripted(3), X, y, 4, 1, 0.1, mu, False)
    assert np.array_equal(flat(actual.params), flat(momentum.params))


# --- minibatches and accuracy --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(10,), (10, 3), (10, 1, 4, 4)], ids=str)
@pytest.mark.parametrize(
    ("size", "lengths"), [(1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (99, [10])]
)
def test_minibatches_contain_every_sample_once(shape, size, lengths):
    X = np.arange(np.prod(shape)).reshape(shape)
    y = np.arange(10)
    batches = solver.get_minibatches(X, y, size)
    assert [len(y_batch) for _, y_batch in batches] == lengths
    for X_batch, y_batch in batches:
        assert np.array_equal(X_batch, X[y_batch]) and not np.shares_memory(X_batch, X)
    assert sorted(np.concatenate([y_batch for _, y_batch in batches])) == list(range(10))


def test_minibatches_follow_numpy_s_global_seed():
    def order(seed):
        np.random.seed(seed)
        return [
            tuple(y)
            for _ in range(2)
            for _, y in solver.get_minibatches(np.zeros((50, 2)), np.arange(50), 20)
        ]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[:3] != order(1)[3:]


def test_accuracy():
    assert solver.accuracy([1, 2, 3, 4], np.array([1, 2, 0, 0])) == 0.5
    with pytest.raises(ValueError, match="shape"):
        solver.accuracy(np.zeros(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="y_true"):
        solver.accuracy([], [])


# --- invalid arguments -----------------------------------------------------------------------------------

X4, Y4 = np.zeros((4, 2)), np.zeros(4)
BAD_TRAINING = [
    ({"y_train": np.zeros(3)}, ValueError, "y_train: expected 4 labels"),
    ({"X_train": np.zeros((0, 2)), "y_train": []}, ValueError, "X_train: expected at least one"),
    ({"X_train": 3.0}, ValueError, "X_train: expected one entry a sample"),
    ({"minibatch_size": 0}, ValueError, "minibatch_size: expected at least 1"),
    ({"minibatch_size": 2.0}, TypeError, "minibatch_size: expected an integer"),
    ({"epoch": -1}, ValueError, "epoch: expected at least 0"),
    ({"epoch": True}, TypeError, "epoch: expected an integer"),
    ({"X_test": X4}, ValueError, "y_test: expected an array, as X_test is given"),
    ({"y_test": Y4}, ValueError, "X_test: expected an array, as y_test is given"),
    ({"X_test": X4, "y_test": np.zeros(5)}, ValueError, "y_test: expected 4 labels"),
    ({"learning_rate": -0.1}, ValueError, "learning_rate: expected"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate: expected"),
]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("change", "error", "message"), BAD_TRAINING, ids=lambda v: str(v)[:40])
def test_invalid_arguments_are_rejected_by_name(name, change, error, message, capsys):
    arguments = {
        "X_train": X4,
        "y_train": Y4,
        "minibatch_size": 2,
        "epoch": 1,
        "learning_rate": 0.1,
    }
    net = Scripted(2)
    before = flat(net.params)
    with pytest.raises(error, match=re.escape(message)):
        RULES[name][0](net, **arguments | change)
    assert net.batches == [] and np.array_equal(flat(net.params), before)
    assert capsys.readouterr().out == ""


def test_zero_epochs():
    net = Scripted(0)
    before = flat(net.params)
    assert solver.adam(net, X4, Y4, 2, 0, 0.1) is net
    assert np.array_equal(flat(net.params), before)


def replaced(layers, place, value):
    layers = [list(layer) for layer in layers]
    layers[place] = value
    return layers


# Gradients start with the last layer: grads[0] is for params[3], grads[3] for params[0].
BAD_GRADS = [
    (lambda g: g[:-1], ValueError, "grads: expected 4 layers, as in params, got 3"),
    (lambda g: g[::-1], ValueError, "grads[3][1]: expected shape (2,) or one that"),
    (lambda g: None, TypeError, "grads: expected a list of layers, got NoneType"),
    (lambda g: replaced(g, 2, None), TypeError, "grads[2]: expected a list of arrays"),
    (lambda g: replaced(g, 2, [np.ones(1)]), ValueError, "grads[2]: expected 0 arrays"),
    (lambda g: replaced(g, 1, []), ValueError, "grads[1]: expected 1 arrays, as in params[2]"),
    (
        lambda g: replaced(g, 3, g[3][::-1]), ValueError,
        "grads[3][1]: expected shape (2,) or one that can be broadcast to it, as in params[0][1], got (3, 2)",
    ),
    (lambda g: replaced(g, 3, [g[3][0], g[3][1][None]]), ValueError, "grads[3][1]: expected shape (2,)"),
    (lambda g: replaced(g, 3, [g[3][0], [0.0, 0.0]]), TypeError, "grads[3][1]: expected an array"),
    (lambda g: replaced(g, 3, [g[3][0], None]), TypeError, "grads[3][1]: expected an array"),
    (lambda g: replaced(g, 3, [g[3][0], "ab"]), TypeError, "grads[3][1]: expected an array"),
    (
        lambda g: replaced(g, 3, [g[3][0], np.array(["a", "b"])]), TypeError,
        "grads[3][1]: expected numbers, got <U1",
    ),
    (
        lambda g: replaced(g, 3, [g[3][0], g[3][1] + 1j]), TypeError,
        "grads[3][1]: expected numbers that can be subtracted from float64, got complex128",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "error", "message"), BAD_GRADS, ids=[message for *_, message in BAD_GRADS]
)
def test_gradients_with_another_nesting_are_rejected(spoil, error, message):
    net = Scripted(1)
    net.script[0] = spoil(net.script[0])
    before = flat(net.params)
    with pytest.raises(error, match=re.escape(message)):
        solver.sgd(net, X4, Y4, 4, 1, 0.1, verbose=False)
    with pytest.raises(error, match=re.escape(message)):
        solver.vanilla_update(net.params, net.script[0])
    assert np.array_equal(flat(net.params), before)


UPDATES = {
    "momentum": lambda s, p, g: solver.momentum_update(s, p, g),
    "adagrad": lambda s, p, g: solver.adagrad_update(s, p, g),
    "rmsprop": lambda s, p, g: solver.rmsprop_update(s, p, g),
    "adam-velocity": lambda s, p, g: solver.adam_update(s, zeros(p), p, g, t=1),
    "adam-cache": lambda s, p, g: solver.adam_update(zeros(p), s, p, g, t=1),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize(
    ("spoil", "error", "place"),
    [
        (lambda s: s[:-1], ValueError, ": expected 4 layers"),
        (lambda s: replaced(s, 2, [np.zeros(3)]), ValueError, "[2][0]: expected shape (2, 1, 4, 2)"),
        (lambda s: replaced(s, 0, [[0.0], 0.0]), TypeError, "[0][0]: expected an array or a number"),
        (lambda s: replaced(s, 0, (0.0, 0.0)), TypeError, "[0][0]: expected an array of its own"),
    ],
    ids=["layers", "shape", "list", "number in a tuple"],
)
def test_invalid_states_are_rejected(name, spoil, error, place):
    net = Scripted(1)
    before = flat(net.params)
    state = "velocity" if name in ("momentum", "adam-velocity") else "cache"
    with pytest.raises(error, match="^" + re.escape(state + place)):
        UPDATES[name](spoil(zeros(net.params)), net.params, net.script[0])
    assert np.array_equal(flat(net.params), before)


@pytest.mark.parametrize(("t", "error"), [(0, ValueError), (1.0, TypeError)])
def test_adam_rejects_an_invalid_step_number(t, error):
    net = Scripted(1)
    with pytest.raises(error, match=r"^t: expected"):
        solver.adam_update(zeros(net.params), zeros(net.params), net.params, net.script[0], t=t)


def test_adam_rejects_a_missing_step_number():
    net = Scripted(1)
    with pytest.raises(TypeError, match="'t'"):
        solver.adam_update(zeros(net.params), zeros(net.params), net.params, net.script[0])


@pytest.mark.parametrize("bad", [{"minibatch_size": 0}, {"y": np.zeros(3)}], ids=str)
def test_get_minibatches_checks_its_arguments(bad):
    with pytest.raises(ValueError, match=f"^{next(iter(bad))}: expected"):
        solver.get_minibatches(**{"X": X4, "y": Y4, "minibatch_size": 2} | bad)


# --- documentation -----------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "article.md"


def test_tests_named_in_the_documentation_exist():
    named = re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) >= 6
    assert [name for name in named if name not in globals()] == []
