"""Every optimizer as a method of ``scipy.optimize.minimize`` (``pip install 'fastopt[scipy]'``).

::

    minimize(fun, x0, jac=True, method=fastopt.scipy.adam, options={"lr": 0.01, "maxiter": 5000})

There is a function for each optimizer of fastopt, named as its class is, in lower case. It takes small steps
of that rule, one for each gradient, without a line search: for functions that are cheap, noisy or of
very many variables. Options are those of the rule, and for all of them

maxiter : int, default 10000
    Steps at most.
gtol : float, default 1e-5
    Success once no component of the gradient is larger; with bounds, of the projected gradient, as in
    L-BFGS-B. ``tol`` of `minimize` stands for it.
ftol : float, default 0
    Success once the value changes by at most ``ftol * max(|f|, |f before|, 1)``; 0 for never.
xtol : float, default 0
    Success once no variable changes by more than ``xtol * max(|x|, 1)``, where ``|x|`` is the largest; 0 for
    never.
patience : int, default 10
    Steps in a row in which `ftol` or `xtol` must be met: where a path turns, one or two are small anyway.
keep_best : bool, default False
    Return the point with the least value of the path rather than the last. Paths of these rules go up
    and down.
finite_diff_rel_step : float or array_like, optional
    Without `jac`: take differences over this times ``max(|x|, 1)``. By default over 1.5e-8, as SciPy does.
return_all : bool, default False
    Keep all points in ``allvecs``.
disp : bool, default False
    Print what came out; a failure is a warning.

Results have the fields of SciPy's: ``x``, the last point, ``fun`` and ``jac`` there, ``nit``, ``nfev``,
``njev``, ``success``, ``message`` and ``status``: 0 a tolerance was met, 1 `maxiter` was reached, 3 the
value or the gradient is not finite, 99 the callback raised StopIteration.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastopt._core.validation import check_float, check_int
from fastopt.optimizers import BY_NAME, arguments_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from fastopt._core.typing import Array
    from fastopt.optimizers.base import Optimizer

try:
    from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning, approx_fprime
except ImportError as error:
    raise ImportError("fastopt.scipy needs SciPy: pip install 'fastopt[scipy]'") from error

__all__ = [*BY_NAME]  # pyright: ignore[reportUnsupportedDunderAll]

# As SciPy's methods have them.
CONVERGED: int = 0
EXHAUSTED: int = 1
NOT_FINITE: int = 3
STOPPED: int = 99

# What would be another problem, or has no meaning here.
_LEFT_OUT = ("maximize", "ema", "skip_nonfinite", "accumulate", "sparse")
_STEP = math.sqrt(np.finfo(float).eps)  # of a finite difference


@dataclass
class _Settings:
    """The options that are not those of the rule; see the module."""

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
            value = check_float(name, getattr(self, name))
            if value < 0.0:
                raise ValueError(f"{name}: expected a number from 0 on, got {value!r}")
            setattr(self, name, value)


@dataclass
class _Point:
    """Where the path is, the value and the gradient there: copies of its own."""

    x: Array
    fun: float
    jac: Array


class _Objective:
    """The function and its gradient, which count how often they are called.

    Attributes
    ----------
    nfev, njev : int
        As SciPy counts: the calls for a finite difference are calls of the function.
    """

    def __init__(
        self, fun: Callable[..., Any], jac: Any, args: Any, box: _Box, rel_step: ArrayLike | None,
    ) -> None:
        if jac is not None and not callable(jac):
            raise ValueError(
                f"jac: expected a function or None, got {jac!r}; scipy.optimize.minimize makes one of True"
            )
        self._fun, self._jac, self._box = fun, jac, box
        self._rel_step: Any = rel_step
        self._args = args if isinstance(args, tuple) else (args,)
        self.nfev = self.njev = 0

    def at(self, x: Array) -> _Point:
        """Evaluate at `x`."""
        fun = self._value(x)
        self.njev += 1
        jac = self._difference(x, fun) if self._jac is None else self._jac(x.copy(), *self._args)
        jac = np.array(jac, x.dtype, ndmin=1)
        if jac.shape != x.shape:
            raise ValueError(f"jac: expected a gradient of the shape {x.shape}, got {jac.shape}")
        return _Point(x.copy(), fun, jac)

    def _value(self, x: Array) -> float:
        self.nfev += 1
        value = np.asarray(self._fun(x.copy(), *self._args))  # a copy, which they may keep or overwrite
        if value.size != 1:
            raise ValueError(f"fun: expected a number, got an array of the shape {value.shape}")
        return float(value.item())

    def _difference(self, x: Array, fun: float) -> Array:
        flat = x.ravel().astype(float)
        steps = np.full(flat.shape, _STEP)
        if self._rel_step is not None:
            steps = np.where(flat < 0.0, -1.0, 1.0) * self._rel_step * np.maximum(1.0, np.abs(flat))

        def value(point: Array) -> float:
            is_here = np.array_equal(point, flat)       # where SciPy begins, and we have been
            return fun if is_here else self._value(point.reshape(x.shape))

        slopes = cast("Array", approx_fprime(flat, value, self._box.inward(flat, steps)))
        return slopes.reshape(x.shape)


class _Box:
    """Bounds of the variables: a `scipy.optimize.Bounds`, pairs of (least, largest), or None.

    They are rounded to the dtype of `x`.
    """

    def __init__(self, bounds: Any, x: Array) -> None:
        self.is_open = bounds is None
        if not self.is_open:
            self._lower, self._upper = _limits(bounds, x)

    def clip(self, x: Array) -> None:
        """Move `x`, in place, to the nearest point inside."""
        if not self.is_open:
            np.clip(x, self._lower, self._upper, out=x)

    def slope(self, point: _Point) -> float:
        """Largest component of the gradient, or of its part that does not point out of the box."""
        jac = point.jac
        if not self.is_open:
            jac = point.x - np.clip(point.x - jac, self._lower, self._upper)
        largest: float = np.max(np.abs(jac), initial=0.0)
        return largest

    def inward(self, flat: Array, steps: Array) -> Array:
        """Turn the steps that would lead out of the box."""
        if self.is_open:
            return steps
        ends = flat + steps
        leaves = (ends > self._upper.ravel()) | (ends < self._lower.ravel())
        return np.where(leaves, -steps, steps)


class _Stopping:
    """When to stop, and what to say then."""

    def __init__(self, settings: _Settings, box: _Box) -> None:
        self._settings, self._box = settings, box
        self._small = {name: 0 for name in ("ftol", "xtol") if getattr(settings, name)}  # steps in a row

    def __call__(self, nit: int, point: _Point, before: _Point | None) -> tuple[int, str] | None:
        """Return status and message at a point, or None to go on; `before` is the point of a step ago."""
        s = self._settings
        if not math.isfinite(point.fun):
            return NOT_FINITE, f"The value of the function is {point.fun}."
        if not np.isfinite(point.jac).all():
            return NOT_FINITE, "The gradient has a NaN or an infinity."
        if self._box.slope(point) <= s.gtol:
            return CONVERGED, "The gradient is within gtol."
        for name in self._small:
            if before is None:
                break
            change, scale = _changes(name, point, before)
            is_small = change <= getattr(s, name) * max(scale, 1.0)
            self._small[name] = self._small[name] + 1 if is_small else 0
            if self._small[name] == s.patience:
                what = "value" if name == "ftol" else "point"
                return CONVERGED, f"The {what} has changed by no more than {name} for {s.patience} steps."
        if nit >= s.maxiter:
            return EXHAUSTED, "The maximum number of iterations has been reached."
        return None


def _changes(name: str, point: _Point, before: _Point) -> tuple[float, float]:
    """Change since the point before, and what it is measured by."""
    if name == "ftol":
        return abs(point.fun - before.fun), max(abs(point.fun), abs(before.fun))
    return np.max(np.abs(point.x - before.x), initial=0.0), np.max(np.abs(point.x), initial=0.0)


def _limits(bounds: Any, x: Array) -> list[Array]:
    """Lower and upper bounds as two arrays, of the dtype and the shape of `x`."""
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
        raise ValueError(f"bounds: expected {x.size}, one a variable, got {limits[0].size}")
    if not (limits[0] <= limits[1]).all():
        raise ValueError(f"bounds: expected no lower bound above the upper one, got {bounds!r}")
    return [np.broadcast_to(limit, x.size).reshape(x.shape).astype(x.dtype) for limit in limits]


def _start(x0: ArrayLike) -> Array:
    """The first point, as an array that the optimizer may update: float32 stays, all else is float64."""
    x = np.atleast_1d(np.asarray(x0))
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x0: expected real numbers, got {x.dtype}")
    return np.array(x, np.float32 if x.dtype == np.float32 else np.float64, order="C")


def _callback(callback: Callable[..., object] | None) -> Callable[[_Point], bool]:
    """A function of a point that says whether to stop. SciPy's two kinds differ in their argument's name."""
    if callback is None:
        return lambda point: False
    by_result = set(inspect.signature(callback).parameters) == {"intermediate_result"}

    def stops(point: _Point) -> bool:
        try:
            if by_result:
                callback(intermediate_result=OptimizeResult(x=point.x.copy(), fun=point.fun))
            else:
                callback(point.x.copy())
        except StopIteration:
            return True
        return False

    return stops


def _minimize(
    make: Callable[[Array], Optimizer], fun: Callable[..., Any], x0: ArrayLike, args: Any,
    jac: Callable[..., ArrayLike] | None, bounds: Any, callback: Callable[..., object] | None,
    settings: _Settings,
) -> OptimizeResult:
    """Take steps from `x0` until told to stop; `make` returns the optimizer of an array."""
    x = _start(x0)
    box, stops = _Box(bounds, x), _callback(callback)
    box.clip(x)
    opt, stopping = make(x), _Stopping(settings, box)
    objective = _Objective(fun, jac, args, box, settings.finite_diff_rel_step)
    point, before, nit = objective.at(x), None, 0
    best, path = point, [point.x]
    while (ended := stopping(nit, point, before)) is None:
        opt.step(point.jac)
        box.clip(x)
        nit += 1
        before, point = point, objective.at(x)
        if point.fun < best.fun:
            best = point
        if settings.return_all:
            path.append(point.x)
        if stops(point):
            ended = STOPPED, "The callback raised StopIteration."
            break
    return _result(best if settings.keep_best else point, nit, objective, ended, path, settings)


def _result(
    point: _Point, nit: int, objective: _Objective, ended: tuple[int, str], path: list[Array],
    settings: _Settings,
) -> OptimizeResult:
    """What is returned, and printed if wanted."""
    status, message = ended
    result = OptimizeResult(
        x=point.x, fun=point.fun, jac=point.jac, nit=nit, nfev=objective.nfev, njev=objective.njev,
        status=status, success=status == CONVERGED, message=message,
    )
    if settings.return_all:
        result.allvecs = path
    if settings.disp:
        if not result.success:
            warnings.warn(message, OptimizeWarning, stacklevel=5)
        print(
            f"{message}\n    Value of the function: {point.fun:g}\n    Iterations: {nit}\n"
            f"    Evaluations of the function: {objective.nfev}\n    Of the gradient: {objective.njev}"
        )
    return result


# --- One function a rule -------------------------------------------------------------------------


def _method(name: str, rule: type[Optimizer]) -> Callable[..., OptimizeResult]:
    """The method of a rule."""
    hyperparameters = {
        option: parameter.replace(kind=parameter.KEYWORD_ONLY)
        for option, parameter in arguments_of(rule).items() if option not in _LEFT_OUT
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
            raise ValueError(f"constraints: {name} can keep none but bounds, got {constraints!r}")
        if hess is not None or hessp is not None:
            message = f"{name} does not use second derivatives (hess, hessp)."
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        given = {option: options.pop(option) for option in hyperparameters if option in options}
        make = functools.partial(rule, **given)
        return _minimize(make, fun, x0, args, jac, bounds, callback, _Settings(**options))

    common = [p for p in inspect.signature(method).parameters.values() if p.kind != p.VAR_KEYWORD]
    signature = inspect.Signature([*common, *hyperparameters.values(), *settings])
    method.__signature__ = signature  # type: ignore[attr-defined]
    method.__name__ = method.__qualname__ = name
    first = (inspect.getdoc(rule) or "").partition("\n")[0]
    method.__doc__ = _DOC.format(name=name, rule=rule.__name__, first=first)
    return method


_DOC = """Minimize a function with `fastopt.{rule}`, as ``method`` of `scipy.optimize.minimize`.

{first}

Parameters
----------
fun : callable
    ``fun(x, *args) -> float``.
x0 : array_like
    Where to begin; it is not changed. float32 stays float32, all else is float64.
args : tuple
    Further arguments of `fun` and `jac`.
jac : callable, optional
    ``jac(x, *args) -> array_like``, the gradient; by default it comes of finite differences. Where
    `minimize` is given ``jac=True``, it makes this function.
hess, hessp : optional
    Not used; a warning says so.
bounds : scipy.optimize.Bounds or sequence of pairs, optional
    After each step, what has left them is moved to the bound.
constraints : optional
    None can be kept: an error.
callback : callable, optional
    ``callback(xk)`` or ``callback(intermediate_result=result)`` after each step; may raise StopIteration.
**options
    Hyperparameters of `fastopt.{rule}`, of which each number may be a schedule; and `maxiter`, `gtol`,
    `ftol`, `xtol`, `patience`, `keep_best`, `finite_diff_rel_step`, `return_all`, `disp`, as in the
    page on `fastopt.scipy`.

Returns
-------
scipy.optimize.OptimizeResult

Raises
------
TypeError, ValueError
    If an option is unknown or out of its range, or `fun` or `jac` return what does not fit.

Examples
--------
>>> from scipy.optimize import minimize
>>> import fastopt.scipy
>>> result = minimize(lambda x: (x @ x, 2 * x), [3.0, -4.0], jac=True, method=fastopt.scipy.{name})
"""

if TYPE_CHECKING:
    def __getattr__(name: str) -> Callable[..., OptimizeResult]: ...

globals().update({name: _method(name, rule) for name, rule in BY_NAME.items()})
