"""The functions of the article, with the same names and signatures, on compiled optimizers.

`vanilla_update`, `momentum_update`, `adagrad_update`, `rmsprop_update` and `adam_update` apply one step.
`sgd`, `sgd_momentum`, `adagrad`, `rmsprop` and `adam` train a network with minibatches from
`get_minibatches` and report `accuracy`. Errors in the printed code of the article are corrected;
``docs/article.md`` names the article and lists the corrections.

The article's protocol
----------------------
A network ``nnet`` is any object with

``params``
    a list of layers, each an array or a list of arrays, which training changes in place; a layer without
    parameters is an empty list;
``train_step(X, y)``
    which returns ``(loss, grads)``; ``grads`` is nested like ``params``, but starts with the *last* layer,
    as backpropagation computes it first;
``predict(X)``
    which returns one label per sample.

If the gradients are in the order of ``params``, set the attribute ``grads_reversed = False``, as
`fastopt.MLP` does.

The functions accept everything that the lines ``v[i] = mu * v[i] + learning_rate * g[i]; p[i] -= v[i]``
accept, and give the same result as NumPy: gradients of another dtype or of a shape that can be broadcast,
arrays in any layout, and numbers. Arrays of float32 or float64 without gaps are updated in one compiled call.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.validation import check_int, check_X_y
from fastopt._layers import LayerUpdate
from fastopt.nn.history import format_logs
from fastopt.nn.metrics import accuracy
from fastopt.optimizers import SGD, Adagrad, Adam, RMSprop
from fastopt.optimizers.hyperparameters import RANGES, check_number, check_number_or_schedule, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import SupportsFloat, TypeAlias, TypeVar

    from fastopt._core.typing import AnyArray, FloatOrSchedule, SequenceNotStr
    from fastopt.nn.typing import Net

    Network = TypeVar("Network", bound=Net)
    Layer: TypeAlias = SequenceNotStr[Any] | AnyArray
    Layers: TypeAlias = SequenceNotStr[Layer]
    TrainStep: TypeAlias = Callable[[AnyArray, AnyArray], tuple[SupportsFloat, Layers]]

__all__ = [
    "accuracy", "adagrad", "adagrad_update", "adam", "adam_update", "get_minibatches", "momentum_update",
    "rmsprop", "rmsprop_update", "sgd", "sgd_momentum", "vanilla_update",
]

_ADAGRAD_EPS, _RMSPROP_EPS, _ADAM_EPS = 1e-8, 1e-4, 1e-4    # the article's, added after the square root


# The article's lines: what is subtracted from the parameter, and the new state.


def _vanilla_lines(g: AnyArray, *, lr: float, t: int) -> tuple[AnyArray, tuple[AnyArray, ...]]:
    return lr * g, ()


def _momentum_lines(
    g: AnyArray, v: AnyArray, *, lr: float, momentum: float, t: int
) -> tuple[AnyArray, tuple[AnyArray, ...]]:
    v = momentum * v + lr * g
    return v, (v,)


def _adagrad_lines(g: AnyArray, c: AnyArray, *, lr: float, t: int) -> tuple[AnyArray, tuple[AnyArray, ...]]:
    c = c + g**2
    return lr * g / (np.sqrt(c) + _ADAGRAD_EPS), (c,)


def _rmsprop_lines(
    g: AnyArray, c: AnyArray, *, lr: float, alpha: float, t: int
) -> tuple[AnyArray, tuple[AnyArray, ...]]:
    c = alpha * c + (1 - alpha) * g**2
    return lr * g / (np.sqrt(c) + _RMSPROP_EPS), (c,)


def _adam_lines(
    g: AnyArray, v: AnyArray, c: AnyArray, *, lr: float, beta1: float, beta2: float, eps: float, t: int
) -> tuple[AnyArray, tuple[AnyArray, ...]]:
    v = beta1 * v + (1 - beta1) * g
    c = beta2 * c + (1 - beta2) * g**2
    return lr * (v / (1 - beta1**t)) / (np.sqrt(c / (1 - beta2**t)) + eps), (v, c)


_RANGES = {**RANGES, "beta": (0.0, 1.0)}

_vanilla = LayerUpdate(SGD, "sgd", _vanilla_lines)
_momentum = LayerUpdate(SGD, "momentum", _momentum_lines)
_adagrad = LayerUpdate(Adagrad, "adagrad", _adagrad_lines, eps=_ADAGRAD_EPS)
_rmsprop = LayerUpdate(RMSprop, "rmsprop", _rmsprop_lines, eps=_RMSPROP_EPS)
_adam = LayerUpdate(Adam, "adam", _adam_lines)


def get_minibatches(X: AnyArray, y: AnyArray, minibatch_size: int) -> list[tuple[AnyArray, AnyArray]]:
    """Shuffle the samples and split them into minibatches.

    The order is drawn from NumPy's global random state, so ``np.random.seed`` makes it reproducible.

    Parameters
    ----------
    X : array of shape (n_samples, ...)
        Samples.
    y : array of shape (n_samples, ...)
        Labels.
    minibatch_size : int
        Samples per minibatch, at least 1. The last minibatch has the remaining samples.

    Returns
    -------
    list of (X_batch, y_batch)
        Copies; every sample is in exactly one minibatch.

    Examples
    --------
    >>> batches = get_minibatches(np.zeros((10, 8, 8)), np.arange(10), 4)
    >>> [X_batch.shape for X_batch, y_batch in batches]
    [(4, 8, 8), (4, 8, 8), (2, 8, 8)]
    """
    X, y = check_X_y("X", X, "y", y)
    return list(_minibatches(X, y, check_int("minibatch_size", minibatch_size, 1)))


def vanilla_update(params: Layers, grads: Layers, learning_rate: float = 0.01) -> None:
    """Take one step of gradient descent: ``p -= learning_rate * g``.

    Parameters
    ----------
    params : list of layers, each a list of arrays
        Parameters, changed in place.
    grads : list of layers, each a list of arrays
        Gradients, starting with those of the last layer. Their shapes can be broadcast to the parameters'.
    learning_rate : float, default 0.01
    """
    _vanilla(params, grads, {}, {"lr": _number("learning_rate", learning_rate, "lr")}, 1)


def momentum_update(
    velocity: Layers, params: Layers, grads: Layers, learning_rate: float = 0.01, mu: float = 0.9
) -> None:
    """Take one step with momentum: ``v = mu * v + learning_rate * g; p -= v``.

    Parameters
    ----------
    velocity : list of layers, each a list of arrays
        Nested like `params`, zeros before the first step; changed in place.
    params, grads, learning_rate
        As in `vanilla_update`.
    mu : float, default 0.9
        Momentum: decay rate of the velocity.

    Notes
    -----
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. The velocity
    includes the learning rate, so a change of the learning rate takes effect gradually.
    """
    lr = _number("learning_rate", learning_rate, "lr")
    values = {"lr": lr, "momentum": _number("mu", mu, "momentum")}
    _momentum(params, grads, {"velocity": velocity}, values, 1)


def adagrad_update(cache: Layers, params: Layers, grads: Layers, learning_rate: float = 0.01) -> None:
    """Take one step of AdaGrad: ``c += g**2; p -= learning_rate * g / (sqrt(c) + 1e-8)``.

    Parameters
    ----------
    cache : list of layers, each a list of arrays
        Nested like `params`, zeros before the first step; changed in place.
    params, grads, learning_rate
        As in `vanilla_update`.

    Notes
    -----
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", 2011.
    """
    _adagrad(params, grads, {"cache": cache}, {"lr": _number("learning_rate", learning_rate, "lr")}, 1)


def rmsprop_update(
    cache: Layers, params: Layers, grads: Layers, learning_rate: float = 0.01, decay_rate: float = 0.9
) -> None:
    """Take one step of RMSprop.

    ``c = decay_rate * c + (1 - decay_rate) * g**2; p -= learning_rate * g / (sqrt(c) + 1e-4)``

    Parameters
    ----------
    cache : list of layers, each a list of arrays
        Nested like `params`, zeros before the first step; changed in place.
    params, grads, learning_rate
        As in `vanilla_update`.
    decay_rate : float, default 0.9
        Decay rate of the cache.

    Notes
    -----
    T. Tieleman and G. Hinton, "Lecture 6.5: rmsprop", 2012.
    """
    lr = _number("learning_rate", learning_rate, "lr")
    values = {"lr": lr, "alpha": _number("decay_rate", decay_rate, "alpha")}
    _rmsprop(params, grads, {"cache": cache}, values, 1)


def adam_update(
    velocity: Layers, cache: Layers, params: Layers, grads: Layers, learning_rate: float = 0.01,
    beta1: float = 0.9, beta2: float = 0.999, *, t: int, eps: float = _ADAM_EPS,
) -> None:
    """Take one step of Adam.

    ::

        v = beta1 * v + (1 - beta1) * g
        c = beta2 * c + (1 - beta2) * g**2
        p -= learning_rate * (v / (1 - beta1**t)) / (sqrt(c / (1 - beta2**t)) + eps)

    Parameters
    ----------
    velocity : list of layers, each a list of arrays
        First moments, nested like `params`, zeros before the first step; changed in place.
    cache : list of layers, each a list of arrays
        Second moments, likewise.
    params, grads, learning_rate
        As in `vanilla_update`.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay rates of the moments.
    t : int
        Number of this step, 1 for the first. It has no default, because with a default of 1 every step would
        use the bias correction of the first step.
    eps : float, default 1e-4
        Added after the square root.

    Notes
    -----
    D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015. The article has no function
    for this step; it is part of the training loop there.
    """
    values = {
        "lr": _number("learning_rate", learning_rate, "lr"),
        "beta1": _number("beta1", beta1, "beta"),
        "beta2": _number("beta2", beta2, "beta"),
        "eps": _number("eps", eps, "eps"),
    }
    _adam(params, grads, {"velocity": velocity, "cache": cache}, values, check_int("t", t, 1))


def sgd(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, verbose: bool = True, X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
) -> Network:
    """Train `nnet` with stochastic gradient descent (see `vanilla_update`).

    The samples are shuffled in every epoch (see `get_minibatches`). The state of the optimizer is kept
    through all epochs. Each step is one compiled call over all arrays.

    Parameters
    ----------
    nnet : network
        See the module documentation for the protocol. Its parameters are changed in place.
    X_train, y_train : arrays of shape (n_samples, ...)
        Training samples and labels.
    minibatch_size : int
        Samples per step, at least 1. The last minibatch of an epoch has the remaining samples.
    epoch : int
        Passes over the training set, at least 0.
    learning_rate : float or callable
        Learning rate, or a schedule (see `fastopt.schedules`).
    verbose : bool, default True
        Whether to print two lines per epoch: its number; then the loss of its last minibatch, the training
        accuracy and, with test data, the test accuracy.
    X_test, y_test : arrays of shape (n_samples, ...), optional
        Test samples and labels; both or neither.

    Returns
    -------
    nnet
        The same object.
    """
    lr = _schedule("learning_rate", learning_rate, "lr")

    def step(grads: Layers, t: int, is_reversed: bool) -> None:
        _vanilla(nnet.params, grads, {}, {"lr": lr(t)}, t, is_reversed)

    return _train(nnet, step, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


def sgd_momentum(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, mu: FloatOrSchedule = 0.9, verbose: bool = True,
    X_test: AnyArray | None = None, y_test: AnyArray | None = None, nesterov: bool = False,
) -> Network:
    """Train `nnet` with momentum (see `momentum_update`) or Nesterov momentum.

    With `nesterov` the gradient is evaluated at the look-ahead point ``p - mu * v``. The parameters are then
    restored bit for bit, and the step is the same. This requires that ``nnet.train_step`` reads its weights
    from the arrays in ``nnet.params``.

    Parameters
    ----------
    nnet, X_train, y_train, minibatch_size, epoch, learning_rate, verbose, X_test, y_test
        As in `sgd`.
    mu : float or callable, default 0.9
        Momentum: decay rate of the velocity, or a schedule.
    nesterov : bool, default False
        Whether to use Nesterov momentum.

    Returns
    -------
    nnet
        The same object.

    Notes
    -----
    Y. Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983;
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013. The
    look-ahead points are the parameters of ``fastopt.SGD(nesterov=True)`` started from the same parameters.
    """
    lr, momentum = _schedule("learning_rate", learning_rate, "lr"), _schedule("mu", mu, "momentum")
    velocity = _zeros(nnet.params)

    def step(grads: Layers, t: int, is_reversed: bool) -> None:
        values = {"lr": lr(t), "momentum": momentum(t)}
        _momentum(nnet.params, grads, {"velocity": velocity}, values, t, is_reversed)

    train_step = _look_ahead(nnet, velocity, momentum) if nesterov else None
    return _train(nnet, step, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test, train_step)


def adagrad(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, verbose: bool = True, X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
) -> Network:
    """Train `nnet` with AdaGrad (see `adagrad_update`).

    Parameters, return value and errors are those of `sgd`.
    """
    lr = _schedule("learning_rate", learning_rate, "lr")
    cache = _zeros(nnet.params)

    def step(grads: Layers, t: int, is_reversed: bool) -> None:
        _adagrad(nnet.params, grads, {"cache": cache}, {"lr": lr(t)}, t, is_reversed)

    return _train(nnet, step, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


def rmsprop(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, verbose: bool = True, X_test: AnyArray | None = None,
    y_test: AnyArray | None = None, decay_rate: float = 0.9,
) -> Network:
    """Train `nnet` with RMSprop (see `rmsprop_update`).

    Parameters, return value and errors are those of `sgd`, with the decay rate `decay_rate` in addition.
    """
    lr = _schedule("learning_rate", learning_rate, "lr")
    alpha = _number("decay_rate", decay_rate, "alpha")
    cache = _zeros(nnet.params)

    def step(grads: Layers, t: int, is_reversed: bool) -> None:
        _rmsprop(nnet.params, grads, {"cache": cache}, {"lr": lr(t), "alpha": alpha}, t, is_reversed)

    return _train(nnet, step, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


def adam(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, verbose: bool = True, X_test: AnyArray | None = None,
    y_test: AnyArray | None = None, beta1: float = 0.9, beta2: float = 0.999,
) -> Network:
    """Train `nnet` with Adam (see `adam_update`), with an epsilon of 1e-4.

    Parameters, return value and errors are those of `sgd`, with the decay rates `beta1` and `beta2` of the
    moments in addition.
    """
    lr = _schedule("learning_rate", learning_rate, "lr")
    fixed = {"beta1": _number("beta1", beta1, "beta"), "beta2": _number("beta2", beta2, "beta")}
    fixed["eps"] = _ADAM_EPS
    states = {"velocity": _zeros(nnet.params), "cache": _zeros(nnet.params)}

    def step(grads: Layers, t: int, is_reversed: bool) -> None:
        _adam(nnet.params, grads, states, {"lr": lr(t), **fixed}, t, is_reversed)

    return _train(nnet, step, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


def _train(
    nnet: Network, step: Callable[[Layers, int, bool], None], X_train: AnyArray, y_train: AnyArray,
    minibatch_size: int, epoch: int, verbose: bool, X_test: AnyArray | None, y_test: AnyArray | None,
    train_step: TrainStep | None = None,
) -> Network:
    """Run the training loop; `train_step` replaces that of the network."""
    train = check_X_y("X_train", X_train, "y_train", y_train)
    test = _check_test_data(X_test, y_test)
    minibatch_size = check_int("minibatch_size", minibatch_size, 1)
    epoch = check_int("epoch", epoch, 0)
    train_step = train_step or nnet.train_step
    is_reversed = bool(getattr(nnet, "grads_reversed", True))
    steps = itertools.count(1)
    for number in range(1, epoch + 1):
        if verbose:
            print(f"Epoch {number}")
        for X_batch, y_batch in _minibatches(*train, minibatch_size):
            loss, grads = train_step(X_batch, y_batch)
            step(grads, next(steps), is_reversed)
        if verbose:
            logs = {"loss": float(loss), "accuracy": _evaluate(nnet, *train, minibatch_size)}
            if test is not None:
                logs["val_accuracy"] = _evaluate(nnet, *test, minibatch_size)
            print(format_logs(logs, "Test"))
    return nnet


def _look_ahead(nnet: Net, velocity: Layers, mu: Callable[[int], float]) -> TrainStep:
    """Return a ``train_step`` that is evaluated at ``p - mu * v`` and restores the parameters."""
    steps = itertools.count(1)

    def train_step(X: AnyArray, y: AnyArray) -> tuple[SupportsFloat, Layers]:
        t, params = next(steps), nnet.params
        saved = [np.copy(array) for array in _arrays(params)]
        try:
            # p -= mu * v is a step of gradient descent with the velocity as gradient.
            _vanilla(params, velocity, {}, {"lr": mu(t)}, t, is_reversed=False)
            return nnet.train_step(X, y)
        finally:
            # Adding mu * v would not restore p exactly, because of rounding.
            for array, copy in zip(_arrays(params), saved, strict=True):
                np.copyto(array, copy)

    return train_step


def _arrays(layers: Layers) -> Iterator[AnyArray]:
    for layer in layers:
        if isinstance(layer, np.ndarray):
            yield layer
        else:
            yield from layer


def _zeros(params: Layers) -> Layers:
    """Return zeros nested like `params`."""
    return [
        np.zeros_like(layer) if isinstance(layer, np.ndarray) else [np.zeros_like(array) for array in layer]
        for layer in params
    ]


def _number(name: str, value: Any, hyperparameter: str) -> float:
    """Return an argument as a float, in the range of a hyperparameter."""
    number: float = check_number(name, value, _RANGES[hyperparameter])
    return number


def _schedule(name: str, value: FloatOrSchedule, hyperparameter: str) -> Callable[[int], float]:
    """Return a function of the number of the step, 1 for the first, which gives the value of an argument."""
    bounds = _RANGES[hyperparameter]
    checked = check_number_or_schedule(name, value, bounds)
    return lambda t: evaluate(name, checked, t - 1, bounds)


def _evaluate(nnet: Net, X: AnyArray, y: AnyArray, minibatch_size: int) -> float:
    """Return the accuracy; predict one minibatch at a time, which needs no more memory than training."""
    starts = range(0, len(X), minibatch_size)
    predicted = [nnet.predict(X[start : start + minibatch_size]) for start in starts]
    return accuracy(y, np.concatenate(predicted))


def _minibatches(X: AnyArray, y: AnyArray, minibatch_size: int) -> Iterator[tuple[AnyArray, AnyArray]]:
    """Yield copies of the minibatches, one at a time."""
    order = np.random.permutation(len(X))  # noqa: NPY002 (users control it with np.random.seed)
    for start in range(0, len(X), minibatch_size):
        indices = order[start : start + minibatch_size]
        yield X[indices], y[indices]


def _check_test_data(X: Any, y: Any) -> tuple[AnyArray, AnyArray] | None:
    if X is None and y is None:
        return None
    for name, values, other in (("X_test", X, "y_test"), ("y_test", y, "X_test")):
        if values is None:
            raise ValueError(f"{name}: expected an array, as {other} is given, got None")
    return check_X_y("X_test", X, "y_test", y)
