"""Surfaces: gradients, minima, paths and learning rates."""

import numpy as np
import pytest

import fastopt
from fastopt.optimizers import BY_NAME
from fastopt.surfaces import RATES, SURFACES, descend, find_rate

every_surface = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)


def grid(surface, count=9):
    left, right, bottom, top = surface.window
    return np.meshgrid(np.linspace(left, right, count), np.linspace(bottom, top, count))


@every_surface
def test_gradients(surface):
    """Compare with complex-step derivatives, which have no cancellation."""
    x, y = grid(surface)
    step = 1e-20
    along_x, along_y = surface.gradient(x, y)
    np.testing.assert_allclose(along_x, surface.value(x + 1j * step, y).imag / step, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(along_y, surface.value(x, y + 1j * step).imag / step, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "point", "value"),
    [
        ("rosenbrock", (-1.2, 1.0), 24.2),
        ("beale", (0.0, 0.0), 1.5**2 + 2.25**2 + 2.625**2),
        ("beale", (1.0, 1.0), 1.5**2 + 2.25**2 + 2.625**2),
        ("saddle", (0.0, 0.0), 0.0),
        ("himmelblau", (0.0, 0.0), 170.0),
    ],
)
def test_known_values(name, point, value):
    assert SURFACES[name].value(*point) == pytest.approx(value, rel=1e-14)


@every_surface
def test_minima(surface):
    for x, y in surface.minima:
        assert surface.value(x, y) == pytest.approx(surface.least, abs=1e-25)
        assert np.abs(surface.gradient(x, y)).max() < 1e-12
    assert (surface.value(*grid(surface, 101)) >= surface.least - 1e-12).all()
    assert surface.holds(surface.minima) and surface.holds(surface.start)
    assert not surface.holds([surface.start, (99.0, 0.0)])


def test_distance_is_to_the_nearest_minimum():
    surface = SURFACES["saddle"]
    np.testing.assert_allclose(surface.distance([(0.3, 1.4), (0.0, -3.0), (1.0, -1.0)]), [0.5, 2.0, 1.0])


@every_surface
def test_path_consists_of_optimizer_steps(surface):
    path = descend(surface, lambda p: fastopt.Adam(p, lr=0.01), 20)
    point = np.array(surface.start)
    opt = fastopt.Adam(point, lr=0.01)
    for there in path:
        assert np.array_equal(there, point)
        opt.step(np.array(surface.gradient(*point)))
    assert path.shape == (21, 2) and path.dtype == float


def test_steps_and_start():
    surface = SURFACES["saddle"]

    def make(p):
        return fastopt.SGD(p, lr=0.1)

    assert len(descend(surface, make)) == surface.steps + 1
    assert descend(surface, make, 0, (0.5, 0.25)).tolist() == [[0.5, 0.25]]


def test_diverging_path_ends_early():
    path = descend(SURFACES["rosenbrock"], lambda p: fastopt.SGD(p, lr=1.0), 50)
    assert 1 < len(path) < 20
    with np.errstate(over="raise"):
        assert np.isfinite(SURFACES["rosenbrock"].value(*path.T)).all()


@pytest.mark.parametrize(
    ("steps", "start", "error", "message"),
    [
        (1.5, None, TypeError, "steps: expected an integer, got 1.5"),
        (-1, None, ValueError, "steps: expected at least 0, got -1"),
        (1, (1.0,), ValueError, r"start: expected two numbers, got \(1.0,\)"),
        (1, (1.0, np.inf), ValueError, "start: expected a finite number, got inf"),
    ],
)
def test_wrong_paths(steps, start, error, message):
    with pytest.raises(error, match=message):
        descend(SURFACES["beale"], fastopt.SGD, steps, start)


def test_rates():
    assert len(RATES) == 21 and RATES[:4] == (1e-5, 2e-5, 5e-5, 1e-4) and RATES[-1] == 50.0


@every_surface
@pytest.mark.parametrize("rule", [fastopt.SGD, fastopt.RMSprop, fastopt.Adam])
def test_find_rate(surface, rule):
    rate = find_rate(surface, rule)
    assert rate in RATES
    path = descend(surface, lambda p: rule(p, rate))
    left, right, _, _ = surface.window
    assert surface.holds(path) and np.hypot(*np.diff(path, axis=0).T).max() <= 0.1 * (right - left)
    height = surface.value(*path.T) - surface.least
    assert height[-1] < 0.1 * height[0]
    slower = descend(surface, lambda p: rule(p, RATES[RATES.index(rate) - 1]))
    assert np.log(height + 1e-9).mean() < np.log(surface.value(*slower.T) - surface.least + 1e-9).mean()


def test_find_rate_with_jumps_only():
    """If all paths have long steps, the lowest path is selected."""
    assert find_rate(SURFACES["beale"], lambda p, lr: fastopt.SGD(p, lr=1e3 * lr), 5) == RATES[0]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_optimizer_descends(name):
    surface = SURFACES["beale"]
    rate = find_rate(surface, BY_NAME[name], 60)
    path = descend(surface, lambda p: BY_NAME[name](p, lr=rate), 60)
    assert len(path) == 61 and surface.value(*path[-1]) < surface.value(*path[0])
