"""Optimizers as methods of ``scipy.optimize.minimize`` (``pip install 'fastopt[scipy]'``).

::

    minimize(fun, x0, jac=True, method=fastopt.scipy.adam, options={"lr": 0.01, "maxiter": 5000})

There is one function per fastopt optimizer, with the name of the class in lower case. Each takes one step per
gradient, without a line search. Use them for functions that are cheap to evaluate, noisy, or have very many
variables. The options are the hyperparameters of the optimizer and, for all optimizers,

maxiter : int, default 10000
    Maximum number of steps.
gtol : float, default 1e-5
    Succeed when no component of the gradient is larger than this; with bounds, no component of the projected
    gradient, as in L-BFGS-B. It defaults to ``tol`` of `minimize` if that is given.
ftol : float, default 0
    Succeed when the value changes by at most ``ftol * max(|f|, |f before|, 1)``; 0 disables the test.
xtol : float, default 0
    Succeed when no variable changes by more than ``xtol * max(|x|, 1)``, where ``|x|`` is the largest
    absolute value; 0 disables the test.
patience : int, default 10
    Number of consecutive steps for which `ftol` or `xtol` must hold, because single steps can be small far
    from a minimum.
keep_best : bool, default False
    Return the point with the lowest value instead of the last one. Values can increase along the path.
finite_diff_rel_step : float or array_like, optional
    Relative step of finite differences, which are used without `jac`; it is multiplied by
    ``max(|x|, 1)``. By default, the step is 1.5e-8, as in SciPy.
return_all : bool, default False
    Return all points in ``allvecs``.
disp : bool, default False
    Print a summary, and raise a warning if the minimization fails.

Results have SciPy's fields: ``x``, the last point, ``fun`` and ``jac`` at this point, ``nit``, ``nfev``,
``njev``, ``success``, ``message`` and ``status``: 0 if a tolerance was met, 1 if `maxiter` was reached, 3 if
the value or the gradient is not finite, 99 if the callback raised StopIteration.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from fastopt._core.typing import Array
from fastopt._core.validation import check_float, check_int
from fastopt.optimizers.api import BY_NAME, TRAINING_OPTIONS, Optimizer, arguments_of
from fastopt.schedules.base import report_to_optimizer

try:
    from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning, approx_fprime
except ImportError as error:
    raise ImportError("fastopt.scipy needs SciPy: pip install 'fastopt[scipy]'") from error

__all__ = [*BY_NAME]  # pyright: ignore[reportUnsupportedDunderAll]

# Values of `status`, as in SciPy's methods.
CONVERGED: int = 0
MAXITER_REACHED: int = 1
NOT_FINITE: int = 3
STOPPED: int = 99

_DIFFERENCE_STEP = math.sqrt(np.finfo(float).eps)


@dataclass
class _Settings:
    """Options that are common to all methods; see the module's docstring."""

    maxiter: int = 10_000
    gtol: float = None  # type: ignore[assignment]  # that is, `tol` or 1e-5
    ftol: float = 0.0
    xtol: float = 0.0
    patience: int = 10
    keep_best: bool = False
    finite_diff_rel_step: ArrayLike | None = None
    return_all: bool = False
    disp: bool = False
    tol: float | None = None

    def __post_init__(self) -> None:
        self.maxiter = check_int("maxiter", self.maxiter, 0)
        self.patience = check_int("patience", self.patience, 1)
        step = self.finite_diff_rel_step
        if step is not None and not np.all(np.asarray(step) > 0.0):
            raise ValueError(f"finite_diff_rel_step: expected positive numbers, got {step!r}")
        if self.gtol is None:
            self.gtol = 1e-5 if self.tol is None else self.tol
        for name in ("gtol", "ftol", "xtol"):
            setattr(self, name, check_float(name, getattr(self, name), 0.0))


@dataclass
class _Point:
    """A point of the path, with copies of `x` and of the gradient."""

    x: Array
    fun: float
    jac: Array


class _Objective:
    """The function and its gradient, which count evaluations: as in SciPy, also for finite differences."""

    def __init__(self, fun: Callable[..., Any], jac: Any, args: Any, box: _Box, rel_step: Any) -> None:
        if jac is not None and not callable(jac):
            raise ValueError(
                f"jac: expected a function or None, got {jac!r}; call scipy.optimize.minimize to use True"
            )
        self._fun, self._jac, self._box, self._rel_step = fun, jac, box, rel_step
        self._args = args if isinstance(args, tuple) else (args,)
        self.nfev = self.njev = 0

    def evaluate(self, x: Array) -> _Point:
        fun = self._value(x)
        self.njev += 1
        jac = self._finite_differences(x, fun) if self._jac is None else self._jac(x.copy(), *self._args)
        jac = np.array(jac, x.dtype, ndmin=1)
        if jac.shape != x.shape:
            raise ValueError(f"jac: expected a gradient of the shape {x.shape}, got {jac.shape}")
        return _Point(x.copy(), fun, jac)

    def _value(self, x: Array) -> float:
        self.nfev += 1
        value = np.asarray(self._fun(x.copy(), *self._args))    # a copy: `fun` may keep or overwrite it
        if value.size != 1:
            raise ValueError(f"fun: expected a number, got an array of the shape {value.shape}")
        return float(value.item())

    def _finite_differences(self, x: Array, fun: float) -> Array:
        flat = x.ravel().astype(float)
        steps = np.full(flat.shape, _DIFFERENCE_STEP)
        if self._rel_step is not None:
            steps = np.where(flat < 0.0, -1.0, 1.0) * self._rel_step * np.maximum(1.0, np.abs(flat))

        def value(point: Array) -> float:
            is_x = np.array_equal(point, flat)      # SciPy evaluates at `x` first, where the value is known
            return fun if is_x else self._value(point.reshape(x.shape))

        gradient = cast("Array", approx_fprime(flat, value, self._box.keep_inside(flat, steps)))
        return gradient.reshape(x.shape)


class _Box:
    """Bounds of the variables, rounded to the dtype of `x`."""

    def __init__(self, bounds: Any, x: Array) -> None:
        self._is_unbounded = bounds is None
        if not self._is_unbounded:
            self._lower, self._upper = _parse_bounds(bounds, x)

    def clip(self, x: Array) -> None:
        """Project `x` onto the box, in place."""
        if not self._is_unbounded:
            np.clip(x, self._lower, self._upper, out=x)

    def gradient_norm(self, point: _Point) -> float:
        """Return the largest absolute component of the projected gradient."""
        jac = point.jac
        if not self._is_unbounded:
            jac = point.x - np.clip(point.x - jac, self._lower, self._upper)
        largest: float = np.max(np.abs(jac), initial=0.0)
        return largest

    def keep_inside(self, flat: Array, steps: Array) -> Array:
        """Reverse the steps that would leave the box."""
        if self._is_unbounded:
            return steps
        ends = flat + steps
        leaves = (ends > self._upper.ravel()) | (ends < self._lower.ravel())
        return np.where(leaves, -steps, steps)


class _Termination:
    """The termination criteria: tolerances, `maxiter`, and values that are not finite."""

    def __init__(self, settings: _Settings, box: _Box) -> None:
        self._settings, self._box = settings, box
        # Consecutive steps for which each enabled tolerance held.
        self._n_small = {name: 0 for name in ("ftol", "xtol") if getattr(settings, name)}

    def check(self, nit: int, point: _Point, previous: _Point | None) -> tuple[int, str] | None:
        """Return status and message if the path ends at `point`, otherwise None."""
        s = self._settings
        if not math.isfinite(point.fun):
            return NOT_FINITE, f"The value of the function is {point.fun}."
        if not np.isfinite(point.jac).all():
            return NOT_FINITE, "The gradient has a NaN or an infinity."
        if self._box.gradient_norm(point) <= s.gtol:
            return CONVERGED, "The gradient is within gtol."
        for name in self._n_small:
            if previous is None:
                break
            if name == "ftol":
                change, scale = abs(point.fun - previous.fun), max(abs(point.fun), abs(previous.fun))
            else:
                change = np.max(np.abs(point.x - previous.x), initial=0.0)
                scale = np.max(np.abs(point.x), initial=0.0)
            is_small = change <= getattr(s, name) * max(scale, 1.0)
            self._n_small[name] = self._n_small[name] + 1 if is_small else 0
            if self._n_small[name] == s.patience:
                quantity = "value" if name == "ftol" else "point"
                return CONVERGED, f"The {quantity} has changed by no more than {name} for {s.patience} steps."
        if nit >= s.maxiter:
            return MAXITER_REACHED, "The maximum number of iterations has been reached."
        return None


def _parse_bounds(bounds: Any, x: Array) -> list[Array]:
    """Return lower and upper bounds as two arrays of the dtype and the shape of `x`."""
    sizes: tuple[int, ...]
    try:
        if isinstance(bounds, Bounds):
            limits, sizes = np.array([bounds.lb, bounds.ub], float), (1, x.size)
        else:
            pairs = [(-math.inf if lo is None else lo, math.inf if hi is None else hi) for lo, hi in bounds]
            limits, sizes = np.array(pairs, float).T, (x.size,)
    except (TypeError, ValueError):
        raise ValueError(f"bounds: expected a Bounds, or pairs of numbers or None, got {bounds!r}") from None
    if limits[0].size not in sizes:
        raise ValueError(f"bounds: expected {x.size}, one per variable, got {limits[0].size}")
    if not (limits[0] <= limits[1]).all():
        raise ValueError(f"bounds: expected no lower bound above the upper one, got {bounds!r}")
    return [np.broadcast_to(limit, x.size).reshape(x.shape).astype(x.dtype) for limit in limits]


def _copy_x0(x0: ArrayLike) -> Array:
    """Return the initial point as a new array: float32 is kept, other dtypes become float64."""
    x = np.atleast_1d(np.asarray(x0))
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x0: expected real numbers, got {x.dtype}")
    return np.array(x, np.float32 if x.dtype == np.float32 else np.float64, order="C")


def _wrap_callback(callback: Callable[..., object] | None) -> Callable[[_Point], bool]:
    """Return a function that calls the callback with a point and returns whether to stop.

    SciPy tells the two kinds of callbacks apart by the name of their argument.
    """
    if callback is None:
        return lambda point: False
    takes_result = set(inspect.signature(callback).parameters) == {"intermediate_result"}

    def stops(point: _Point) -> bool:
        try:
            if takes_result:
                callback(intermediate_result=OptimizeResult(x=point.x.copy(), fun=point.fun))
            else:
                callback(point.x.copy())
        except StopIteration:
            return True
        return False

    return stops


def _minimize(
    make_optimizer: Callable[[Array], Optimizer], fun: Callable[..., Any], x0: ArrayLike, args: Any,
    jac: Callable[..., ArrayLike] | None, bounds: Any, callback: Callable[..., object] | None,
    settings: _Settings,
) -> OptimizeResult:
    """Take steps from `x0` until a termination criterion is met."""
    x = _copy_x0(x0)
    box, stops = _Box(bounds, x), _wrap_callback(callback)
    box.clip(x)
    opt, termination = make_optimizer(x), _Termination(settings, box)
    objective = _Objective(fun, jac, args, box, settings.finite_diff_rel_step)
    point, previous, nit = objective.evaluate(x), None, 0
    best, path = point, [point.x]
    while (outcome := termination.check(nit, point, previous)) is None:
        opt.step(point.jac)
        box.clip(x)
        nit += 1
        previous, point = point, objective.evaluate(x)
        report_to_optimizer(opt, point.fun)
        if point.fun < best.fun:
            best = point
        if settings.return_all:
            path.append(point.x)
        if stops(point):
            outcome = STOPPED, "The callback raised StopIteration."
            break
    point = best if settings.keep_best else point
    status, message = outcome
    result = OptimizeResult(
        x=point.x, fun=point.fun, jac=point.jac, nit=nit, nfev=objective.nfev, njev=objective.njev,
        status=status, success=status == CONVERGED, message=message,
    )
    if settings.return_all:
        result.allvecs = path
    if settings.disp:
        if not result.success:
            warnings.warn(message, OptimizeWarning, stacklevel=4)
        print(
            f"{message}\n    Value of the function: {point.fun:g}\n    Iterations: {nit}\n"
            f"    Evaluations of the function: {objective.nfev}\n    Of the gradient: {objective.njev}"
        )
    return result


def _make_method(name: str, cls: type[Optimizer]) -> Callable[..., OptimizeResult]:
    hyperparameters = {
        option: parameter.replace(kind=parameter.KEYWORD_ONLY)
        for option, parameter in arguments_of(cls).items() if option not in TRAINING_OPTIONS
    }
    settings = [
        p.replace(kind=p.KEYWORD_ONLY, annotation=p.empty)
        for p in inspect.signature(_Settings).parameters.values()
    ]
    known = [*hyperparameters, *(setting.name for setting in settings)]

    def method(
        fun: Callable[..., Any], x0: ArrayLike, args: Any = (), jac: Callable[..., ArrayLike] | None = None,
        hess: object = None, hessp: object = None, bounds: Any = None, constraints: object = (),
        callback: Callable[..., object] | None = None, **options: Any,
    ) -> OptimizeResult:
        for option in options:
            if option not in known:
                raise TypeError(f"{name}: unknown option {option!r}, expected one of {', '.join(known)}")
        if constraints:
            message = f"constraints: expected none, because {name} supports bounds only, got {constraints!r}"
            raise ValueError(message)
        if hess is not None or hessp is not None:
            message = f"{name} does not use second derivatives (hess, hessp)."
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        given = {option: options.pop(option) for option in hyperparameters if option in options}
        make_optimizer = functools.partial(cls, **given)
        return _minimize(make_optimizer, fun, x0, args, jac, bounds, callback, _Settings(**options))

    common = [p for p in inspect.signature(method).parameters.values() if p.kind != p.VAR_KEYWORD]
    signature = inspect.Signature([*common, *hyperparameters.values(), *settings])
    method.__signature__ = signature  # type: ignore[attr-defined]
    method.__name__ = method.__qualname__ = name
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    method.__doc__ = _DOC.format(name=name, cls=cls.__name__, summary=summary)
    return method


_DOC = """Minimize a function with `fastopt.{cls}`, as ``method`` of `scipy.optimize.minimize`.

{summary}

Parameters
----------
fun : callable
    ``fun(x, *args) -> float``.
x0 : array_like
    Initial point, which is not modified. float32 is kept, other dtypes become float64.
args : tuple
    Additional arguments of `fun` and `jac`.
jac : callable, optional
    The gradient, ``jac(x, *args) -> array_like``; by default, finite differences. `minimize` creates this
    function if it is given ``jac=True``.
hess, hessp : optional
    Not used; a warning is raised if one is given.
bounds : scipy.optimize.Bounds or sequence of pairs, optional
    After each step, variables outside their bounds are moved to the bound.
constraints : optional
    Not supported; an error is raised if any is given.
callback : callable, optional
    ``callback(xk)`` or ``callback(intermediate_result=result)``, called after each step; may raise
    StopIteration to stop.
**options
    Hyperparameters of `fastopt.{cls}`, which accept schedules (a `ReduceOnPlateau` receives the value of the
    function after each step), and `maxiter`, `gtol`, `ftol`, `xtol`,
    `patience`, `keep_best`, `finite_diff_rel_step`, `return_all` and `disp`, which are described in the
    documentation of `fastopt.scipy`.

Returns
-------
scipy.optimize.OptimizeResult

Examples
--------
>>> from scipy.optimize import minimize
>>> import fastopt.scipy
>>> result = minimize(lambda x: (x @ x, 2 * x), [3.0, -4.0], jac=True, method=fastopt.scipy.{name})
"""

if TYPE_CHECKING:
    def __getattr__(name: str) -> Callable[..., OptimizeResult]: ...

globals().update({name: _make_method(name, cls) for name, cls in BY_NAME.items()})
