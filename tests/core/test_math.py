"""Accuracy of powers and logarithms of scalars, compared with exact arithmetic."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt._core import scalar_math

INF = math.inf
power, log = scalar_math.power, scalar_math.log


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_integer_powers_are_correctly_rounded(x, n):
    assert power(x, n) == float(Fraction(x) ** n)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.95, 0.99, 0.999, 0.9999])
def test_powers_of_beta_are_correctly_rounded(beta):
    exact = Fraction(1)
    for t in range(1, 500):
        exact *= Fraction(beta)
        assert power(beta, t) == float(exact)


@given(st.floats(1e-6, 1e6), st.floats(-5, 5))
def test_fractional_powers(x, y):
    assert power(x, y) == pytest.approx(x**y, rel=1e-13)


@given(st.floats(1e-300, 1e300))
def test_logarithm(x):
    assert log(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-16)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.0, 0.0, 1.0), (0.0, 2.0, 0.0), (0.0, 0.5, 0.0), (0.0, -1.0, INF), (0.0, -0.5, INF),
        (1.0, 1e18, 1.0), (0.5, 1074.0, 2.0**-1074), (0.9, 1e8, 0.0), (2.0, 1024.0, INF), (1e200, 2.0, INF),
        (10.0, -400.0, 0.0), (2.0, -3.0, 0.125), (INF, 0.5, INF), (INF, 2.0, INF), (INF, -2.0, 0.0),
        (1e-310, 0.5, 0.0), (0.5, INF, 0.0), (4.0, 0.5, 2.0),
    ],
)  # fmt: skip
def test_special_values(x, y, expected):
    assert power(x, y) == expected


@pytest.mark.parametrize(("x", "y"), [(math.nan, 2.0), (math.nan, 0.5), (0.5, math.nan)])
def test_nan_propagates(x, y):
    assert math.isnan(power(x, y))
