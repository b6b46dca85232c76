"""The estimators' solvers: scikit-learn's three, and every optimizer of fastopt."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import OptimizeResult, minimize

from fastopt._core.typing import AnyArray, FloatOrSchedule
from fastopt.mpi.optimizer import DistributedOptimizer
from fastopt.nn.typing import Layers, Samples
from fastopt.optimizers.api import BY_NAME, SGD, Adam, Optimizer
from fastopt.sklearn.net import PenalizedMLP

# Additional names for SGD that fix `nesterovs_momentum`.
_SGD_NESTEROV = {"momentum": False, "nesterov": True}
SOLVERS = sorted({"lbfgs", *BY_NAME, *_SGD_NESTEROV})


def make_optimizer(
    params: Layers, *, solver: str | Callable[[Layers], Optimizer], learning_rate_init: FloatOrSchedule,
    momentum: float, nesterovs_momentum: bool, beta_1: float, beta_2: float, epsilon: float,
) -> Optimizer:
    """Return the optimizer for a stochastic `solver`, with the hyperparameters of the estimator.

    Adam, its variants and SGD use all of them; the other optimizers use the learning rate and their own
    defaults. A callable sets all hyperparameters itself.
    """
    lr = copy.deepcopy(learning_rate_init)      # a schedule may have state
    if callable(solver):
        opt = copy.deepcopy(solver)(params)
        if not is_optimizer(opt):
            raise TypeError(f"solver: expected a callable that returns a fastopt optimizer, got {opt!r}")
        return opt
    if solver == "sgd" or solver in _SGD_NESTEROV:
        nesterov = _SGD_NESTEROV.get(solver, nesterovs_momentum) and momentum > 0.0
        return SGD(params, lr, momentum, nesterov=nesterov, convention="sklearn")
    cls: type[Any] = BY_NAME[solver]
    if issubclass(cls, Adam):
        # scikit-learn has Adam, but none of its variants.
        convention: Literal["sklearn", "torch"] = "sklearn" if cls is Adam else "torch"
        return cls(params, lr, (beta_1, beta_2), epsilon, convention=convention)
    other: Optimizer = cls(params, lr=lr)
    return other


def is_optimizer(opt: object) -> bool:
    """Whether an object is an optimizer of fastopt, of one process or of many."""
    return isinstance(opt, Optimizer | DistributedOptimizer)


def minimize_lbfgs(
    net: PenalizedMLP, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None, *, max_iter: int,
    max_fun: int, tol: float, max_time: float | None, verbose: bool,
) -> OptimizeResult:
    """Minimize the loss of all samples with SciPy's L-BFGS-B, from the current parameters of the network.

    `tol` is the largest gradient component of a solution, and `max_time` a limit in seconds.
    """
    arrays = [array for layer in net.params for array in layer]
    feed = net.bind_data(X, y, sample_weight)
    start = time.perf_counter()
    n_iter = 0

    def evaluate(point: NDArray[np.float64]) -> tuple[float, AnyArray]:
        _unpack(point, arrays)
        loss = feed.objective()
        return loss, _pack([array for layer in feed.grads for array in layer])

    def after_iteration(intermediate_result: OptimizeResult) -> None:
        nonlocal n_iter
        n_iter += 1
        if verbose:
            print(f"Iteration {n_iter}, loss = {intermediate_result.fun:.8f}")
        if max_time is not None and time.perf_counter() - start >= max_time:
            raise StopIteration

    result = minimize(
        evaluate, _pack(arrays), method="L-BFGS-B", jac=True, callback=after_iteration,
        options={"maxiter": max_iter, "maxfun": max_fun, "gtol": tol},
    )
    _unpack(result.x, arrays)
    return result


def _pack(arrays: Sequence[AnyArray]) -> AnyArray:
    return np.concatenate([array.ravel() for array in arrays])


def _unpack(point: AnyArray, arrays: Sequence[AnyArray]) -> None:
    ends = np.cumsum([array.size for array in arrays])
    for array, part in zip(arrays, np.split(point, ends[:-1]), strict=True):
        array[...] = part.reshape(array.shape)
