"""The functions of the article, with the same names and signatures, on compiled optimizers.

`vanilla_update`, `momentum_update`, `adagrad_update`, `rmsprop_update` and `adam_update` apply one step.
`sgd`, `sgd_momentum`, `adagrad`, `rmsprop` and `adam` train a network with minibatches from
`get_minibatches` and report `accuracy`. Errors in the printed code of the article are corrected;
``docs/article.md`` names the article and lists the corrections.

The article's protocol
----------------------
A network ``nnet`` is any object with

``params``
    a list of layers, each a list of arrays (float32 or float64, of any shape), which training changes in
    place; a layer without parameters is an empty list;
``train_step(X, y)``
    which returns ``(loss, grads)``; ``grads`` is nested like ``params``, but starts with the *last* layer,
    as backpropagation computes it first;
``predict(X)``
    which returns one label per sample.

If the gradients are in the order of ``params``, set the attribute ``grads_reversed = False``, as
`fastopt.MLP` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import functional
from fastopt._core.pytree import flatten
from fastopt._core.validation import check_int, check_X_y
from fastopt.nn.history import format_logs
from fastopt.nn.metrics import accuracy
from fastopt.optimizers import SGD, Adagrad, Adam, RMSprop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import SupportsFloat, TypeAlias, TypeVar

    from fastopt._core.typing import AnyArray, FloatOrSchedule, SequenceNotStr
    from fastopt.nn.typing import Net
    from fastopt.optimizers import Optimizer

    Network = TypeVar("Network", bound=Net)
    Layers: TypeAlias = SequenceNotStr[SequenceNotStr[AnyArray]]
    TrainStep: TypeAlias = Callable[[AnyArray, AnyArray], tuple[SupportsFloat, Layers]]

__all__ = [
    "accuracy", "adagrad", "adagrad_update", "adam", "adam_update", "get_minibatches", "momentum_update",
    "rmsprop", "rmsprop_update", "sgd", "sgd_momentum", "vanilla_update",
]

_ADAGRAD_EPS, _RMSPROP_EPS, _ADAM_EPS = 1e-8, 1e-4, 1e-4    # the article's, added after the square root


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
        Parameters, float32 or float64, changed in place.
    grads : list of layers, each a list of arrays
        Gradients, starting with those of the last layer.
    learning_rate : float, default 0.01
    """
    for p, g in _zip_arrays(params, grads):
        functional.sgd_(p, g, lr=learning_rate)


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
    for p, g, v in _zip_arrays(params, grads, velocity=velocity):
        functional.momentum_(p, g, v, lr=learning_rate, momentum=mu, convention="article")


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
    for p, g, c in _zip_arrays(params, grads, cache=cache):
        functional.adagrad_(p, g, c, lr=learning_rate, eps=_ADAGRAD_EPS, convention="article")


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
    for p, g, c in _zip_arrays(params, grads, cache=cache):
        functional.rmsprop_(
            p, g, c, lr=learning_rate, alpha=decay_rate, eps=_RMSPROP_EPS, convention="article"
        )


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
        Number of this step, 1 for the first. There is no default: if it were forgotten, every step would
        get the bias correction of the first step.
    eps : float, default 1e-4
        Added after the square root.

    Notes
    -----
    D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015. The article has no function
    for this step; it is part of the training loop there.
    """
    check_int("t", t, 1)
    arrays = _zip_arrays(params, grads, velocity=velocity, cache=cache)
    if any(np.may_share_memory(v, c) for _, _, v, c in arrays):
        raise ValueError("cache: expected arrays of its own, got one that is also in velocity")
    for p, g, v, c in arrays:
        functional.adam_(
            p, g, v, c, lr=learning_rate, betas=(beta1, beta2), eps=eps, step=t, convention="article"
        )


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
    optimizer = SGD(nnet.params, lr=learning_rate, convention="article")
    return _train(nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


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
    optimizer = SGD(nnet.params, lr=learning_rate, momentum=mu, convention="article")
    # Without momentum there is no velocity, and the look-ahead point is p.
    train_step = _look_ahead(nnet, optimizer, mu) if nesterov and mu else None
    return _train(
        nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test, train_step
    )


def adagrad(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, verbose: bool = True, X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
) -> Network:
    """Train `nnet` with AdaGrad (see `adagrad_update`).

    Parameters, return value and errors are those of `sgd`.
    """
    optimizer = Adagrad(nnet.params, lr=learning_rate, eps=_ADAGRAD_EPS, convention="article")
    return _train(nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


def rmsprop(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, verbose: bool = True, X_test: AnyArray | None = None,
    y_test: AnyArray | None = None, decay_rate: float = 0.9,
) -> Network:
    """Train `nnet` with RMSprop (see `rmsprop_update`).

    Parameters, return value and errors are those of `sgd`, with the decay rate `decay_rate` in addition.
    """
    optimizer = RMSprop(nnet.params, learning_rate, decay_rate, eps=_RMSPROP_EPS, convention="article")
    return _train(nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


def adam(
    nnet: Network, X_train: AnyArray, y_train: AnyArray, minibatch_size: int, epoch: int,
    learning_rate: FloatOrSchedule, verbose: bool = True, X_test: AnyArray | None = None,
    y_test: AnyArray | None = None, beta1: float = 0.9, beta2: float = 0.999,
) -> Network:
    """Train `nnet` with Adam (see `adam_update`), with an epsilon of 1e-4.

    Parameters, return value and errors are those of `sgd`, with the decay rates `beta1` and `beta2` of the
    moments in addition.
    """
    optimizer = Adam(
        nnet.params, lr=learning_rate, betas=(beta1, beta2), eps=_ADAM_EPS, convention="article"
    )
    return _train(nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test)


def _train(
    nnet: Network, optimizer: Optimizer, X_train: AnyArray, y_train: AnyArray, minibatch_size: int,
    epoch: int, verbose: bool, X_test: AnyArray | None, y_test: AnyArray | None,
    train_step: TrainStep | None = None,
) -> Network:
    """Run the training loop; `train_step` replaces that of the network."""
    train = check_X_y("X_train", X_train, "y_train", y_train)
    test = _check_test_data(X_test, y_test)
    minibatch_size = check_int("minibatch_size", minibatch_size, 1)
    epoch = check_int("epoch", epoch, 0)
    train_step = train_step or nnet.train_step
    is_reversed = getattr(nnet, "grads_reversed", True)
    for number in range(1, epoch + 1):
        if verbose:
            print(f"Epoch {number}")
        for X_batch, y_batch in _minibatches(*train, minibatch_size):
            loss, grads = train_step(X_batch, y_batch)
            optimizer.step(_in_order(nnet.params, grads, "grads", is_reversed))
        if verbose:
            logs = {"loss": float(loss), "accuracy": _evaluate(nnet, *train, minibatch_size)}
            if test is not None:
                logs["val_accuracy"] = _evaluate(nnet, *test, minibatch_size)
            print(format_logs(logs))
    return nnet


def _look_ahead(nnet: Net, optimizer: Optimizer, mu: FloatOrSchedule) -> TrainStep:
    """Return a ``train_step`` that is evaluated at ``p - mu * v`` and restores the parameters."""
    params = flatten(nnet.params)[1]
    saved = [np.empty_like(p) for p in params]
    velocity = [state["momentum_buffer"] for state in optimizer.state]
    # p -= mu * v is a step of gradient descent with the velocity as gradient.
    shift = SGD(params, lr=mu)

    def train_step(X: AnyArray, y: AnyArray) -> tuple[SupportsFloat, Layers]:
        for p, copy in zip(params, saved, strict=True):
            np.copyto(copy, p)
        try:
            shift.step(velocity)
            return nnet.train_step(X, y)
        finally:
            # Adding mu * v would not restore p exactly, because of rounding.
            for p, copy in zip(params, saved, strict=True):
                np.copyto(p, copy)

    return train_step


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


def _zip_arrays(params: Layers, grads: Layers, **states: Layers) -> list[tuple[AnyArray, ...]]:
    """Return a tuple per parameter: its array, its gradient, and its array in each of `states`.

    All arrays are checked before the first one is changed.
    """
    ordered = _in_order(params, grads, "grads", is_reversed=True)
    arrays = [flatten(params)[1], [grad for layer in ordered for grad in layer]]
    arrays += [flatten(_in_order(params, state, name), name)[1] for name, state in states.items()]
    return list(zip(*arrays, strict=True))


def _in_order(params: Layers, layers: Layers, name: str, is_reversed: bool = False) -> Layers:
    """Return `layers` in the order of `params`, or raise if nesting, shapes or dtypes differ.

    Messages use the index in `layers` as it was passed.
    """
    _check_list(layers, name, len(params), "layers", "params")
    for i, param_layer in enumerate(params):
        index = len(params) - 1 - i if is_reversed else i
        _check_list(layers[index], f"{name}[{index}]", len(param_layer), "arrays", f"params[{i}]")
        for k, (array, param) in enumerate(zip(layers[index], param_layer, strict=True)):
            where = f"{name}[{index}][{k}]"
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{where}: expected an array, got {type(array).__name__}")
            if array.shape != param.shape or array.dtype != param.dtype:
                raise ValueError(
                    f"{where}: expected {param.dtype} of shape {param.shape}, as in params[{i}][{k}], "
                    f"got {array.dtype} of shape {array.shape}"
                )
    return list(reversed(layers)) if is_reversed else layers


def _check_list(value: Any, where: str, length: int, items: str, like: str) -> None:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{where}: expected a list of {items}, got {type(value).__name__}")
    if len(value) != length:
        raise ValueError(f"{where}: expected {length} {items}, as in {like}, got {len(value)}")


def _check_test_data(X: Any, y: Any) -> tuple[AnyArray, AnyArray] | None:
    if X is None and y is None:
        return None
    for name, values, other in (("X_test", X, "y_test"), ("y_test", y, "X_test")):
        if values is None:
            raise ValueError(f"{name}: expected an array, as {other} is given, got None")
    return check_X_y("X_test", X, "y_test", y)
