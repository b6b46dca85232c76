"""``bias_correction=False`` and initial accumulators, against the formulas in plain Python."""

import math

import numpy as np
import pytest
from rules import OPTIMIZERS

import fastopt
from fastopt import functional

LR, B1, B2, B3, EPS = 0.05, 0.9, 0.95, 0.97, 1e-3
STEPS, SIZE = 50, 7


def adam(t, g, s):
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = B2 * s["v"] + (1 - B2) * g * g
    return s["m"] / (math.sqrt(s["v"]) + EPS)


def amsgrad(t, g, s):
    adam(t, g, s)
    s["max"] = max(s["max"], s["v"])
    return s["m"] / (math.sqrt(s["max"]) + EPS)


def adamax(t, g, s):
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = max(B2 * s["v"], abs(g) + EPS)
    return s["m"] / s["v"]


def nadam(t, g, s):
    adam(t, g, s)
    mu, mu_next = (B1 * (1 - 0.5 * 0.96 ** (k * 0.004)) for k in (t, t + 1))
    return ((1 - mu) * g + mu_next * s["m"]) / (math.sqrt(s["v"]) + EPS)


def adabelief(t, g, s):
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = B2 * s["v"] + (1 - B2) * (g - s["m"]) ** 2 + EPS
    return s["m"] / (math.sqrt(s["v"]) + EPS)


def yogi(t, g, s):
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] -= (1 - B2) * math.copysign(1.0, s["v"] - g * g) * g * g
    return s["m"] / (math.sqrt(s["v"]) + EPS)


def ademamix(t, g, s):
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["v"] = B2 * s["v"] + (1 - B2) * g * g
    s["slow"] = B3 * s["slow"] + (1 - B3) * g
    return (s["m"] + 5.0 * s["slow"]) / (math.sqrt(s["v"]) + EPS)


def adan(t, g, s):
    d = g - s["last"] if t > 1 else 0.0
    s["last"] = g
    s["m"] = B1 * s["m"] + (1 - B1) * g
    s["n"] = B2 * s["n"] + (1 - B2) * d
    s["v"] = B3 * s["v"] + (1 - B3) * (g + B2 * d) ** 2
    return (s["m"] + B2 * s["n"]) / (math.sqrt(s["v"]) + EPS)


def rmsprop(t, g, s):
    s["v"] = B2 * s["v"] + (1 - B2) * g * g
    return g / (math.sqrt(s["v"]) + EPS)


def rmsprop_centered(t, g, s):
    s["v"] = B2 * s["v"] + (1 - B2) * g * g
    s["m"] = B2 * s["m"] + (1 - B2) * g
    return g / (math.sqrt(s["v"] - s["m"] ** 2) + EPS)


PAIR, TRIPLE, OFF = {"betas": (B1, B2)}, {"betas": (B1, B2, B3)}, {"bias_correction": False}
RMS = {"alpha": B2, "initial_accumulator_value": 2.0}
CASES = {
    "adam": (fastopt.Adam, adam, {**PAIR, **OFF}),
    "adam, epsilon-hat": (fastopt.Adam, adam, {**PAIR, **OFF, "convention": "sklearn"}),
    "adamw": (fastopt.AdamW, adam, {**PAIR, **OFF, "weight_decay": 0.0}),
    "amsgrad": (fastopt.Adam, amsgrad, {**PAIR, **OFF, "amsgrad": True}),
    "amsgrad of optax": (fastopt.Adam, amsgrad, {**PAIR, **OFF, "amsgrad": True, "convention": "optax"}),
    "adamax": (fastopt.Adamax, adamax, {**PAIR, **OFF}),
    "nadam": (fastopt.NAdam, nadam, {**PAIR, **OFF}),
    "adabelief": (fastopt.AdaBelief, adabelief, {**PAIR, **OFF}),
    "yogi": (fastopt.Yogi, yogi, {**PAIR, **OFF, "initial_accumulator_value": 0.0}),
    "ademamix": (fastopt.AdEMAMix, ademamix, {**TRIPLE, **OFF}),
    "adan": (fastopt.Adan, adan, {**TRIPLE, **OFF}),
    "lamb": (fastopt.LAMB, adam, {**PAIR, **OFF, "adapt": False}),
    "rmsprop": (fastopt.RMSprop, rmsprop, RMS),
    "rmsprop, centered": (fastopt.RMSprop, rmsprop_centered, {**RMS, "centered": True}),
    "rmsprop, started by the convention": (fastopt.RMSprop, rmsprop, {**RMS, "convention": "article"}),
}


@pytest.mark.parametrize(("kind", "formula", "options"), CASES.values(), ids=CASES)
def test_steps_are_those_of_the_formula(kind, formula, options):
    rng = np.random.default_rng(0)
    p = rng.standard_normal(SIZE)
    q = p.tolist()
    start = options.get("initial_accumulator_value", 0.0)
    states = [dict.fromkeys(("m", "n", "slow", "last", "max"), 0.0) | {"v": start} for _ in q]
    opt = kind(p, lr=LR, eps=EPS, **options)
    for t in range(1, STEPS + 1):
        g = rng.standard_normal(SIZE)
        opt.step(g)
        q = [x - LR * formula(t, y, s) for x, y, s in zip(q, g.tolist(), states, strict=True)]
        np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)


CORRECTED = [kind for kind in OPTIMIZERS if "bias_correction" in fastopt.optimizers.arguments_of(kind)]


def first_step(kind, steps, **options):
    p = np.array([1.0, -2.0])
    opt = kind(p, **options)
    opt.steps = steps
    if kind is fastopt.NAdam and steps:
        opt.groups[0].scalar_state["mu_product"] = 0.0
    opt.step(np.array([0.5, 3.0]))
    return p.tolist()


@pytest.mark.parametrize("kind", CORRECTED, ids=lambda kind: kind.__name__)
def test_the_correction_vanishes_with_time(kind):
    """After 10**7 steps all powers of the betas are 0, and both give the same bits."""
    late = first_step(kind, 10**7, bias_correction=True)
    assert late == first_step(kind, 10**7, bias_correction=False)
    assert first_step(kind, 0, bias_correction=True) != first_step(kind, 0, bias_correction=False)
    assert first_step(kind, 0) == first_step(kind, 0, bias_correction=True)


def test_what_has_no_bias_correction_refuses_the_argument():
    for kind in (fastopt.SGD, fastopt.RAdam, fastopt.ADOPT):
        with pytest.raises(TypeError, match="unknown argument 'bias_correction'"):
            kind(np.zeros(1), bias_correction=False)
    with pytest.raises(TypeError, match=r"^bias_correction: expected True or False, got int"):
        fastopt.Adam(np.zeros(1), bias_correction=0)
    with pytest.raises(TypeError, match=r"^bias_correction: expected True or False"):
        functional.adam_(*np.zeros((4, 1)), lr=0.1, step=1, bias_correction="no")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_initial_accumulators_are_checked(value):
    with pytest.raises(ValueError, match=r"^initial_accumulator_value: expected a finite number"):
        fastopt.RMSprop(np.zeros(1), initial_accumulator_value=value)


def test_the_uncorrected_state_is_saved_and_loaded():
    def make(p):
        return fastopt.Adam(p, lr=LR, bias_correction=False)

    p, q = np.ones(3), np.ones(3)
    opt = make(p)
    opt.step(np.ones(3))
    saved = opt.state_dict()
    assert saved["groups"][0]["bias_correction"] is False
    q[...] = p
    fresh = fastopt.Adam(q)
    fresh.load_state_dict(saved)
    for each in (opt, fresh):
        each.step(np.ones(3))
    assert (p == q).all() and fresh.groups[0]["bias_correction"] is False
