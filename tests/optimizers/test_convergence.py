"""Every optimizer gets to the bottom: of a badly scaled quadratic, and of Rosenbrock's valley."""

import numpy as np
import pytest

import fastopt
from fastopt import schedules

SCALES = np.logspace(-2, 1, 12).reshape(3, 4)  # condition number 1000
START = np.array([-1.2, 1.0])


def quadratic(p):
    return 0.5 * (SCALES * p**2).sum(), SCALES * p


def rosenbrock(p):
    x, y = p
    value = (1 - x) ** 2 + 100 * (y - x**2) ** 2
    return value, np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])


def falling(start):
    return schedules.Cosine(start, steps=3000)


# Options for the quadratic and for Rosenbrock's function. Steps of a fixed length need a rate that falls.
OPTIONS = {
    fastopt.SGD: ({"lr": 0.09, "momentum": 0.9}, {"lr": 3e-4, "momentum": 0.9}),
    fastopt.ASGD: ({"lr": 0.15, "lambd": 0.0}, {"lr": 1.5e-3, "lambd": 0.0}),
    fastopt.Adagrad: ({"lr": 1.0}, {"lr": 0.5}),
    fastopt.Adadelta: ({"lr": falling(1.0), "eps": 1e-4}, {"lr": falling(1.0), "eps": 1e-4}),
    fastopt.FTRL: ({"lr": 1.0}, {"lr": 0.3}),
    fastopt.RMSprop: ({"lr": falling(0.01)}, {"lr": falling(0.01)}),
    fastopt.Adam: ({"lr": 0.05}, {"lr": 0.05}),
    fastopt.AdamW: ({"lr": 0.05, "weight_decay": 0.0}, {"lr": 0.05, "weight_decay": 0.0}),
    fastopt.Adamax: ({"lr": 0.05}, {"lr": 0.05}),
    fastopt.NAdam: ({"lr": 0.05}, {"lr": 0.05}),
    fastopt.RAdam: ({"lr": 0.05}, {"lr": 0.005, "betas": (0.9, 0.99)}),
    fastopt.Rprop: ({}, {}),
    fastopt.SignSGD: ({"lr": falling(0.01)}, {"lr": falling(0.02), "momentum": 0.9}),
    fastopt.Lion: ({"lr": falling(0.01)}, {"lr": falling(0.01)}),
    fastopt.AdaBelief: ({"lr": 0.05}, {"lr": 0.01}),
    fastopt.Yogi: ({"lr": 0.05}, {"lr": 0.05}),
    fastopt.ADOPT: ({"lr": 0.05, "betas": (0.9, 0.999)}, {"lr": falling(0.05), "betas": (0.9, 0.99)}),
    fastopt.AdEMAMix: ({"lr": falling(0.01), "betas": (0.9, 0.999, 0.99)},
                       {"lr": falling(0.01), "betas": (0.9, 0.999, 0.99)}),
    fastopt.Adan: ({"lr": 0.05}, {"lr": 0.05}),
    fastopt.SGDScheduleFree: ({"lr": 0.15}, {"lr": 1.5e-3}),
    fastopt.AdamWScheduleFree: ({"lr": 0.05}, {"lr": 0.05}),
    fastopt.Prodigy: ({}, {"lr": falling(1.0)}),
    fastopt.LARS: ({"lr": falling(1.0), "trust_coefficient": 0.02},
                   {"lr": falling(1.0), "trust_coefficient": 0.01}),
    fastopt.LAMB: ({"lr": falling(0.02)}, {"lr": falling(0.02)}),
    fastopt.Adafactor: ({"lr": falling(0.1)}, {"lr": falling(0.1)}),
    fastopt.Muon: ({"lr": falling(0.02), "weight_decay": 0.0}, {"adamw_lr": 0.05, "weight_decay": 0.0}),
}


def test_every_optimizer_is_here():
    names = set(fastopt.optimizers.__all__) - {"Optimizer"}
    assert {kind.__name__ for kind in OPTIONS} == names


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("surface", "start", "which", "bound"),
    [(quadratic, np.ones((3, 4)), 0, 1e-3), (rosenbrock, START, 1, 1e-2)], ids=["quadratic", "rosenbrock"],
)
def test_gets_to_the_bottom(kind, surface, start, which, bound):
    p = start.copy()
    opt = kind(p, **OPTIONS[kind][which])
    before, _ = surface(p)
    for _ in range(3000):
        opt.step(surface(p)[1])
    if hasattr(opt, "averaged"):
        with opt.averaged():
            after, _ = surface(p)
    else:
        after, _ = surface(p)
    assert after < bound * before


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_maximize_ascends(kind):
    """As many steps up the inverted surface as down the surface."""
    p, q = np.ones((3, 4)), np.ones((3, 4))
    down, up = kind(p, **OPTIONS[kind][0]), kind(q, **OPTIONS[kind][0], maximize=True)
    for _ in range(20):
        down.step(quadratic(p)[1]), up.step(-quadratic(q)[1])
    np.testing.assert_array_equal(p, q)
