"""The solver of the article, name for name and signature for signature, on the compiled engine.

`vanilla_update`, `momentum_update`, `adagrad_update`, `rmsprop_update` and `adam_update` apply one
step; `sgd`, `sgd_momentum`, `adagrad`, `rmsprop` and `adam` train a network; `get_minibatches` and
`accuracy` are what they need. What the article's printed code gets wrong is corrected here;
``docs/article.md`` names the article and lists every correction.

The article's protocol
----------------------
A network ``nnet`` is any object with

``params``
    a list of layers, each a list of arrays (float32 or float64, of any shape; a layer without
    parameters is an empty list), which the training changes in place;
``train_step(X, y)``
    which returns ``(loss, grads)``, where ``grads`` is nested like ``params`` but starts with the
    *last* layer, as backpropagation comes to it first;
``predict(X)``
    which returns one label a sample.

A network whose gradients come in the order of ``params`` says so with an attribute
``grads_reversed = False``, as `fastopt.MLP` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import functional
from fastopt._core.pytree import flatten
from fastopt._core.validation import check_int, check_X_y
from fastopt.nn.metrics import accuracy
from fastopt.nn.history import format_logs
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
    "accuracy",
    "adagrad",
    "adagrad_update",
    "adam",
    "adam_update",
    "get_minibatches",
    "momentum_update",
    "rmsprop",
    "rmsprop_update",
    "sgd",
    "sgd_momentum",
    "vanilla_update",
]

# The article's epsilons, all outside the root.
_ADAGRAD_EPS = 1e-8
_RMSPROP_EPS = 1e-4
_ADAM_EPS = 1e-4

# --- data ---------------------------------------------------------------------------------------


def get_minibatches(
    X: AnyArray, y: AnyArray, minibatch_size: int
) -> list[tuple[AnyArray, AnyArray]]:
    """Shuffle the samples and cut them into minibatches.

    The order is drawn from NumPy's global state, so that ``np.random.seed`` makes it, and a whole
    training, reproducible.

    Parameters
    ----------
    X : array of shape (samples, ...)
        Samples of any rank.
    y : array of shape (samples, ...)
        Their labels.
    minibatch_size : int
        Samples a minibatch, at least 1; the last one holds what is left.

    Returns
    -------
    list of (X_batch, y_batch)
        Copies, which together hold every sample once.

    Raises
    ------
    ValueError
        If `X` and `y` differ in length or have none, or `minibatch_size` is below 1.
    TypeError
        If `minibatch_size` is not a whole number.

    Examples
    --------
    >>> batches = get_minibatches(np.zeros((10, 8, 8)), np.arange(10), 4)
    >>> [X_batch.shape for X_batch, y_batch in batches]
    [(4, 8, 8), (4, 8, 8), (2, 8, 8)]
    """
    X, y = check_X_y("X", X, "y", y)
    return list(_minibatches(X, y, check_int("minibatch_size", minibatch_size, 1)))


# --- one step -----------------------------------------------------------------------------------


def vanilla_update(params: Layers, grads: Layers, learning_rate: float = 0.01) -> None:
    """One step down the gradient: ``p -= learning_rate * g``.

    Parameters
    ----------
    params : list of layers, each a list of arrays
        Parameters, float32 or float64, changed in place.
    grads : list of layers, each a list of arrays
        Their gradients, beginning with those of the last layer.
    learning_rate : float, default 0.01
        Step size.

    Raises
    ------
    ValueError, TypeError
        If `grads` is not nested like `params` in reverse, or an array has the wrong shape or type.
    """
    for p, g in _columns(params, grads):
        functional.sgd_(p, g, lr=learning_rate)


def momentum_update(
    velocity: Layers,
    params: Layers,
    grads: Layers,
    learning_rate: float = 0.01,
    mu: float = 0.9,
) -> None:
    """One step of momentum: ``v = mu * v + learning_rate * g; p -= v``.

    Parameters
    ----------
    velocity : list of layers, each a list of arrays
        Nested like `params`, zeros before the first step; changed in place.
    params, grads, learning_rate
        As in `vanilla_update`.
    mu : float, default 0.9
        How much of the velocity is kept.

    Raises
    ------
    ValueError, TypeError
        As `vanilla_update`, for `velocity` too.

    Notes
    -----
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. The
    learning rate is inside the velocity, so that a change of the rate takes effect gradually.
    """
    for p, g, v in _columns(params, grads, velocity=velocity):
        functional.momentum_(p, g, v, lr=learning_rate, momentum=mu, convention="article")


def adagrad_update(
    cache: Layers, params: Layers, grads: Layers, learning_rate: float = 0.01
) -> None:
    """One step of AdaGrad: ``c += g**2; p -= learning_rate * g / (sqrt(c) + 1e-8)``.

    Parameters
    ----------
    cache : list of layers, each a list of arrays
        Nested like `params`, zeros before the first step; changed in place.
    params, grads, learning_rate
        As in `vanilla_update`.

    Raises
    ------
    ValueError, TypeError
        As `vanilla_update`, for `cache` too.

    Notes
    -----
    J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", 2011.
    """
    for p, g, c in _columns(params, grads, cache=cache):
        functional.adagrad_(p, g, c, lr=learning_rate, eps=_ADAGRAD_EPS, convention="article")


def rmsprop_update(
    cache: Layers,
    params: Layers,
    grads: Layers,
    learning_rate: float = 0.01,
    decay_rate: float = 0.9,
) -> None:
    """One step of RMSprop.

    ``c = decay_rate * c + (1 - decay_rate) * g**2; p -= learning_rate * g / (sqrt(c) + 1e-4)``

    Parameters
    ----------
    cache : list of layers, each a list of arrays
        Nested like `params`, zeros before the first step; changed in place.
    params, grads, learning_rate
        As in `vanilla_update`.
    decay_rate : float, default 0.9
        How much of the cache is kept.

    Raises
    ------
    ValueError, TypeError
        As `vanilla_update`, for `cache` too.

    Notes
    -----
    T. Tieleman and G. Hinton, "Lecture 6.5: rmsprop", 2012.
    """
    for p, g, c in _columns(params, grads, cache=cache):
        functional.rmsprop_(
            p, g, c, lr=learning_rate, alpha=decay_rate, eps=_RMSPROP_EPS, convention="article"
        )


def adam_update(
    velocity: Layers,
    cache: Layers,
    params: Layers,
    grads: Layers,
    learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    *,
    t: int,
    eps: float = _ADAM_EPS,
) -> None:
    """One step of Adam.

    ::

        v = beta1 * v + (1 - beta1) * g
        c = beta2 * c + (1 - beta2) * g**2
        p -= learning_rate * (v / (1 - beta1**t)) / (sqrt(c / (1 - beta2**t)) + eps)

    Parameters
    ----------
    velocity : list of layers, each a list of arrays
        First moments, nested like `params`, zeros before the first step; changed in place.
    cache : list of layers, each a list of arrays
        Second moments, likewise, in arrays of their own.
    params, grads, learning_rate
        As in `vanilla_update`.
    beta1, beta2 : float, default 0.9 and 0.999
        How much of each moment is kept.
    t : int
        The number of this step, 1 for the first. It has no default, as a forgotten one would
        silently give every step the large correction of the first.
    eps : float, default 1e-4
        Added to the root.

    Raises
    ------
    ValueError, TypeError
        As `vanilla_update`, for `velocity` and `cache` too; if `t` is below 1; if `velocity` and
        `cache` share an array.

    Notes
    -----
    D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015. The article gives no
    function for this step, but writes it out in the loop.
    """
    check_int("t", t, 1)
    columns = _columns(params, grads, velocity=velocity, cache=cache)
    if any(np.may_share_memory(v, c) for _, _, v, c in columns):
        raise ValueError("cache: expected arrays of its own, got one that velocity has as well")
    for p, g, v, c in columns:
        functional.adam_(
            p, g, v, c, lr=learning_rate, betas=(beta1, beta2), eps=eps, step=t,
            convention="article",
        )


# --- training -----------------------------------------------------------------------------------


def sgd(
    nnet: Network,
    X_train: AnyArray,
    y_train: AnyArray,
    minibatch_size: int,
    epoch: int,
    learning_rate: FloatOrSchedule,
    verbose: bool = True,
    X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
) -> Network:
    """Train `nnet` by stochastic gradient descent (see `vanilla_update`).

    Minibatches are drawn anew for every epoch (see `get_minibatches`), and what an optimizer
    remembers lasts through all epochs. A step is one compiled call over all arrays.

    Parameters
    ----------
    nnet : network
        See the module's page for the protocol. Its parameters are changed in place.
    X_train, y_train : arrays of shape (samples, ...)
        Training samples and labels.
    minibatch_size : int
        Samples a step, at least 1. The last minibatch of an epoch holds what is left.
    epoch : int
        Passes over the training data, at least 0.
    learning_rate : float or callable
        Step size, or a schedule of it (see `fastopt.schedules`).
    verbose : bool, default True
        Whether to print, for each epoch, its number and a line with the loss of its last
        minibatch, the training accuracy, and with test data the test accuracy.
    X_test, y_test : arrays of shape (samples, ...), optional
        Test samples and labels; both or neither.

    Returns
    -------
    nnet
        The very object that came.

    Raises
    ------
    ValueError, TypeError
        If samples and labels differ in length, test samples come without labels or labels
        without samples, `minibatch_size` is below 1, `epoch` below 0, or the network's gradients
        are not nested like its parameters. The message names the argument or the place.
    """
    optimizer = SGD(nnet.params, lr=learning_rate, convention="article")
    return _train(
        nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test
    )


def sgd_momentum(
    nnet: Network,
    X_train: AnyArray,
    y_train: AnyArray,
    minibatch_size: int,
    epoch: int,
    learning_rate: FloatOrSchedule,
    mu: FloatOrSchedule = 0.9,
    verbose: bool = True,
    X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
    nesterov: bool = False,
) -> Network:
    """Train `nnet` with momentum (see `momentum_update`), Nesterov's if wanted.

    With `nesterov` the gradient is taken where the velocity alone would lead, at ``p - mu * v``;
    the parameters are then put back, to the last bit, and the step is the same. For this,
    ``nnet.train_step`` has to read its weights from the arrays in ``nnet.params``.

    Parameters
    ----------
    nnet, X_train, y_train, minibatch_size, epoch, learning_rate, verbose, X_test, y_test
        As in `sgd`.
    mu : float or callable, default 0.9
        How much of the velocity a step keeps, or a schedule of it.
    nesterov : bool, default False
        Whether to look ahead.

    Returns
    -------
    nnet
        The very object that came.

    Raises
    ------
    ValueError, TypeError
        As `sgd`.

    Notes
    -----
    Y. Nesterov, "A method for solving the convex programming problem with convergence rate
    O(1/k^2)", 1983; I. Sutskever et al., "On the importance of initialization and momentum in deep
    learning", 2013. Seen from the points it looks at, the path is that of
    ``fastopt.SGD(nesterov=True)``, which starts from the same parameters.
    """
    optimizer = SGD(nnet.params, lr=learning_rate, momentum=mu, convention="article")
    # Without momentum there is no velocity to look along.
    train_step = _look_ahead(nnet, optimizer, mu) if nesterov and mu else None
    return _train(
        nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test,
        train_step,
    )


def adagrad(
    nnet: Network,
    X_train: AnyArray,
    y_train: AnyArray,
    minibatch_size: int,
    epoch: int,
    learning_rate: FloatOrSchedule,
    verbose: bool = True,
    X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
) -> Network:
    """Train `nnet` with AdaGrad (see `adagrad_update`).

    Parameters, return value and errors are those of `sgd`.
    """
    optimizer = Adagrad(nnet.params, lr=learning_rate, eps=_ADAGRAD_EPS, convention="article")
    return _train(
        nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test
    )


def rmsprop(
    nnet: Network,
    X_train: AnyArray,
    y_train: AnyArray,
    minibatch_size: int,
    epoch: int,
    learning_rate: FloatOrSchedule,
    verbose: bool = True,
    X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
    decay_rate: float = 0.9,
) -> Network:
    """Train `nnet` with RMSprop (see `rmsprop_update`).

    Parameters, return value and errors are those of `sgd`, and `decay_rate`, how much of the
    average of squares a step keeps.
    """
    optimizer = RMSprop(
        nnet.params, lr=learning_rate, alpha=decay_rate, eps=_RMSPROP_EPS, convention="article"
    )
    return _train(
        nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test
    )


def adam(
    nnet: Network,
    X_train: AnyArray,
    y_train: AnyArray,
    minibatch_size: int,
    epoch: int,
    learning_rate: FloatOrSchedule,
    verbose: bool = True,
    X_test: AnyArray | None = None,
    y_test: AnyArray | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
) -> Network:
    """Train `nnet` with Adam (see `adam_update`), with an epsilon of 1e-4.

    Parameters, return value and errors are those of `sgd`, and `beta1` and `beta2`, how much of
    the first and of the second moment a step keeps.
    """
    optimizer = Adam(
        nnet.params, lr=learning_rate, betas=(beta1, beta2), eps=_ADAM_EPS, convention="article"
    )
    return _train(
        nnet, optimizer, X_train, y_train, minibatch_size, epoch, verbose, X_test, y_test
    )


def _train(
    nnet: Network,
    optimizer: Optimizer,
    X_train: AnyArray,
    y_train: AnyArray,
    minibatch_size: int,
    epoch: int,
    verbose: bool,
    X_test: AnyArray | None,
    y_test: AnyArray | None,
    train_step: TrainStep | None = None,
) -> Network:
    """The one training loop; `train_step` stands in for the network's own where it is given."""
    train = check_X_y("X_train", X_train, "y_train", y_train)
    test = _optional_samples("X_test", X_test, "y_test", y_test)
    minibatch_size = check_int("minibatch_size", minibatch_size, 1)
    epoch = check_int("epoch", epoch, 0)
    train_step = train_step or nnet.train_step
    backwards = getattr(nnet, "grads_reversed", True)
    for number in range(1, epoch + 1):
        if verbose:
            print(f"Epoch {number}")
        for X_batch, y_batch in _minibatches(*train, minibatch_size):
            loss, grads = train_step(X_batch, y_batch)
            optimizer.step(_in_order(nnet.params, grads, "grads", backwards))
        if verbose:
            print(_report(nnet, loss, train, test, minibatch_size))
    return nnet


def _look_ahead(nnet: Net, optimizer: Optimizer, mu: FloatOrSchedule) -> TrainStep:
    """`nnet.train_step`, taken at ``p - mu * v`` and leaving the parameters as they were."""
    params = flatten(nnet.params)[1]
    kept = [np.empty_like(p) for p in params]
    velocity = [state["momentum_buffer"] for state in optimizer.state]
    # p -= mu * v is a step of gradient descent along the velocity.
    nudge = SGD(params, lr=mu)

    def train_step(X: AnyArray, y: AnyArray) -> tuple[SupportsFloat, Layers]:
        for p, k in zip(params, kept, strict=True):
            np.copyto(k, p)
        try:
            nudge.step(velocity)
            return nnet.train_step(X, y)
        finally:
            # Copied back rather than added back: (p - mu * v) + mu * v need not be p.
            for p, k in zip(params, kept, strict=True):
                np.copyto(p, k)

    return train_step


def _report(
    nnet: Net,
    loss: SupportsFloat,
    train: tuple[AnyArray, AnyArray],
    test: tuple[AnyArray, AnyArray] | None,
    minibatch_size: int,
) -> str:
    """The article's line about an epoch."""
    logs = {"loss": float(loss), "accuracy": _accuracy_of(nnet, *train, minibatch_size)}
    if test is not None:
        logs["val_accuracy"] = _accuracy_of(nnet, *test, minibatch_size)
    return format_logs(logs)


def _accuracy_of(nnet: Net, X: AnyArray, y: AnyArray, minibatch_size: int) -> float:
    # As many samples at a time as in training: that much memory is there.
    starts = range(0, len(X), minibatch_size)
    predicted = [nnet.predict(X[start : start + minibatch_size]) for start in starts]
    return accuracy(y, np.concatenate(predicted))


# --- layers, samples and checks -----------------------------------------------------------------


def _minibatches(
    X: AnyArray, y: AnyArray, minibatch_size: int
) -> Iterator[tuple[AnyArray, AnyArray]]:
    """Minibatches in an order drawn when the first is asked for, each copied when it is due."""
    order = np.random.permutation(len(X))  # noqa: NPY002 (np.random.seed is the caller's handle)
    for start in range(0, len(X), minibatch_size):
        chosen = order[start : start + minibatch_size]
        yield X[chosen], y[chosen]


def _columns(params: Layers, grads: Layers, **states: Layers) -> list[tuple[AnyArray, ...]]:
    """For each parameter: its array, its gradient, and its array in each of `states`.

    Everything is checked here, before anything is changed.
    """
    columns = [flatten(params)[1], _flat(_in_order(params, grads, "grads", backwards=True))]
    for name, state in states.items():
        columns.append(flatten(_in_order(params, state, name), name)[1])
    return list(zip(*columns, strict=True))


def _flat(layers: Layers) -> list[AnyArray]:
    return [array for layer in layers for array in layer]


def _in_order(params: Layers, layers: Layers, name: str, backwards: bool = False) -> Layers:
    """`layers` in the order of `params`, refused unless they are nested and shaped like them.

    The messages count as the caller does, from the last layer if `backwards`.
    """
    _check_list(layers, name, len(params), "layers", "params")
    for layer, wanted in enumerate(params):
        place = len(params) - 1 - layer if backwards else layer
        where = f"{name}[{place}]"
        _check_list(layers[place], where, len(wanted), "arrays", f"params[{layer}]")
        for index, (array, like) in enumerate(zip(layers[place], wanted, strict=True)):
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{where}[{index}]: expected an array, got {type(array).__name__}")
            if array.shape != like.shape or array.dtype != like.dtype:
                raise ValueError(
                    f"{where}[{index}]: expected {like.dtype} of shape {like.shape}, as in "
                    f"params[{layer}][{index}], got {array.dtype} of shape {array.shape}"
                )
    return list(reversed(layers)) if backwards else layers


def _check_list(value: Any, where: str, length: int, items: str, like: str) -> None:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{where}: expected a list of {items}, got {type(value).__name__}")
    if len(value) != length:
        raise ValueError(f"{where}: expected {length} {items}, as in {like}, got {len(value)}")


def _optional_samples(
    X_name: str, X: Any, y_name: str, y: Any
) -> tuple[AnyArray, AnyArray] | None:
    if X is None and y is None:
        return None
    for name, values, other in ((X_name, X, y_name), (y_name, y, X_name)):
        if values is None:
            raise ValueError(f"{name}: expected an array, as {other} came, got None")
    return check_X_y(X_name, X, y_name, y)
