"""State dicts and files: loading by key, what does not fit, format 1, damage, interruptions, copies."""

import copy
import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rules import MATRIX_RULES, RULES

import fastopt
from fastopt import schedules

ALL_RULES = RULES + MATRIX_RULES
PACKAGE = str(Path(fastopt.__file__).parent)
OPTIONS = {"ema": 0.9, "lookahead": (2, 0.5), "accumulate": 2, "skip_nonfinite": True, "centralize": True}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_equal(a, b, path="state_dict"):
    """Assert that two state dicts are the same, bit for bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, np.ndarray):
        assert same_bits(a, b), path
    else:
        assert a == b or (a != a and b != b), path


def options_of(rule, **options):
    """The options that an optimizer supports."""
    refused = getattr(rule.optimizer.RULE, "REFUSED_OPTIONS", {})
    return {name: value for name, value in options.items() if name not in refused}


def gradients(params, rng):
    return {name: np.array(rng.standard_normal(p.shape), p.dtype) for name, p in params.items()}


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "W": rng.standard_normal((3, 4)), "b": rng.standard_normal(4).astype(np.float32),
        "c": np.asfortranarray(rng.standard_normal((3, 4))), "d": rng.standard_normal(4).astype(np.float32),
    }


# --- Keys --------------------------------------------------------------------------------------------


def array():
    return np.zeros(2)


@pytest.mark.parametrize(("params", "keys"), [
    (array(), [""]),
    ([array(), array()], ["0", "1"]),
    ({"b": array(), "a": array()}, ["b", "a"]),
    ({"encoder": [{"W": array()}, {"W": array()}], 3: (array(),)}, ["encoder.0.W", "encoder.1.W", "3.0"]),
    ({"encoder.W": array()}, ["encoder.W"]),
    ({"a.b": array(), "a": {"b": array(), "c": array()}}, ["['a.b']", "['a']['b']", "a.c"]),
    ({1: array(), "1": array()}, ["[1]", "['1']"]),
    ([{"params": array()}], [""]),
    ([{"params": {"W": array(), "b": array()}}, {"params": {"V": array()}}], ["W", "b", "V"]),
    ([{"params": {"W": array()}}, {"params": {"W": array(), "V": array()}}], ["0:W", "1:W", "V"]),
    ([{"params": [array()]}, {"params": [array(), array()]}], ["0:0", "1:0", "1"]),
    ({"0:W": array()}, ["0:0:W"]),
])
def test_keys_are_paths(params, keys):
    opt = fastopt.SGD(params)
    assert list(opt.state_dict()["state"]) == keys
    opt.load_state_dict(opt.state_dict())


def arrangements(p):
    """Nestings of the same parameters: in other orders, in groups, in other groups."""
    W, b, c, d = p["W"], p["b"], p["c"], p["d"]
    return [
        {"W": W, "b": b, "c": c, "d": d},
        {"d": d, "c": c, "b": b, "W": W},
        [{"params": {"c": c, "W": W, "b": b, "d": d}}],
        [{"params": {"W": W, "b": b}}, {"params": {"c": c, "d": d}}],
        [{"params": {"c": c, "d": d}}, {"params": {"b": b, "W": W}}],
        [{"params": {"c": c}}, {"params": {"d": d, "W": W}}, {"params": {"b": b}}],
        fastopt.param_groups({"c": c, "b": b, "d": d, "W": W}, {("b", "d"): {"maximize": True}}),
    ]


def to_arrangement(arrangement, grads):
    if not isinstance(arrangement, list):
        return {name: grads[name] for name in getattr(arrangement, "params", arrangement)}
    return [{name: grads[name] for name in group["params"]} for group in arrangement]


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_states_are_found_by_key(rule):
    """Neither the order of a dict nor the group of a parameter matters."""
    for i in range(len(arrangements(parameters()))):
        rng = np.random.default_rng(1)
        p = parameters()
        arrangement = arrangements(p)[0]
        opt = rule.make(arrangement)
        for _ in range(2):
            opt.step(gradients(p, rng))
        opt.step(gradients(p, rng) | {"c": None})
        q = {name: array.copy("K") for name, array in p.items()}
        other = rule.make(arrangements(q)[i])
        assert not any(other.load_state_dict(opt.state_dict()))
        for _ in range(2):
            g = gradients(p, rng)
            opt.step(g)
            other.step(to_arrangement(arrangements(q)[i], g))
        if not rule.couples_arrays:     # where sums are added in another order
            assert all(same_bits(p[name], q[name]) for name in p)
        for name in p:
            np.testing.assert_allclose(p[name], q[name], rtol=1e-5)


def test_the_order_of_a_dict_does_not_exchange_moments():
    a, b = np.zeros(2), np.zeros(2)
    opt = fastopt.Adam({"a": a, "b": b})
    opt.step({"a": np.ones(2), "b": np.full(2, 7.0)})
    other = fastopt.Adam({"b": b, "a": a})
    other.load_state_dict(opt.state_dict())
    assert same_bits(other.state[0]["exp_avg"], opt.state[1]["exp_avg"])
    assert same_bits(other.state[1]["exp_avg"], opt.state[0]["exp_avg"])


def test_hyperparameters_follow_the_parameters_of_their_group():
    def make(names):
        return fastopt.SGD([{"params": {name: np.zeros(2)}, "lr": lr} for name, lr in names])

    saved = make([("a", 0.1), ("b", 0.2)]).state_dict()
    other = make([("b", 0.5), ("a", 0.6)])
    other.load_state_dict(saved)
    assert [group["lr"] for group in other.groups] == [0.2, 0.1]
    merged = fastopt.SGD([{"params": {"a": np.zeros(2), "b": np.zeros(2)}, "lr": 0.7}])
    with pytest.raises(ValueError, match=r"unexpected: groups\[1\]"):
        merged.load_state_dict(saved)
    assert merged.groups[0]["lr"] == 0.7


def test_lists_are_not_exchanged():
    """The index in a list is its key, so a list that is divided among groups does not fit."""
    saved = fastopt.Adam([np.zeros(2), np.zeros(2)]).state_dict()
    other = fastopt.Adam([{"params": [np.zeros(2)]}, {"params": [np.zeros(2)]}])
    with pytest.raises(ValueError, match=r"missing: .*state\['1:0'\].*; unexpected: state\['1'\]"):
        other.load_state_dict(saved)


# --- What does not fit -------------------------------------------------------------------------------


def trained(params, steps=3, cls=fastopt.Adam, **options):
    opt = cls(params, **options)
    for k in range(steps):
        opt.step({name: np.full_like(p, k + 1) for name, p in params.items()})
    return opt


AB = {"a": np.ones(3), "b": np.ones((2, 2), np.float32)}


def ab(**more):
    return {name: array.copy() for name, array in {**AB, **more}.items()}


@pytest.mark.parametrize(("params", "options", "missing", "unexpected", "mismatched"), [
    (ab(c=np.ones(2)), {}, ["state['c']"], [], []),
    ({"a": np.ones(3)}, {}, [], ["state['b']"], []),
    (ab(a=np.ones(4)), {}, [], [], ["exp_avg']: expected float64 of shape (4,), got float64 of shape (3,)"]),
    (ab(a=np.ones(3, np.float32)), {}, [], [], ["exp_avg']: expected float32 of shape (3,), got float64"]),
    (ab(), {"ema": 0.9}, ["ema"], [], []),
    (ab(), {"lookahead": (2, 0.5)}, ["lookahead"], [], []),
    (ab(), {"accumulate": 4}, [], [], []),
    ([{"params": {"a": np.ones(3)}}, {"params": {"n": np.ones(2)}}], {},
     ["groups[1]", "state['n']"], ["state['b']"], []),
])
def test_strict_loading_raises_and_other_loading_takes_what_fits(
    params, options, missing, unexpected, mismatched
):
    saved = trained(ab()).state_dict()
    opt = fastopt.Adam(params, lr=0.5, **options)
    before = opt.state_dict()
    if missing or unexpected or mismatched:
        with pytest.raises(ValueError, match="state_dict: expected the state of this Adam, got") as e:
            opt.load_state_dict(saved)
        assert all(name in str(e.value) for name in [*missing, *unexpected, *mismatched])
        assert_equal(opt.state_dict(), before)
    found = opt.load_state_dict(saved, strict=False)
    assert found.missing_keys == missing and found.unexpected_keys == unexpected
    assert len(found.mismatched_keys) == 2 * len(mismatched)    # two moments
    assert all(any(text in name for name in found.mismatched_keys) for text in mismatched)
    after = opt.state_dict()
    kept = {"a"} if mismatched else {"c", "n"}
    for key, entry in after["state"].items():
        assert_equal(entry, before["state"][key] if key in kept else saved["state"][key])
    assert opt.steps == 3 and opt.groups[0]["lr"] == 1e-3
    grads = [{n: np.ones_like(p) for n, p in g["params"].items()} for g in opt.groups]
    opt.step(grads if isinstance(params, list) else grads[0])


def test_options_that_are_switched_off():
    opt = trained(ab(), ema=0.9, lookahead=(2, 0.5))
    found = fastopt.Adam(ab()).load_state_dict(opt.state_dict(), strict=False)
    assert found == ([], ["ema", "lookahead"], [])


def test_an_average_that_is_switched_on_begins_at_the_parameters():
    saved = trained(ab()).state_dict()
    params = ab()
    opt = fastopt.Adam(params, lr=0.0, ema=0.5, lookahead=(5, 0.5))
    opt.load_state_dict({**saved, "groups": opt.state_dict()["groups"]}, strict=False)
    params["a"][...] = 8.0
    opt.step({name: np.ones_like(p) for name, p in params.items()})
    assert (opt.ema["a"] == 8.0).all()
    with_average = trained(ab(), ema=0.5).state_dict()
    other = fastopt.Adam(q := ab(), ema=0.5, lookahead=(5, 0.5))
    assert other.load_state_dict(with_average, strict=False).missing_keys == ["lookahead"]
    assert same_bits(other.ema["a"], with_average["ema"]["a"])
    assert other.state_dict()["lookahead"]["a"].tolist() == q["a"].tolist()


@pytest.mark.parametrize(("change", "unexpected"), [
    ({"foo": 1}, "foo"),
    ({"groups": [{"foo": 1}]}, r"groups\[0\]\['foo'\]"),
    ({"groups": [{"schedules": {"lr": {"best": 1.0}}}]}, r"groups\[0\]\['schedules'\]\['lr'\]"),
    ({"state": {"foo": {"step": 1}}}, r"state\['foo'\]"),
    ({"state": {"a": {"foo": np.zeros(3)}}}, r"state\['a'\]\['foo'\]"),
    ({"state": {"a": {"scalars": {"foo": 1.0}}}}, r"state\['a'\]\['scalars'\]\['foo'\]"),
    ({"ema": {"foo": np.zeros(3)}}, r"ema\['foo'\]"),
])
def test_unknown_parts_are_an_error(change, unexpected):
    opt = trained(ab(), ema=0.9)
    saved = merged(opt.state_dict(), change)
    with pytest.raises(ValueError, match=f"unexpected: {unexpected}; strict=False"):
        opt.load_state_dict(saved)
    assert len(opt.load_state_dict(saved, strict=False).unexpected_keys) == 1


def merged(value, change):
    """A state dict with some values replaced."""
    if isinstance(value, dict) and isinstance(change, dict):
        return value | {key: merged(value.get(key), inner) for key, inner in change.items()}
    if isinstance(value, list) and isinstance(change, list) and len(value) == len(change):
        return [merged(v, c) for v, c in zip(value, change, strict=True)]
    return change


NAN = float("nan")


@pytest.mark.parametrize(("change", "message"), [
    *[({"steps": bad}, r"\['steps'\]: expected a non-negative integer") for bad in (-1, 2.0, True, "3", NAN)],
    ({"skipped_steps": None}, r"\['skipped_steps'\]: expected a non-negative integer"),
    ({"steps": 2**63}, r"\['steps'\]: expected at most 9223372036854775807, got 9223372036854775808"),
    ({"skipped_steps": 10**30}, r"\['skipped_steps'\]: expected at most 9223372036854775807"),
    ({"version": 3}, r"\['version'\]: expected 1 or 2, got 3"),
    ({"version": True}, r"\['version'\]: expected 1 or 2, got True"),
    ({"optimizer": "SGD"}, "expected one of NAdam, got one of SGD"),
    *[({"state": {"a": {"step": bad}}}, r"\['a'\]\['step'\]: expected a non-neg") for bad in (-1, NAN, 1.5)],
    ({"state": {"a": {"step": 4}}}, r"\['a'\]\['step'\]: expected at most 3, the steps of the optimizer"),
    ({"state": {"a": {"scalars": {"mu_product": "1"}}}}, r"\['mu_product'\]: expected a number, got '1'"),
    ({"state": {"a": {"scalars": {"mu_product": np.ones(2)}}}}, r"\['mu_product'\]: expected a number"),
    ({"state": {"a": {"scalars": 1}}}, r"\['a'\]\['scalars'\]: expected a dict"),
    ({"state": {"a": {"exp_avg": np.zeros(3, object)}}}, r"exp_avg'\]: expected float64 .* got object"),
    ({"state": {"a": {"exp_avg": np.zeros(3, ">f8")}}}, r"exp_avg'\]: expected float64 .* got >f8"),
    ({"state": {"a": {"exp_avg": [0.0] * 3}}}, r"exp_avg'\]: expected float64 of shape \(3,\), got list"),
    ({"state": {"a": {"exp_avg": None}}}, r"exp_avg'\]: expected float64 of shape \(3,\), got None"),
    ({"state": {"a": None}}, r"\['state'\]\['a'\]: expected a dict with the keys step, got None"),
    ({"state": [{}, {}]}, r"\['state'\]: expected a dict, got list"),
    ({"state": {1.5: {}}}, r"\['state'\]: expected keys of parameters, got 1.5"),
    ({"groups": [{"lr": -1.0}]}, "lr: expected"),
    ({"groups": [{"lr": abs}]}, r"\['lr'\]: expected a number, got a schedule"),
    ({"groups": [{"params": ["a", "a"]}]}, r"\['groups'\]\[0\]\['params'\]: 'a' is there twice"),
    ({"groups": [{"params": "ab"}]}, r"\['params'\]: expected a list, got str"),
    ({"groups": None}, r"\['groups'\]: expected a list, got NoneType"),
    ({"ema": [1]}, r"\['ema'\]: expected a dict, got list"),
    ({"accumulated": {"micro_batches": -1}}, r"\['micro_batches'\]: expected a non-negative integer"),
    ({"accumulated": {"weights": {"a": -1.0}}}, r"\['weights'\]\['a'\]: expected a finite number"),
    ({"accumulated": {"weights": {"a": NAN}}}, r"\['weights'\]\['a'\]: expected a finite number"),
    ({"accumulated": {"counts": {"a": 9}}}, r"\['counts'\]\['a'\]: expected at most"),
    ({"accumulated": None}, r"\['accumulated'\]: expected a dict"),
])
@pytest.mark.parametrize("strict", [True, False])
def test_impossible_values_are_refused(change, message, strict):
    options = {"ema": 0.9, "accumulate": 3}
    saved = trained(ab(), steps=10, cls=fastopt.NAdam, **options).state_dict()
    assert saved["steps"] == 3 and saved["accumulated"]["micro_batches"] == 1
    opt = trained(ab(), steps=4, cls=fastopt.NAdam, lr=0.5, **options)
    before = opt.state_dict()
    is_array = "exp_avg" in message
    if is_array and not strict:     # an array that does not fit
        assert len(opt.load_state_dict(merged(saved, change), strict=False).mismatched_keys) == 1
        return
    with pytest.raises((ValueError, TypeError), match=message):
        opt.load_state_dict(merged(saved, change), strict=strict)
    assert_equal(opt.state_dict(), before)


def test_a_state_dict_may_contain_the_arrays_of_the_optimizer_itself():
    opt = fastopt.Adam({"a": np.ones(3), "b": np.ones(3)})
    opt.step({"a": np.ones(3), "b": np.full(3, 2.0)})
    a, b = (dict(state) for state in opt.state)
    saved = opt.state_dict()
    saved["state"] = {"a": {"step": 1, **b}, "b": {"step": 1, **a}}
    expected = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    assert_equal(opt.state_dict()["state"], expected["state"])


def test_a_schedule_where_a_number_was_is_kept_and_the_reverse_is_an_error():
    rate = schedules.Exponential(0.1, 0.5)
    scheduled, number = fastopt.SGD(array(), lr=rate), fastopt.SGD(array(), lr=0.3)
    scheduled.load_state_dict(number.state_dict())
    assert scheduled.groups[0]["lr"] is rate
    with pytest.raises(ValueError, match=r"different: groups\[0\]\['lr'\]: expected a number, got a sch"):
        number.load_state_dict(scheduled.state_dict())
    assert number.load_state_dict(scheduled.state_dict(), strict=False).mismatched_keys
    assert number.groups[0]["lr"] == 0.3


def test_hyperparameters_that_are_newer_than_the_state_dict_keep_their_values():
    saved = fastopt.Adam(array()).state_dict()
    del saved["groups"][0]["cautious"]
    opt = fastopt.Adam(array(), cautious=True)
    opt.load_state_dict(saved)
    assert opt.groups[0]["cautious"] is True


# --- Format 1 ----------------------------------------------------------------------------------------


def format_1():
    """State dict of Adam with ema and a group that was added after one of three steps, as saved by 0.1.0."""
    numbers = {
        "betas": (0.9, 0.999), "eps": 1e-08, "weight_decay": 0.0, "amsgrad": False, "cautious": False,
        "maximize": False, "convention": "torch", "independent_weight_decay": 0.0, "schedules": {},
    }
    return {
        "optimizer": "Adam", "steps": 3, "skipped_steps": 1,
        "groups": [
            {"lr": 0.1, **numbers, "params": [0, 1], "start": 0},
            {"lr": 0.2, **numbers, "params": [2], "start": 1},
        ],
        "state": [
            {"exp_avg": np.array([0.561, 0.0]), "exp_avg_sq": np.array([0.013, 0.0])},
            {"exp_avg": np.array([-0.271], np.float32), "exp_avg_sq": np.array([0.003], np.float32)},
            {"exp_avg": np.array([0.19]), "exp_avg_sq": np.array([0.002])},
        ],
        "ema": [np.array([0.875, 1.0]), np.array([1.125], np.float32), np.array([0.9])],
    }


def make_for_format_1():
    opt = fastopt.Adam({"a": np.ones(2), "b": np.ones(1, np.float32)}, ema=0.5)
    opt.add_param_group({"params": np.ones(1)})
    return opt


def test_format_1():
    opt = make_for_format_1()
    assert not any(opt.load_state_dict(format_1()))
    saved, old = opt.state_dict(), format_1()
    assert (opt.steps, opt.skipped_steps) == (3, 1) and [g["lr"] for g in opt.groups] == [0.1, 0.2]
    assert [state.steps for state in opt.state] == [3, 3, 2]
    for entry, arrays in zip(saved["state"].values(), old["state"], strict=True):
        assert all(same_bits(entry[name], value) for name, value in arrays.items())
    assert all(same_bits(a, b) for a, b in zip(saved["ema"].values(), old["ema"], strict=True))


def test_scalars_of_format_1():
    opt = trained({"a": np.ones(2)}, cls=fastopt.NAdam)
    new = opt.state_dict()
    old = {
        "optimizer": "NAdam", "steps": 3, "skipped_steps": 0,
        "groups": [new["groups"][0] | {
            "params": [0], "start": 0, "numbers": new["state"]["a"]["scalars"], "schedules": {},
        }],
        "state": [{name: new["state"]["a"][name] for name in ("exp_avg", "exp_avg_sq")}],
    }
    other = fastopt.NAdam({"a": np.ones(2)})
    other.load_state_dict(old)
    assert_equal(other.state_dict(), new)


@pytest.mark.parametrize(("change", "message"), [
    ({"groups": [{"start": 4}, {}]}, r"\['start'\]: expected at most 3, the steps of the optimizer, got 4"),
    ({"groups": [{"start": -1}, {}]}, r"\['start'\]: expected a non-negative integer"),
    ({"groups": [{"params": [0, 5]}, {}]}, r"\['params'\]: expected the index of a parameter, got 5"),
    ({"state": [{}]}, r"\['params'\]: expected the index of a parameter, got 1"),
    ({"state": [{"exp_avg": np.ones(2)}] * 2}, "expected the index of a parameter, got 2"),
    ({"state": ({}, {}, {})}, r"missing: state\['a'\]\['exp_avg'\], state\['a'\]\['exp_avg_sq'\]"),
    ({"micro_batches": 1, "accumulated": [np.ones(2)]}, r"\['micro_batches'\]: expected 0 in a state dict"),
    ({"groups": [{"foo": 1}, {}]}, r"unexpected: groups\[0\]\['foo'\]"),
])
def test_impossible_values_in_format_1(change, message):
    opt = make_for_format_1()
    before = opt.state_dict()
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(merged(format_1(), change))
    assert_equal(opt.state_dict(), before)


# --- Accumulated gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved_with", "loaded_with", "pending"), [(4, 2, 1), (2, 4, 1), (5, 3, 3), (3, 3, 2)]
)
def test_pending_micro_batches_of_another_number_per_step(saved_with, loaded_with, pending):
    opt = fastopt.SGD(np.zeros(1), lr=1.0, accumulate=saved_with)
    for _ in range(pending):
        opt.step(np.ones(1))
    other = fastopt.SGD(p := np.zeros(1), lr=1.0, accumulate=loaded_with)
    other.load_state_dict(opt.state_dict())
    calls = 0
    while not p.any():
        other.step(np.ones(1))
        calls += 1
    assert p == -1 and calls == max(loaded_with - pending, 1)


def test_pending_micro_batches_are_not_dropped():
    opt = fastopt.SGD(np.zeros(1), accumulate=2)
    opt.step(np.ones(1))
    other = fastopt.SGD(np.zeros(1))
    with pytest.raises(ValueError, match="unexpected: accumulated"):
        other.load_state_dict(opt.state_dict())
    opt.step(np.ones(1))
    other.load_state_dict(opt.state_dict())


# --- Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["npz", "safetensors", "state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_resuming_equals_never_stopping_with_every_option(rule, how, tmp_path):
    """Also between two micro-batches, with groups, schedules, and parameters without a gradient."""
    def make(p):
        groups = [{"params": {"W": p["W"], "b": p["b"]}}, {"params": {"c": p["c"], "d": p["d"]}}]
        options = options_of(rule, **OPTIONS)
        return rule.make(groups, **options, lr=schedules.Exponential(0.01, 0.9))

    def split(g):
        return [{"W": g["W"], "b": g["b"]}, {"c": None, "d": g["d"]}]

    if how == "safetensors":
        pytest.importorskip("safetensors")
    rng = np.random.default_rng(3)
    p = parameters()
    opt = make(p)
    for _ in range(7):
        opt.step(split(gradients(p, rng)), max_norm=1.0)
    if how in ("npz", "safetensors", "state_dict"):
        q = {name: value.copy("K") for name, value in p.items()}
        other = make(q)
        if how == "state_dict":
            other.load_state_dict(opt.state_dict())
        else:
            opt.save(tmp_path / f"opt.{how}")
            other.load(tmp_path / f"opt.{how}")
    else:
        other = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
        q = other.groups[0]["params"] | other.groups[1]["params"]
    assert_equal(other.state_dict(), opt.state_dict())
    for k in range(5):
        g = gradients(p, rng)
        g = split(g) if k % 2 else [{"W": g["W"], "b": None}, {"c": g["c"], "d": g["d"]}]
        opt.step(g), other.step(g)
    assert all(same_bits(p[name], q[name]) and p[name] is not q[name] for name in p)
    assert_equal(other.state_dict(), opt.state_dict())


@pytest.mark.parametrize("name", ["opt.state", "opt.safetensors"])
def test_a_file_has_one_name_and_is_replaced(name, tmp_path):
    if name == "opt.safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / "folder" / name
    opt = trained(ab(s=np.array(2.0)), lr=schedules.ReduceOnPlateau(0.1))
    opt.save(path)
    opt.step(ab(s=np.array(2.0)))
    opt.save(path)
    assert [p.name for p in path.parent.iterdir()] == [name]
    other = fastopt.Adam(ab(s=np.array(2.0)), lr=schedules.ReduceOnPlateau(0.2))
    assert other.load(path) == ([], [], [])
    assert_equal(other.state_dict(), opt.state_dict())
    with pytest.raises(FileNotFoundError):
        opt.load(tmp_path / "missing")


def test_a_failed_save_keeps_the_previous_file(tmp_path):
    class Stateful(schedules.Constant):
        def state_dict(self):
            return {"unserializable": object()}

        def load_state_dict(self, state):
            pass

    trained(ab()).save(tmp_path / "opt")
    before = (tmp_path / "opt").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        trained(ab(), lr=Stateful(0.1)).save(tmp_path / "opt")
    assert (tmp_path / "opt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_damaged_files_are_refused(form, tmp_path):
    """Any changed byte is noticed, or does not matter."""
    if form == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"opt.{form}"
    opt = trained({"a": np.arange(3.0)}, cls=fastopt.NAdam)
    opt.save(path)
    content, expected = path.read_bytes(), opt.state_dict()
    rng = np.random.default_rng(0)
    refused = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        other = fastopt.NAdam({"a": np.zeros(3)})
        try:
            other.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            assert_equal(other.state_dict(), fastopt.NAdam({"a": np.zeros(3)}).state_dict())
            refused += 1
        else:
            assert_equal(other.state_dict(), expected)
    assert refused > len(content) / 7 / 2
    for size in range(0, len(content), 11):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="damaged"):
            opt.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        opt.load(path)


@pytest.mark.parametrize("content", ["pickle", "object array", "other archive", "text", "empty"])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "opt"
    if content == "pickle":
        path.write_bytes(pickle.dumps(trained(ab()).state_dict()))
    elif content == "object array":
        with open(path, "wb") as file:
            np.savez(file, tree=np.array([object()]))
    elif content == "other archive":
        with zipfile.ZipFile(path, "w") as archive:
            buffer = io.BytesIO()
            np.save(buffer, np.zeros(3))
            archive.writestr("tree.npy", buffer.getvalue())
    else:
        path.write_text("x" if content == "text" else "")
    with pytest.raises(ValueError, match="opt: "):
        fastopt.Adam(ab()).load(path)


# --- Interruptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_interrupted_load_is_complete_or_has_changed_nothing(amsgrad):
    """An interrupt at each line of Python in turn; with another kernel, all arrays are new."""
    def make(lr, amsgrad, steps):
        p = {"a": np.ones(2), "b": np.ones(3)}
        opt = fastopt.Adam(p, lr=schedules.ReduceOnPlateau(lr), amsgrad=amsgrad, ema=0.9, accumulate=2)
        for _ in range(steps):
            opt.step({name: np.ones_like(array) for name, array in p.items()})
            opt.groups[0]["lr"].report(1.0)
        return opt

    states = [make(0.1, amsgrad, 5).state_dict(), make(0.2, False, 8).state_dict()]
    opt = make(0.1, False, 0)
    opt.load_state_dict(states[1])
    outcomes = []
    line = 0
    while not outcomes or outcomes[-1] != "finished":
        line += 1
        outcomes.append(interrupted_at_line(line, lambda: opt.load_state_dict(states[0])))
        actual = opt.state_dict()
        complete = actual["steps"] == states[0]["steps"]
        assert_equal(actual, states[0 if complete else 1])
        if complete:
            opt.step({name: np.ones_like(array) for name, array in opt.params.items()})
            opt.load_state_dict(states[1])
    assert line > 100


def interrupted_at_line(n, call):
    """Raise KeyboardInterrupt before the n-th line of the package that `call` executes."""
    left = n

    def trace(frame, event, arg):
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        sys.settrace(before)
    return "finished"


def test_a_schedule_that_raises_while_it_is_loaded_changes_nothing():
    class Fragile(schedules.ReduceOnPlateau):
        loads = 0

        def load_state_dict(self, state):
            super().load_state_dict(state)
            Fragile.loads += 1
            if Fragile.loads == 2:      # the first time it is a copy that is loaded
                raise RuntimeError("broken")

    saved = trained(ab(), lr=schedules.ReduceOnPlateau(0.5)).state_dict()
    opt = trained(ab(), lr=Fragile(0.1))
    before = opt.state_dict()
    with pytest.raises(RuntimeError, match="broken"):
        opt.load_state_dict(saved)
    assert_equal(opt.state_dict(), before)


# --- Copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [getattr(fastopt.optimizers, name) for name in fastopt.optimizers.__all__
                                 if name != "Optimizer"])
def test_a_shallow_copy_is_refused(cls):
    opt = cls(np.ones((2, 2)))
    with pytest.raises(TypeError, match=f"copy: expected copy.deepcopy, as .* of this {cls.__name__} would"):
        copy.copy(opt)
    other = copy.deepcopy(opt)
    other.step(np.ones((2, 2)))
    assert opt.steps == 0 and (opt.params == 1).all()


def test_groups_are_copied_to_dicts():
    opt = fastopt.SGD([{"params": p, "lr": 0.1} for p in np.ones((2, 3))])
    group = opt.groups[0]
    for copied in (group.copy(), copy.copy(group), group | {}, {} | group, dict(group)):
        assert type(copied) is dict and copied["lr"] == 0.1 and copied["params"] is group["params"]
    assert (group | {"lr": 0.3})["lr"] == 0.3 and ({"lr": 0.3} | group)["lr"] == 0.1
    assert group["lr"] == 0.1
    fastopt.SGD([group.copy(), opt.groups[1] | {"lr": 0.5}])
    twin = copy.deepcopy(group)
    assert twin["params"] is not group["params"] and pickle.loads(pickle.dumps(group))["lr"] == 0.1
