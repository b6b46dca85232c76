"""The solvers of the estimators: scikit-learn's three, and every optimizer of fastopt."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastopt import optimizers
from fastopt.optimizers import SGD, Adam, Optimizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from scipy.optimize import OptimizeResult

    from fastopt._core.typing import AnyArray, FloatOrSchedule
    from fastopt.nn.typing import Layers, Samples
    from fastopt.sklearn.net import PenalizedMLP

__all__ = ["SOLVERS", "go_on_with", "make_optimizer", "minimize_lbfgs"]

# Further names: SGD with and without the look-ahead, whatever `nesterovs_momentum` says.
_LOOK_AHEAD = {"momentum": False, "nesterov": True}
_BY_NAME: dict[str, type[Any]] = {
    name.lower(): getattr(optimizers, name) for name in optimizers.__all__ if name != "Optimizer"
}
SOLVERS = sorted({"lbfgs", *_BY_NAME, *_LOOK_AHEAD})


def make_optimizer(
    params: Layers, *, solver: str | Callable[[Layers], Optimizer], learning_rate_init: FloatOrSchedule,
    momentum: float, nesterovs_momentum: bool, beta_1: float, beta_2: float, epsilon: float,
) -> Optimizer:
    """Return the optimizer that a stochastic `solver` stands for.

    Parameters
    ----------
    params : list of list of ndarray
    solver : str or callable
        ``"adam"``, ``"adamw"`` and ``"sgd"`` take all their numbers from here and have scikit-learn's
        formulas; the other optimizers take the learning rate, and the rest is their own default. A
        callable is given the parameters and brings all its numbers.
    learning_rate_init : float or schedule
        A schedule is copied, as it may have a state.
    momentum, nesterovs_momentum, beta_1, beta_2, epsilon
        As scikit-learn's estimators have them.

    Raises
    ------
    TypeError
        If a callable returns something else than an optimizer.
    """
    lr = copy.deepcopy(learning_rate_init)
    if callable(solver):
        made = copy.deepcopy(solver)(params)
        if not isinstance(made, Optimizer):
            raise TypeError(f"solver: expected it to make a fastopt optimizer, got {made!r}")
        return made
    if solver == "sgd" or solver in _LOOK_AHEAD:
        nesterov = _LOOK_AHEAD.get(solver, nesterovs_momentum) and momentum > 0.0
        return SGD(params, lr, momentum, nesterov=nesterov, convention="sklearn")
    rule = _BY_NAME[solver]
    if issubclass(rule, Adam):
        # scikit-learn itself has no other of them.
        convention: Literal["sklearn", "torch"] = "sklearn" if rule is Adam else "torch"
        return rule(params, lr, (beta_1, beta_2), epsilon, convention=convention)
    opt: Optimizer = rule(params, lr=lr)
    return opt


def go_on_with(opt: Optimizer, saved: Mapping[str, Any], same: bool) -> None:
    """Let a new optimizer go on where another stopped.

    Parameters
    ----------
    opt : Optimizer
    saved : dict
        `state_dict` of the other. One of another class is of no use, and is left aside.
    same : bool
        Whether both were made alike: then everything is taken over. Else the hyperparameters of `opt`
        stay, and those state arrays that both have are taken over.
    """
    if saved["optimizer"] != type(opt).__name__:
        return
    if same:
        opt.load_state_dict(saved)
        return
    opt.steps = saved["steps"]
    for mine, before in zip(opt.state, saved["state"], strict=True):
        for name in mine.keys() & before.keys():
            mine[name] = before[name]


def minimize_lbfgs(
    net: PenalizedMLP, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None, *, max_iter: int,
    max_fun: int, tol: float, max_time: float | None, report: Callable[[float], object] | None,
) -> OptimizeResult:
    """Minimize the loss of all rows with SciPy's L-BFGS-B.

    Parameters
    ----------
    net : PenalizedMLP
        Its parameters are the starting point, and hold the solution in the end.
    X, y, sample_weight
        As `train_step` takes them.
    max_iter, max_fun, tol
        Most iterations and evaluations; largest component of the gradient at the solution.
    max_time : float or None
        Seconds after which to stop.
    report : callable or None
        Given the loss after each iteration.

    Returns
    -------
    scipy.optimize.OptimizeResult
    """
    from scipy.optimize import minimize

    arrays = [array for layer in net.params for array in layer]
    feed = net.feed(X, y, sample_weight)
    start = time.perf_counter()

    def evaluate(point: NDArray[np.float64]) -> tuple[float, AnyArray]:
        _unpack(point, arrays)
        loss = feed.objective()
        return loss, _pack([array for layer in feed.grads for array in layer])

    def after_iteration(intermediate_result: OptimizeResult) -> None:
        if report is not None:
            report(intermediate_result.fun)
        if max_time is not None and time.perf_counter() - start >= max_time:
            raise StopIteration

    result = minimize(
        evaluate,
        _pack(arrays),
        method="L-BFGS-B",
        jac=True,
        callback=after_iteration,
        options={"maxiter": max_iter, "maxfun": max_fun, "gtol": tol},
    )
    _unpack(result.x, arrays)
    return result


def _pack(arrays: Sequence[AnyArray]) -> AnyArray:
    return np.concatenate([array.ravel() for array in arrays])


def _unpack(point: AnyArray, arrays: Sequence[AnyArray]) -> None:
    start = 0
    for array in arrays:
        array[...] = point[start : start + array.size].reshape(array.shape)
        start += array.size
