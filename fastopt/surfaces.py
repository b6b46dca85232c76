"""Test functions of two variables that are difficult to minimize, for visualizing optimizers.

`SURFACES` contains them by name. They accept coordinates as numbers or as arrays of any shape::

    path = surfaces.descend(surfaces.SURFACES["beale"], lambda p: fastopt.Adam(p, lr=0.1), steps=200)

`fastopt.plots.plot_paths` plots such paths, and ``fastopt compare --surface`` computes and plots them on the
command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.validation import check_float, check_int

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastopt._core.typing import Array
    from fastopt.optimizers.base import Optimizer

__all__ = ["RATES", "SURFACES", "Surface", "descend", "find_rate"]

RATES = tuple(float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2, 5))
_MAX_STEP_LENGTH = 0.1  # as a fraction of the width of the window
_MIN_HEIGHT = 1e-6      # as a fraction of the height at the start; bounds the logarithm of the height


@dataclass(frozen=True)
class Surface:
    """A function of two variables.

    Attributes
    ----------
    name : str
    value : callable
        ``value(x, y)``, elementwise.
    gradient : callable
        ``gradient(x, y)``, the pair of partial derivatives, elementwise.
    minima : tuple of pairs
        Points of the global minimum.
    least : float
        Value at the minima.
    start : pair
        Default starting point.
    steps : int
        Default number of steps, in which most optimizers come close to a minimum.
    window : tuple
        ``(left, right, bottom, top)``, the region to plot.
    """

    name: str
    value: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any], tuple[Any, Any]]
    minima: tuple[tuple[float, float], ...]
    least: float
    start: tuple[float, float]
    steps: int
    window: tuple[float, float, float, float]

    def holds(self, points: ArrayLike) -> bool:
        """Return whether all points, shape (..., 2), are in the window."""
        left, right, bottom, top = self.window
        points = np.asarray(points)
        return bool(((points >= (left, bottom)) & (points <= (right, top))).all())

    def distance(self, points: ArrayLike) -> Any:
        """Return the distances from the points, shape (..., 2), to the nearest minimum."""
        offsets = np.asarray(points)[..., None, :] - np.array(self.minima)
        return np.hypot(offsets[..., 0], offsets[..., 1]).min(axis=-1)


def descend(
    surface: Surface, make: Callable[[Array], Optimizer], steps: int | None = None,
    start: tuple[float, float] | None = None,
) -> Array:
    """Minimize a surface with an optimizer and return its path.

    Parameters
    ----------
    surface : Surface
    make : callable
        ``make(point)`` returns the optimizer; ``point`` is a float64 array of shape (2,).
    steps : int, optional
        Number of steps, at least 0. By default that of the surface. The path ends early if a coordinate or
        the value is no longer finite.
    start : pair of float, optional
        Starting point. By default that of the surface.

    Returns
    -------
    ndarray, shape (steps + 1, 2)
        Points, beginning with the starting point. All points and their values are finite.
    """
    steps = check_int("steps", surface.steps if steps is None else steps, 0)
    point = np.array([check_float("start", value) for value in (surface.start if start is None else start)])
    if point.shape != (2,):
        raise ValueError(f"start: expected two numbers, got {start!r}")
    opt, path = make(point), [point.copy()]
    with np.errstate(over="ignore", invalid="ignore"):      # a diverging path ends below
        for _ in range(steps):
            opt.step(np.array(surface.gradient(*point)))
            if not np.isfinite([*point, surface.value(*point)]).all():
                break
            path.append(point.copy())
    return np.array(path)


def find_rate(
    surface: Surface, make: Callable[[Array, float], Optimizer], steps: int | None = None,
    start: tuple[float, float] | None = None,
) -> float:
    """Find the learning rate among `RATES` that gives an optimizer its best path.

    The best path has the smallest mean of the logarithm of the height above the minimum. Paths that diverge,
    leave the window, or have a step longer than a tenth of its width are used only if there are no others.

    Parameters
    ----------
    surface : Surface
    make : callable
        ``make(point, lr)`` returns the optimizer.
    steps, start : optional
        As for `descend`.

    Returns
    -------
    float
    """
    def height(lr: float) -> tuple[bool, float]:
        path = descend(surface, lambda point: make(point, lr), steps, start)
        heights = surface.value(*path.T) - surface.least
        longest = np.hypot(*np.diff(path, axis=0).T).max(initial=0.0)
        left, right, _, _ = surface.window
        is_complete = len(path) > (surface.steps if steps is None else steps)
        is_suitable = is_complete and surface.holds(path) and longest <= _MAX_STEP_LENGTH * (right - left)
        return not is_suitable, np.log(np.maximum(heights, _MIN_HEIGHT * max(heights[0], _MIN_HEIGHT))).mean()

    return min(RATES, key=height)


def _rosenbrock(x: Any, y: Any) -> Any:
    return (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2


def _rosenbrock_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    dy = 200.0 * (y - x**2)
    return -2.0 * (1.0 - x) - 2.0 * x * dy, dy


def _beale(x: Any, y: Any) -> Any:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _beale_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    terms = [(a - x + x * y**k, k) for k, a in ((1, 1.5), (2, 2.25), (3, 2.625))]
    return (
        sum(2.0 * term * (y**k - 1.0) for term, k in terms),
        sum(2.0 * term * k * x * y ** (k - 1) for term, k in terms),
    )


def _saddle(x: Any, y: Any) -> Any:
    return x**2 - y**2 + 0.5 * y**4


def _saddle_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    return 2.0 * x, 2.0 * y**3 - 2.0 * y


def _himmelblau(x: Any, y: Any) -> Any:
    return (x**2 + y - 11.0) ** 2 + (x + y**2 - 7.0) ** 2


def _himmelblau_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    first, second = x**2 + y - 11.0, x + y**2 - 7.0
    return 4.0 * x * first + 2.0 * second, 2.0 * first + 4.0 * y * second


SURFACES = {
    surface.name: surface
    for surface in (
        # A curved valley, which is easy to find and difficult to follow. Rosenbrock, 1960.
        Surface(
            "rosenbrock", _rosenbrock, _rosenbrock_gradient, minima=((1.0, 1.0),), least=0.0,
            start=(-1.2, 1.0), steps=500, window=(-2.0, 2.0, -1.0, 3.0),
        ),
        # Flat regions between steep walls. Beale, 1958.
        Surface(
            "beale", _beale, _beale_gradient, minima=((3.0, 0.5),), least=0.0,
            start=(1.0, 1.6), steps=200, window=(-0.5, 4.5, -2.0, 2.0),
        ),
        # A saddle point between two minima; the path begins close to the ridge.
        Surface(
            "saddle", _saddle, _saddle_gradient, minima=((0.0, 1.0), (0.0, -1.0)), least=-0.5,
            start=(-1.3, 0.001), steps=100, window=(-1.6, 1.6, -1.5, 1.5),
        ),
        # Four equal minima around a local maximum. Himmelblau, 1972.
        Surface(
            "himmelblau", _himmelblau, _himmelblau_gradient,
            minima=(
                (3.0, 2.0), (-2.805118086952745, 3.131312518250573),
                (-3.779310253377747, -3.283185991286170), (3.584428340330492, -1.848126526964404),
            ),
            least=0.0, start=(0.0, -1.0), steps=100, window=(-5.5, 5.5, -5.5, 5.5),
        ),
    )
}
