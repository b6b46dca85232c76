"""Functions of two variables that are known to be hard to descend, to look at optimizers with.

They take coordinates as numbers or as arrays of any shape, so that the same function makes a step and a map.
`SURFACES` has them by name::

    path = surfaces.descend(surfaces.SURFACES["beale"], lambda p: fastopt.Adam(p, lr=0.1), steps=200)

`fastopt.plots.plot_paths` draws such paths, and ``fastopt compare --surface`` does so on the command line.
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
_LONGEST_STEP = 0.1     # over the width of the window: what is longer is a jump, not a path
_LOWEST = 1e-6          # of the height at the start: what is lower counts as this


@dataclass(frozen=True)
class Surface:
    """A function of the plane.

    Attributes
    ----------
    name : str
    value : callable
        ``value(x, y)``, elementwise.
    gradient : callable
        ``gradient(x, y)``, the pair of its derivatives, elementwise.
    minima : tuple of pairs
        Where it is least.
    least : float
        Its value there.
    start : pair
        Where paths usually begin.
    steps : int
        In how many most rules arrive, or nearly.
    window : tuple
        ``(left, right, bottom, top)``, the part of the plane to show.
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
        """Whether points, shape (..., 2), are in the window."""
        left, right, bottom, top = self.window
        points = np.asarray(points)
        return bool(((points >= (left, bottom)) & (points <= (right, top))).all())

    def distance(self, points: ArrayLike) -> Any:
        """Distances to the nearest minimum.

        Parameters
        ----------
        points : array_like, shape (..., 2)

        Returns
        -------
        ndarray, shape (...)
        """
        away = np.asarray(points)[..., None, :] - np.array(self.minima)
        return np.hypot(away[..., 0], away[..., 1]).min(axis=-1)


def descend(
    surface: Surface, make: Callable[[Array], Optimizer], steps: int | None = None,
    start: tuple[float, float] | None = None,
) -> Array:
    """Follow an optimizer down a surface.

    Parameters
    ----------
    surface : Surface
    make : callable
        Called with the point, a float64 array of shape (2,), returns the optimizer that moves it.
    steps : int, optional
        Steps to take, from 0 on; fewer are taken if the path leaves the numbers. By default, as `start`,
        those of the surface.
    start : pair of float, optional

    Returns
    -------
    ndarray, shape (steps + 1, 2)
        The points, the start first; they and their values are finite.

    Raises
    ------
    TypeError, ValueError
        If `steps` or `start` are not as described.
    """
    steps = check_int("steps", surface.steps if steps is None else steps, 0)
    point = np.array([check_float("start", value) for value in (surface.start if start is None else start)])
    if point.shape != (2,):
        raise ValueError(f"start: expected two numbers, got {start!r}")
    opt, path = make(point), [point.copy()]
    with np.errstate(over="ignore", invalid="ignore"):      # where it diverges, it ends
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
    """Find the learning rate with which a rule descends best, for a picture of its path.

    Of `RATES`, that with the least height above the minimum, by the mean of its logarithm along the path.
    Rates whose path leaves the window, or jumps by more than a tenth of its width, are passed over where
    there are others.

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
        return _height(surface, descend(surface, lambda point: make(point, lr), steps, start), steps)

    return min(RATES, key=height)


def _height(surface: Surface, path: Array, steps: int | None) -> tuple[bool, float]:
    """What `find_rate` compares: whether a path is none to show, and how high it is."""
    heights = surface.value(*path.T) - surface.least
    longest = np.hypot(*np.diff(path, axis=0).T).max(initial=0.0)
    left, right, _, _ = surface.window
    is_whole = len(path) > (surface.steps if steps is None else steps)
    is_shown = is_whole and surface.holds(path) and longest <= _LONGEST_STEP * (right - left)
    return not is_shown, np.log(np.maximum(heights, _LOWEST * max(heights[0], _LOWEST))).mean()


def _rosenbrock(x: Any, y: Any) -> Any:
    return (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2


def _rosenbrock_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    across = 200.0 * (y - x**2)
    return -2.0 * (1.0 - x) - 2.0 * x * across, across


def _beale(x: Any, y: Any) -> Any:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _beale_gradient(x: Any, y: Any) -> tuple[Any, Any]:
    parts = [(a - x + x * y**k, k) for k, a in ((1, 1.5), (2, 2.25), (3, 2.625))]
    return (
        sum(2.0 * part * (y**k - 1.0) for part, k in parts),
        sum(2.0 * part * k * x * y ** (k - 1) for part, k in parts),
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
        # A curved valley: falling into it is easy, following it is not. Rosenbrock, 1960.
        Surface(
            "rosenbrock", _rosenbrock, _rosenbrock_gradient, minima=((1.0, 1.0),), least=0.0,
            start=(-1.2, 1.0), steps=500, window=(-2.0, 2.0, -1.0, 3.0),
        ),
        # Plains between steep walls. Beale, 1958.
        Surface(
            "beale", _beale, _beale_gradient, minima=((3.0, 0.5),), least=0.0,
            start=(1.0, 1.6), steps=200, window=(-0.5, 4.5, -2.0, 2.0),
        ),
        # A pass, beside whose ridge the path begins, between two valleys.
        Surface(
            "saddle", _saddle, _saddle_gradient, minima=((0.0, 1.0), (0.0, -1.0)), least=-0.5,
            start=(-1.3, 0.001), steps=100, window=(-1.6, 1.6, -1.5, 1.5),
        ),
        # Four minima of the same depth around a hill. Himmelblau, 1972.
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
