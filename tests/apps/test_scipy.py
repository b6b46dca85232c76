"""Methods of scipy.optimize.minimize: paths equal the optimizer's steps, results have SciPy's conventions."""

import inspect
import pickle
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import fastopt
from fastopt import schedules
from fastopt.optimizers import BY_NAME

optimize = pytest.importorskip("scipy.optimize")

import fastopt.scipy as methods  # noqa: E402 (fails without SciPy)

minimize, rosen, rosen_der = optimize.minimize, optimize.rosen, optimize.rosen_der
START = [-1.2, 1.0]


def rosen_both(x):
    return rosen(x), rosen_der(x)


def bowl(x):
    """A quadratic with its minimum at (1, 2, 3, ...)."""
    away = x - np.arange(1, x.size + 1)
    return 0.5 * away @ away, away


def solve(
    method=methods.adam, fun=rosen_both, x0=START, jac=True, callback=None, bounds=None, tol=None, **options
):
    return minimize(
        fun, x0, jac=jac, method=method, callback=callback, bounds=bounds, tol=tol, options=options
    )


# --- Every optimizer -------------------------------------------------------------------------


def test_every_optimizer_has_a_method():
    optimizers = {name.lower(): getattr(fastopt, name) for name in fastopt.__all__}
    rules = {n for n, o in optimizers.items() if isinstance(o, type) and issubclass(o, fastopt.Optimizer)}
    assert set(methods.__all__) == set(BY_NAME) == rules - {"optimizer"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BY_NAME)
def test_path_equals_optimizer_steps(name, dtype):
    x = np.array([-1.2, 1.0, 0.3, 2.0], dtype)
    result = solve(getattr(methods, name), x0=x, lr=1e-4, maxiter=40, gtol=0, return_all=True)
    assert x[0] == dtype(-1.2)  # x0 is not modified
    opt = BY_NAME[name](x, lr=1e-4)
    for point in result.allvecs[:-1]:
        assert point.dtype == dtype and np.array_equal(point, x)
        opt.step(rosen_der(x).astype(dtype))
    assert np.array_equal(result.x, x) and np.array_equal(result.jac, rosen_der(x).astype(dtype))
    assert (result.nit, result.nfev, result.njev, len(result.allvecs)) == (40, 41, 41, 41)
    assert result.fun == rosen(x)


@pytest.mark.parametrize("name", BY_NAME)
def test_function_value_decreases(name):
    result = solve(getattr(methods, name), fun=bowl, x0=[3.0, -1.0, 0.5], maxiter=100)
    assert result.fun < bowl(np.array([3.0, -1.0, 0.5]))[0]


@pytest.mark.parametrize("name", BY_NAME)
def test_signature_and_docstring(name):
    method, rule = getattr(methods, name), BY_NAME[name]
    options = inspect.signature(method).parameters
    own = inspect.signature(rule).parameters
    assert all(options[n].default == own[n].default for n in own if n in options)
    assert {"params", "maximize"}.isdisjoint(options) and {"lr", "gtol", "maxiter"} <= options.keys()
    assert method.__name__ == name and f"fastopt.{rule.__name__}" in method.__doc__
    assert pickle.loads(pickle.dumps(method)) is method


WRAPPERS = {"plain": lambda s: s, "wrapped": lambda s: schedules.LinearWarmup(3, s)}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_plateau_receives_the_value_of_the_function(wrap):
    plateau, values = schedules.ReduceOnPlateau(10.0, factor=0.5, patience=0), []
    solve(
        methods.sgd, fun=bowl, x0=[3.0, -1.0], lr=wrap(plateau), maxiter=20,
        callback=lambda intermediate_result: values.append(intermediate_result.fun),
    )
    expected = schedules.ReduceOnPlateau(10.0, factor=0.5, patience=0)
    for value in values:
        expected.report(value)
    assert plateau == expected and plateau.current_lr < 10.0


# --- Results ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {"lr": 0.02}),
        ("adam", {"lr": schedules.Exponential(0.1, 0.9999), "betas": (0.8, 0.99), "amsgrad": True}),
        ("rmsprop", {"lr": schedules.Exponential(0.02, 0.999), "momentum": 0.5}),
        ("adagrad", {"lr": 0.5, "maxiter": 20_000}),
        ("sgd", {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
        ("adam", {"lr": 0.03, "lookahead": (5, 0.5)}),
    ],
)
def test_rosenbrock(name, options):
    result = solve(getattr(methods, name), **options)
    assert result.success and result.status == 0 and result.message == "The gradient is within gtol."
    assert np.abs(result.jac).max() <= 1e-5 and np.abs(result.x - 1.0).max() < 1e-3
    assert result.fun == rosen(result.x) and "allvecs" not in result
    assert isinstance(result, optimize.OptimizeResult)


@pytest.mark.parametrize("x0", [3.0, [3.0], [3], np.zeros(7), np.zeros(0)])
def test_shapes_of_x0(x0):
    result = solve(methods.sgd, bowl, x0, lr=0.5, gtol=1e-8)
    size = np.size(x0)
    assert result.success and result.x.dtype == float
    np.testing.assert_allclose(result.x, np.arange(1, size + 1), atol=1e-7)


def test_arrays_of_any_shape_without_minimize():
    def total(x):
        return np.sum((x - 1.0) ** 2)

    x0 = np.zeros((3, 2), np.float32)
    bounds = [(None, 0.5)] * 3 + [(None, None)] * 3
    for jac in (None, lambda x: 2.0 * (x - 1.0)):
        result = methods.sgd(total, x0, jac=jac, bounds=bounds, lr=0.25, gtol=1e-3)
        assert result.success and result.x.dtype == np.float32
        np.testing.assert_allclose(result.x, [[0.5, 0.5], [0.5, 1.0], [1.0, 1.0]], atol=1e-3)


@pytest.mark.parametrize("jac", [None, "2-point"])
def test_finite_differences(jac):
    calls = []

    def fun(x):
        calls.append(x)
        return rosen(x)

    result = solve(fun=fun, jac=jac, lr=0.02)
    exact = solve(lr=0.02)
    assert result.success and abs(result.nit - exact.nit) < 5
    np.testing.assert_allclose(result.x, exact.x, atol=1e-4)
    assert result.nfev == len(calls) == 3 * result.njev  # one at the point itself, and one per variable


@pytest.mark.parametrize("step", [0.5, [0.5, 0.25]])
def test_finite_diff_rel_step(step):
    x = np.array([-3.0, 0.5])
    result = solve(fun=lambda x: bowl(x)[0], x0=x, jac=None, finite_diff_rel_step=step, maxiter=0)
    np.testing.assert_allclose(result.jac, bowl(x)[1] + np.array([-3.0, 1.0]) * step / 2)


def test_callable_jac_and_args():
    def fun(x, a, b):
        return a * x @ x + b

    result = minimize(
        fun, [1.0, 2.0], (3.0, 5.0), jac=lambda x, a, b: 2 * a * x, method=methods.sgd, options={"lr": 0.1}
    )
    assert result.success and result.fun == pytest.approx(5.0)
    result = minimize(lambda x, a: a * x @ x, [1.0], 3.0, method=methods.sgd, options={"lr": 0.1})
    assert result.success and result.njev == result.nit + 1


def test_function_may_overwrite_x_and_reuse_its_gradient():
    gradient = np.zeros(3)

    def fun(x):
        value, gradient[:] = bowl(x)
        x[:] = np.nan
        return np.array([value]), gradient

    result = solve(methods.adam, fun, np.zeros(3), lr=0.1)
    assert result.success and result.jac is not gradient
    np.testing.assert_array_equal(result.x, solve(methods.adam, bowl, np.zeros(3), lr=0.1).x)


def test_keep_best():
    last, best = (
        solve(methods.sgd, bowl, [5.0], lr=0.05, momentum=0.95, maxiter=60, keep_best=keep, return_all=True)
        for keep in (False, True)
    )
    values = [bowl(x)[0] for x in last.allvecs]
    assert np.array_equal(last.x, last.allvecs[-1]) and last.fun == values[-1]
    assert best.fun == min(values) < last.fun and best.nit == last.nit
    assert np.array_equal(best.x, last.allvecs[np.argmin(values)])
    assert np.array_equal(best.jac, bowl(best.x)[1])


# --- Tolerances ------------------------------------------------------------------------------


def test_gtol():
    for result in (solve(fun=bowl, gtol=1e-2, lr=0.1), solve(fun=bowl, tol=1e-2, lr=0.1)):
        assert result.success and 1e-5 < np.abs(result.jac).max() <= 1e-2
    strict = solve(fun=bowl, tol=1e-2, gtol=1e-6, lr=0.1)
    assert np.abs(strict.jac).max() <= 1e-6
    assert solve(fun=bowl, x0=[1.0, 2.0]).nit == 0


@pytest.mark.parametrize("name", ["ftol", "xtol"])
def test_ftol_and_xtol(name):
    def changes(path):
        if name == "xtol":
            return [np.abs(b - a).max() / max(1.0, np.abs(b).max()) for a, b in pairwise(path)]
        return [abs(b - a) / max(1.0, a, b) for a, b in pairwise(bowl(x)[0] for x in path)]

    given = {"fun": bowl, "x0": [4.0, -3.0], "momentum": 0.9, "lr": 0.02, "gtol": 0, "return_all": True}
    for patience in (1, 7):
        result = solve(methods.sgd, **given, **{name: 1e-3}, patience=patience)
        met = [change <= 1e-3 for change in changes(result.allvecs)]
        assert result.success and f"no more than {name} for {patience} steps" in result.message
        runs = "".join("x" if small else "." for small in met)
        assert runs.find("x" * patience) == len(runs) - patience


def test_constant_function_succeeds_only_with_ftol():
    assert solve(fun=lambda x: (1.0, np.ones(2)), lr=1e-3, maxiter=50).status == 1
    assert solve(fun=lambda x: (1.0, np.ones(2)), lr=1e-3, maxiter=50, ftol=1e-9).nit == 10


@pytest.mark.parametrize("maxiter", [0, 3])
def test_maxiter(maxiter):
    result = solve(maxiter=maxiter)
    assert (result.success, result.status, result.nit, result.nfev) == (False, 1, maxiter, maxiter + 1)
    assert result.message == "The maximum number of iterations has been reached."


@pytest.mark.parametrize(
    ("fun", "message", "nit"),
    [
        (lambda x: (np.nan, x), "The value of the function is nan.", 0),
        (lambda x: (1.0, x * np.inf), "The gradient has a NaN or an infinity.", 0),
        (lambda x: (x[0] if x[0] > 0.45 else -np.inf, np.ones(1)), "The value of the function is -inf.", 2),
    ],
)
def test_nonfinite_value_or_gradient_stops(fun, message, nit):
    result = solve(methods.sgd, fun, [0.6], lr=0.1)
    assert (result.success, result.status, result.message, result.nit) == (False, 3, message, nit)


def test_keep_best_after_divergence():
    with np.errstate(over="ignore", invalid="ignore"):
        result = solve(methods.sgd, lr=0.1, keep_best=True)
    assert not result.success and result.status == 3 and np.isfinite(result.fun)


# --- Callbacks -------------------------------------------------------------------------------


def test_both_kinds_of_callbacks():
    points, results = [], []

    def by_point(xk):
        points.append(xk)

    def by_result(intermediate_result):
        results.append(intermediate_result)

    for callback in (by_point, by_result):
        solve(maxiter=5, callback=callback)
    expected = solve(maxiter=5, return_all=True).allvecs[1:]
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal([r.x for r in results], expected)
    assert [r.fun for r in results] == [rosen(x) for x in expected]


def test_callback_may_overwrite_its_point():
    def overwrite(x):
        x[:] = np.nan

    actual = solve(maxiter=5, callback=overwrite, return_all=True)
    np.testing.assert_array_equal(actual.allvecs, solve(maxiter=5, return_all=True).allvecs)


def test_callback_stops_with_stop_iteration():
    seen = []

    def stop(x):
        seen.append(x)
        if len(seen) == 3:
            raise StopIteration

    result = solve(callback=stop)
    assert (result.nit, result.status, result.success) == (3, 99, False)
    seen.clear()
    expected = solve("bfgs", callback=stop)
    assert (expected.nit, expected.status, expected.success) == (3, 99, False)


def test_other_errors_of_callbacks_propagate():
    def fail(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solve(callback=fail)


# --- Bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds",
    [
        [(None, 0.5), (None, None)],
        [(-np.inf, 0.5), (-10, np.inf)],
        optimize.Bounds([-np.inf, -10], [0.5, np.inf]),
    ],
)
@pytest.mark.parametrize("jac", [True, None])
def test_bounds(bounds, jac):
    evaluated = []

    def fun(x):
        evaluated.append(x)
        return rosen_both(x) if jac else rosen(x)

    result = solve(fun=fun, jac=jac, bounds=bounds, lr=0.02, x0=[2.0, 2.0])
    expected = minimize(rosen, [2.0, 2.0], jac=rosen_der, bounds=bounds, method="l-bfgs-b")
    assert result.success and max(x[0] for x in evaluated) <= 0.5
    np.testing.assert_allclose(result.x, expected.x, atol=1e-4)
    np.testing.assert_allclose(result.jac, expected.jac, atol=1e-3)


def test_scalar_bounds():
    result = solve(methods.sgd, bowl, np.zeros(4), bounds=optimize.Bounds(1.5, 3.5), lr=0.5)
    np.testing.assert_allclose(result.x, [1.5, 2.0, 3.0, 3.5], atol=1e-4)
    assert result.success


def test_equal_bounds():
    result = solve(bounds=[(2, 2), (3, 3)])
    assert result.success and result.nit == 0 and list(result.x) == [2.0, 3.0]


# --- Errors and messages -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lrr": 1}, TypeError, "adam: unknown option 'lrr', expected one of lr, betas, eps"),
        ({"maximize": True}, TypeError, "adam: unknown option 'maximize'"),
        ({"accumulate": 2}, TypeError, "adam: unknown option 'accumulate'"),
        ({"lr": -1}, ValueError, "lr: expected a finite number in"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas: expected"),
        ({"maxiter": 1.5}, TypeError, "maxiter: expected an integer, got 1.5"),
        ({"maxiter": -1}, ValueError, "maxiter: expected at least 0, got -1"),
        ({"patience": 0}, ValueError, "patience: expected at least 1, got 0"),
        ({"gtol": -1.0}, ValueError, r"gtol: expected a finite number in \[0, inf\), got -1.0"),
        ({"ftol": np.nan}, ValueError, r"ftol: expected a finite number in \[0, inf\), got nan"),
        ({"xtol": "small"}, TypeError, "xtol: expected a number, got 'small'"),
        ({"finite_diff_rel_step": 0.0}, ValueError, "finite_diff_rel_step: expected positive numbers"),
    ],
)
def test_invalid_options_raise(options, error, message):
    with pytest.raises(error, match=message):
        solve(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fun": lambda x: (x, x)}, ValueError, r"fun: expected a number, got an array of the shape \(2,\)"),
        ({"fun": lambda x: (1.0, 2.0)}, ValueError, r"jac: expected a gradient of the shape \(2,\), got"),
        ({"x0": [1j, 2]}, TypeError, "x0: expected real numbers, got complex128"),
        ({"bounds": [(0, 1)]}, ValueError, "bounds: expected 2, one per variable, got 1"),
        ({"bounds": [(0, 1), (1, 0)]}, ValueError, "bounds: expected no lower bound above the upper one"),
        ({"bounds": [0, 1]}, ValueError, "bounds: expected a Bounds, or pairs of numbers or None"),
    ],
)
def test_invalid_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        solve(**arguments)


def test_constraints_are_refused():
    with pytest.raises(ValueError, match="constraints: expected none, because adam supports bounds only"):
        minimize(rosen, START, method=methods.adam, constraints={"type": "eq", "fun": sum})


def test_second_derivatives_warn():
    with pytest.warns(RuntimeWarning, match=r"sgd does not use second derivatives"):
        minimize(rosen, START, hess=optimize.rosen_hess, method=methods.sgd, options={"maxiter": 1})


def test_jac_true_requires_minimize():
    with pytest.raises(ValueError, match="jac: expected a function or None, got True"):
        methods.adam(rosen_both, START, jac=True)


def test_disp(capsys):
    solve(fun=bowl, lr=0.1)
    assert capsys.readouterr().out == ""
    result = solve(fun=bowl, lr=0.1, disp=True)
    out = capsys.readouterr().out
    assert out.startswith("The gradient is within gtol.\n") and f"Iterations: {result.nit}\n" in out
    with pytest.warns(optimize.OptimizeWarning, match="maximum number of iterations") as caught:
        solve(fun=bowl, maxiter=1, disp=True)
    assert caught[0].filename == __file__


def test_import_error_without_scipy():
    code = "import sys; sys.modules['scipy.optimize'] = None; import fastopt.scipy"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.endswith("ImportError: fastopt.scipy needs SciPy: pip install 'fastopt[scipy]'\n")
