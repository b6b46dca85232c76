"""Gradients of custom models in fastopt.Trainer: their order, shapes and dtypes."""

import itertools

import numpy as np
import pytest
from trainer_helpers import rows

import fastopt
from fastopt import solver
from fastopt.nn import Trainer, check_gradients
from fastopt.nn.gradients import leaves


class GivenGrads:
    """A model with given parameters whose gradients a function returns."""

    def __init__(self, params, grads, **attributes):
        self.params, self.grads = params, grads
        vars(self).update(attributes)

    def train_step(self, X, y):
        return 0.0, self.grads()

    def predict(self, X):
        return np.zeros(len(X), int)


def step_of(params, grads, **attributes):
    """Train one batch with a learning rate of 1 and parameters of zeros; return what was subtracted."""
    net = GivenGrads(params, lambda: grads, **attributes)
    Trainer(net, fastopt.SGD(net.params, lr=1.0)).fit(*rows(4), 4, verbose=0)
    return net.params


A, B = (2, 3), (4,)
ORDERS = {      # shapes of the parameters and of the gradients, and whether those are reversed
    "lists of arrays": ([A, B], [A, B], False),
    "lists of arrays, reversed": ([A, B], [B, A], True),
    "layers": ([[A, B], [B]], [[A, B], [B]], False),
    "layers, reversed": ([[A, B], [B]], [[B], [A, B]], True),
    "an empty layer": ([[A], []], [[], [A]], True),
    "one array": ([A], [A], False),
    "one layer between empty ones": ([[], [A], []], [[], [A], []], False),
    "broadcast": ([(1, 4), (2, 3)], [(4,), (3,)], False),
    "broadcast, reversed": ([(1, 4), (2, 3)], [(2, 3), (4,)], True),
    "exact before broadcast": ([(2, 3), (3,)], [(3,), (2, 3)], True),
    "a number": ([(2, 3), (4,)], [(), (4,)], False),
    "three layers": ([[A], [B], [B]], [[A], [B], [B]], False),
    "an array": (A, A, False),
}


def filled(shapes, value):
    if isinstance(shapes, list):
        return [filled(inner, value) for inner in shapes]
    return np.full(shapes, next(value))


@pytest.mark.parametrize(("params", "grads", "is_reversed"), ORDERS.values(), ids=ORDERS)
def test_the_order_of_gradients_is_found_from_nesting_and_shapes(params, grads, is_reversed):
    grads = filled(grads, itertools.count(1.0))
    result = step_of(filled(params, itertools.repeat(0.0)), grads)
    expected = grads[::-1] if is_reversed else grads

    def compare(p, g):
        if isinstance(p, list):
            for inner in zip(p, g, strict=True):
                compare(*inner)
        else:
            np.testing.assert_array_equal(p, np.broadcast_to(-g, p.shape))

    compare(result, expected)


AMBIGUOUS = {
    "two arrays": [A, A], "two layers": [[A, B], [A, B]], "first and last": [[A], [B], [A]],
    "around an empty layer": [[A], [], [A]],
}


@pytest.mark.parametrize("shapes", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_order_needs_grads_reversed(shapes):
    grads = filled(shapes, itertools.count(1.0))
    params = filled(shapes, itertools.repeat(0.0))
    with pytest.raises(ValueError, match=r"^grads: they fit .* in both orders; set net.grads_reversed"):
        step_of(params, grads)
    assert not any(p.any() for p in leaves(params))
    for is_reversed in (False, True):
        result = step_of(filled(shapes, itertools.repeat(0.0)), grads, grads_reversed=is_reversed)
        for p, g in zip(leaves(result), leaves(grads[::-1] if is_reversed else grads), strict=True):
            np.testing.assert_array_equal(p, -g)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_functions_of_the_article_keep_its_order(name):
    net = GivenGrads([[np.zeros(3)], [np.zeros(3)]], lambda: [[np.full(3, 1.0)], [np.full(3, -2.0)]])
    getattr(solver, name)(net, *rows(4), 4, 1, 0.1, verbose=False)
    assert (net.params[0][0] > 0.0).all() and (net.params[1][0] < 0.0).all()


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ([np.zeros(4), np.zeros(5)], ValueError, r"grads\[0\]: expected shape \(2, 3\) .* got \(5,\)"),
        ([np.zeros(A)], ValueError, "grads: expected 2 entries as the parameters have, got 1"),
        (np.zeros(A), TypeError, "grads: expected a list like net.params, got ndarray"),
        ([np.zeros(A), np.zeros(B, complex)], TypeError, "grads: .* float64, got complex128"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(grads, error, message):
    params = [np.zeros(A), np.zeros(B)]
    with pytest.raises(error, match=message):
        step_of(params, grads)
    assert not any(p.any() for p in params)


def test_gradients_that_do_not_fit_are_left_to_a_custom_optimizer():
    class Recorder:
        def step(self, grads):
            self.grads = grads

    net, opt = GivenGrads([np.zeros(A), np.zeros(B)], lambda: [[np.ones(1)], [np.full(1, 2.0)]]), Recorder()
    Trainer(net, opt).fit(*rows(4), 4, verbose=0)
    assert opt.grads == [[np.full(1, 2.0)], [np.ones(1)]]
    with pytest.raises(ValueError, match=r"grads: expected .* \[\(2, 3\), \(4,\)\] of net.params"):
        check_gradients(net, *rows(4))


def test_parameters_in_a_dict():
    params = {"W": np.zeros(A), "b": np.zeros((1, 3))}
    result = step_of(params, {"b": np.ones(3, np.float32), "W": 2})
    assert result is params and (params["W"] == -2.0).all() and (params["b"] == -1.0).all()


@pytest.mark.parametrize("params", [[np.ones(A), np.ones(B)], {"W": np.ones(A), "b": [np.ones(B)]}], ids=str)
def test_states_of_models_with_any_nesting(params):
    grads = [np.ones(A), np.ones(B)] if isinstance(params, list) else {"W": np.ones(A), "b": [np.ones(B)]}
    net = GivenGrads(params, lambda: grads)
    trainer = Trainer(net, fastopt.Adam(net.params))
    trainer.fit(*rows(4), 4, verbose=0)
    state = trainer.state_dict()
    copies = [p.copy() for p in leaves(params)]
    trainer.fit(*rows(4), 4, verbose=0)
    trainer.load_state_dict(state)
    assert all((p == copy).all() for p, copy in zip(leaves(params), copies, strict=True))
    names = ["params[0]", "params[1]"] if isinstance(params, list) else ['params["W"]', 'params["b"][0]']
    assert list(state["net"]) == names


@pytest.mark.parametrize("opt", [fastopt.Adam, lambda params: fastopt.Adam(params, accumulate=2)])
def test_gradients_that_need_conversion_in_some_steps_only(opt):
    """A step that refuses a gradient is repeated with the converted one and is counted once."""
    forms = [np.ones(3, np.float32), np.ones((1, 3)), 1, np.ones((1, 3), np.float16), np.ones((1, 3), int)]
    results = []
    for given in (forms, [np.ones((1, 3))] * len(forms)):
        grads = iter(given)
        net = GivenGrads([np.zeros((1, 3)), np.zeros(B)], lambda g=grads: [next(g), np.full(B, 2.0)])
        trainer = Trainer(net, opt(net.params))
        trainer.fit(*rows(len(forms)), 1, verbose=0)
        results.append((trainer.opt.steps, *net.params))
    assert results[0][0] == results[1][0] > 0
    for p, q in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_array_equal(p, q)


def test_an_error_of_another_kind_is_not_a_reason_to_repeat_a_step():
    calls = []

    def schedule(step):
        calls.append(step)
        if step == 2:
            raise ValueError("no rate for this step")
        return 0.1

    net = GivenGrads([np.zeros(A)], lambda: [np.ones(A)])
    with pytest.raises(ValueError, match="no rate"):
        Trainer(net, fastopt.SGD(net.params, lr=schedule)).fit(*rows(4), 1, verbose=0)
    assert calls.count(2) == 1
    np.testing.assert_allclose(net.params[0], -0.2)
