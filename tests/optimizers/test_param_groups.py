"""`fastopt.param_groups`: names, patterns, precedence, and optimizers of the result."""

import copy
import doctest
import importlib
import pickle

import numpy as np
import pytest

import fastopt
from fastopt import param_groups


def tree(rng=None):
    rng = rng or np.random.default_rng(0)
    return {
        "embed": rng.standard_normal((4, 3)),
        "blocks": [
            {"weight": rng.standard_normal((3, 3)), "bias": rng.standard_normal(3)},
            {"weight": rng.standard_normal((3, 3)), "bias": rng.standard_normal(3)},
        ],
        "norm": (rng.standard_normal(3), rng.standard_normal(3)),
        7: rng.standard_normal(2),
    }


NAMES = [
    "embed", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias", "norm.0", "norm.1", "7",
]


def is_vector(name, array):
    return array.ndim < 2


def leaves(nesting):
    if isinstance(nesting, np.ndarray):
        return [nesting]
    inner = nesting.values() if isinstance(nesting, dict) else nesting
    return [leaf for each in inner for leaf in leaves(each)]


def names_of(groups):
    return [[list(group["params"]), {n: v for n, v in group.items() if n != "params"}] for group in groups]


OTHERS = [n for n in NAMES if not n.endswith("bias")]
CASES = {
    "nothing": ({}, [[NAMES, {}]]),
    "glob": ({"*.bias": {"lr": 1}}, [[OTHERS, {}], [["blocks.0.bias", "blocks.1.bias"], {"lr": 1}]]),
    "everything": ({"*": {"lr": 1}}, [[NAMES, {"lr": 1}]]),
    "one name": ({"7": {"lr": 1}}, [[NAMES[:-1], {}], [["7"], {"lr": 1}]]),
    "?": ({"norm.?": {"lr": 1}, "blocks.[0]*": {"lr": 2}}, [
        [["embed", "blocks.1.weight", "blocks.1.bias", "7"], {}], [["norm.0", "norm.1"], {"lr": 1}],
        [["blocks.0.weight", "blocks.0.bias"], {"lr": 2}],
    ]),
    "case": ({"*": {"lr": 1}, "[!E]mbed": {"lr": 2}}, [[NAMES[1:], {"lr": 1}], [["embed"], {"lr": 2}]]),
    "function": ({is_vector: {"lr": 1}}, [
        [["embed", "blocks.0.weight", "blocks.1.weight"], {}],
        [["blocks.0.bias", "blocks.1.bias", "norm.0", "norm.1", "7"], {"lr": 1}],
    ]),
    "tuple": ({("*.bias", "norm.*", lambda name, array: name == "7"): {"lr": 1}}, [
        [["embed", "blocks.0.weight", "blocks.1.weight"], {}],
        [["blocks.0.bias", "blocks.1.bias", "norm.0", "norm.1", "7"], {"lr": 1}],
    ]),
    "several matches": ({"blocks.*": {"lr": 1, "eps": 1}, "*.bias": {"lr": 2}, "blocks.1.*": {"eps": 3}}, [
        [["embed", "norm.0", "norm.1", "7"], {}], [["blocks.0.weight"], {"lr": 1, "eps": 1}],
        [["blocks.0.bias"], {"lr": 2, "eps": 1}], [["blocks.1.bias"], {"lr": 2, "eps": 3}],
        [["blocks.1.weight"], {"lr": 1, "eps": 3}],
    ]),
    "pairs": ([("*", {"lr": 1}), ("embed", {"lr": 2}), ("*", {"eps": 3})], [
        [["embed"], {"lr": 2, "eps": 3}], [NAMES[1:], {"lr": 1, "eps": 3}],
    ]),
}


@pytest.mark.parametrize(("rules", "expected"), CASES.values(), ids=CASES)
def test_patterns(rules, expected):
    params = tree()
    groups = param_groups(params, rules)
    assert names_of(groups) == expected
    assert len(groups) == len(expected) and groups[0] is groups.groups[0]
    arrays = leaves(params)
    for array, name, i in zip(arrays, NAMES, groups.group_of, strict=True):
        assert groups[i]["params"][name] is array
    assert groups.params is params


def test_a_single_array_and_an_mlp_have_names():
    assert names_of(param_groups(np.zeros(3), {"": {"lr": 1}})) == [[[""], {"lr": 1}]]
    net = fastopt.MLP([3, 4, 2], norm="layer", seed=0)
    assert names_of(param_groups(net.params, {"*.1": {"lr": 1}, "*.2": {"lr": 2}})) == [
        [["0.0", "1.0"], {}], [["0.1", "1.1"], {"lr": 1}], [["0.2"], {"lr": 2}],
    ]


@pytest.mark.parametrize(("rules", "error", "match"), [
    ({"*.gamma": {"lr": 1}}, ValueError, r"^rules: '\*.gamma' matches none of the parameters embed, blocks"),
    ({"embed": {}, lambda n, p: False: {}}, ValueError, r"^rules: <function .* matches none of"),
    ({"*": {}, ("gamma", "beta"): {}}, ValueError, r"^rules: \('gamma', 'beta'\) matches none of"),
    ({"*": 0.1}, TypeError, r"^rules\['\*'\]: expected a dict of hyperparameters, got 0.1"),
    ({"*": {"params": []}}, ValueError, r"^rules\['\*'\]: expected hyperparameters, got 'params'"),
    ({1: {"lr": 1}}, TypeError, r"^rules: expected a name, a function of name and array, or a tuple"),
    ({("*", None): {"lr": 1}}, TypeError, r"^rules: expected a name, a function .* got None"),
    ({lambda n, p: None: {}}, TypeError, r"^rules: expected True or False from .* for 'embed', got None"),
    (0.1, TypeError, r"^rules: expected a dict or pairs of a pattern and a dict, got 0.1"),
    (["*"], TypeError, r"^rules: expected a dict or pairs"),
])
def test_invalid_rules(rules, error, match):
    with pytest.raises(error, match=match):
        param_groups(tree(), rules)


def test_invalid_parameters():
    with pytest.raises(ValueError, match=r"^params: expected different names, got 2 parameters named 'a.b'"):
        param_groups({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)}, {})
    with pytest.raises(TypeError, match=r"^params\[\"a\"\]: expected a NumPy array"):
        param_groups({"a": 1.0}, {})
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'decay' in a group of SGD"):
        fastopt.SGD(param_groups(tree(), {"*": {"decay": 0.1}}))
    with pytest.raises(ValueError, match=r"^lr: expected a finite number"):
        fastopt.SGD(param_groups(tree(), {"*": {"lr": -1.0}}))
    params = tree()
    groups = param_groups(params, {"*": {"lr": 0.1}})
    for change in ({"embed": params["embed"].copy()}, {"more": np.zeros(1)}):
        with pytest.raises(ValueError, match=r"^params: expected the arrays that param_groups received"):
            params.update(change)
            fastopt.SGD(groups)


# --- optimizers --------------------------------------------------------------------------------------

RULES = {
    ("*.bias", "norm.*", "7"): {"weight_decay": 0.0}, "blocks.*": {"lr": 0.01},
    "blocks.1.bias": {"lr": fastopt.schedules.Exponential(0.1, 0.9)},
}


def same(a, b):
    return all((x == y).all() for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("kind", [fastopt.AdamW, fastopt.SGD, fastopt.Muon, fastopt.LAMB, fastopt.Adafactor])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "lookahead": (2, 0.5)}, {"accumulate": 2}], ids=str)
def test_steps_equal_those_of_groups_by_hand(kind, options):
    rng = np.random.default_rng(1)
    params = tree()
    other = copy.deepcopy(params)
    groups = param_groups(params, RULES)
    opt = kind(groups, lr=0.1, weight_decay=0.1, **options)
    by_hand = param_groups(other, RULES)
    twin = kind([dict(group) for group in by_hand], lr=0.1, weight_decay=0.1, **options)
    for _ in range(4):
        grads = tree(rng)
        opt.step(grads, max_norm=1e3)
        by_name = dict(zip(NAMES, leaves(grads), strict=True))
        twin.step([{name: by_name[name] for name in group["params"]} for group in by_hand], max_norm=1e3)
        assert same(params, other)
    assert opt.params is params and [g["lr"] for g in opt.groups] == [g["lr"] for g in twin.groups]
    assert [list(g["params"]) for g in opt.groups] == [list(g["params"]) for g in groups]
    if "ema" in options:
        assert list(opt.ema) == list(params)
        averages = dict(zip(NAMES, leaves(opt.ema), strict=True))
        assert all((averages[n] == e).all() for g in twin.ema for n, e in g.items())


def test_errors_name_the_place_in_the_nesting():
    params = tree()
    opt = fastopt.AdamW(param_groups(params, RULES))
    grads = tree()
    grads["blocks"][1]["bias"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"^grads\[\"blocks\"\]\[1\]\[\"bias\"\]: expected"):
        opt.step(grads)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt)), None],
                         ids=["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("added", [False, True], ids=["as made", "after add_param_group"])
def test_a_run_is_resumed(again, added):
    def make():
        return fastopt.AdamW(param_groups(tree(), RULES), lr=0.1)

    def extend(opt):
        if added:
            opt.add_param_group({"params": [np.ones(3)], "lr": 0.5})

    def step(opt, seed):
        grads = tree(np.random.default_rng(seed))
        opt.step([grads, [np.ones(3)]] if added else grads)

    whole = make()
    step_before = tree(np.random.default_rng(9))
    whole.step(step_before)
    extend(whole)
    for seed in range(2):
        step(whole, seed)
    if again is None:
        twin = make()
        extend(twin)
        for p, q in zip(twin._params.arrays, whole._params.arrays, strict=True):
            p[...] = q
        twin.load_state_dict(whole.state_dict())
    else:
        twin = again(whole)
    for opt in (whole, twin):
        step(opt, 5)
        opt.groups[1]["lr"] = 0.3
        step(opt, 6)
    assert [(p == q).all() for p, q in zip(whole._params.arrays, twin._params.arrays, strict=True)] == [
        True
    ] * (len(NAMES) + added)
    assert [list(group["params"]) for group in twin.groups[: len(RULES) + 1]] == [
        list(group["params"]) for group in whole.groups[: len(RULES) + 1]
    ]


def test_gradients_after_add_param_group():
    params = {"a": np.zeros(2), "b": np.zeros(3)}
    opt = fastopt.SGD(param_groups(params, {"b": {"lr": 2.0}}), lr=1.0)
    opt.add_param_group({"params": np.zeros(4), "lr": 3.0})
    opt.add_param_group({"params": [np.zeros(5)], "lr": 4.0})
    assert opt.params[0] is params and next(iter(opt.params[1])) == "params"
    opt.step([{"a": np.ones(2), "b": np.ones(3)}, np.ones(4), [np.ones(5)]])
    assert [array[0] for array in opt._params.arrays] == [-1.0, -2.0, -3.0, -4.0]
    assert [indices for _, indices in opt.places()] == [[0], [1], [2], [3]]
    with pytest.raises(ValueError, match=r"are the same array"):
        opt.add_param_group({"params": params["a"]})


@pytest.mark.parametrize("hidden", [5, 200], ids=["small", "with updates inside of the network's step"])
def test_a_trainer_trains_as_if_each_group_had_its_own_optimizer(hidden):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 60)), rng.integers(0, 3, 40)

    def train(wrap):
        net = fastopt.MLP([60, hidden, 3], norm="layer", seed=0)
        opt = fastopt.AdamW(wrap(net.params), lr=0.01, weight_decay=0.5)
        trainer = fastopt.Trainer(net, opt)
        trainer.fit(X, y, epochs=2, verbose=0, seed=1)
        return net, trainer

    vectors = {lambda name, array: array.ndim < 2: {"weight_decay": 0.0, "lr": 0.03}}
    net, trainer = train(lambda params: param_groups(params, vectors))
    assert trainer.opt._can_lease(net.params) and len(trainer.opt.groups) == 2
    grouped, _ = train(lambda params: param_groups(params, {"*": {"lr": 0.01}}))
    plain, _ = train(lambda params: params)
    assert same(grouped.params, plain.params) and not same(net.params, plain.params)

    other = fastopt.MLP([60, hidden, 3], norm="layer", seed=0)
    by_hand = fastopt.AdamW(
        [{"params": [layer[0] for layer in other.params]},
         {"params": [layer[1:] for layer in other.params], "weight_decay": 0.0, "lr": 0.03}],
        lr=0.01, weight_decay=0.5,
    )
    order = np.random.default_rng(1)
    for _ in range(2):
        samples = order.permutation(40)
        for begin in range(0, 40, 32):
            batch = samples[begin : begin + 32]
            _, grads = other.train_step(X[batch], y[batch])
            by_hand.step([[g[0] for g in grads], [g[1:] for g in grads]])
    assert same(net.params, other.params)
    state = trainer.state_dict()
    _, fresh = train(lambda params: param_groups(params, vectors))
    fresh.load_state_dict(state)


def test_the_examples_of_the_docstring():
    result = doctest.testmod(importlib.import_module("fastopt.optimizers.param_groups"))
    assert result.attempted >= 6 and result.failed == 0
