"""Containers of parameters: what is taken, what happens if the caller changes them, and new arrays."""

import collections
import copy
import gc
import itertools
import pickle
import threading
import weakref

import numpy as np
import pytest
from rules import same_bits

import fastopt


def two():
    return np.full((2, 3), 5.0), np.full(3, 5.0)


ITERATORS = {
    "generator": lambda a, b: (x for x in (a, b)),
    "dict values": lambda a, b: {"a": a, "b": b}.values(),
    "map": lambda a, b: map(np.asarray, (a, b)),
    "filter": lambda a, b: filter(lambda x: True, (a, b)),
    "iterator": lambda a, b: iter([a, b]),
    "chain": lambda a, b: itertools.chain([a], [b]),
    "ordered dict values": lambda a, b: collections.OrderedDict(a=a, b=b).values(),
}


@pytest.mark.parametrize("name", ITERATORS)
def test_iterators_are_taken_as_lists(name):
    a, b = two()
    opt = fastopt.SGD(ITERATORS[name](a, b), lr=1.0)
    opt.step([a.copy(), b.copy()])
    assert not a.any() and not b.any()
    assert len(opt.params) == 2 and opt.params[0] is a
    opt = fastopt.SGD([{"params": ITERATORS[name](a, b)}, {"params": (np.ones(n) for n in (1, 2))}], lr=1.0)
    opt.add_param_group({"params": ITERATORS[name](*two())})
    opt.step([[a + 1, b + 1], [np.ones(1), np.ones(2)], [x.copy() for x in two()]])
    assert (a == -1).all() and (b == -1).all() and all(not x.any() for x in opt.groups[1]["params"])
    twin = pickle.loads(pickle.dumps(opt))
    twin.step([[a + 1, b + 1], [np.ones(1), np.ones(2)], list(two())])
    assert twin.steps == 2


def test_iterators_inside_of_containers():
    a, b = two()
    opt = fastopt.SGD({"layers": zip([a], [b], strict=True), "more": [map(np.ones, (1, 2))]}, lr=1.0)
    opt.step({"layers": [[a.copy(), b.copy()]], "more": [[np.ones(1), np.ones(2)]]})
    assert not a.any() and not b.any() and not opt.params["more"][0][1].any()


def test_a_generator_of_groups():
    a, b = two()
    opt = fastopt.SGD({"params": x, "lr": 1.0} for x in (a, b))
    opt.step([a.copy(), b.copy()])
    assert not a.any() and not b.any() and len(opt.groups) == 2


def nested(depth):
    tree = np.ones(2)
    for _ in range(depth):
        tree = [tree]
    return tree


def self_referencing(kind):
    if kind is dict:
        tree = {"a": np.ones(2)}
        tree["self"] = tree
    else:
        tree = [np.ones(2)]
        tree.append(tree)
    return tree


@pytest.mark.parametrize(
    "make",
    [
        lambda: nested(900), lambda: nested(101), lambda: nested(100_000), lambda: self_referencing(list),
        lambda: self_referencing(dict), lambda: [{"params": self_referencing(list)}],
        lambda: [{"params": np.ones(2)}, {"params": nested(900)}],
        lambda: collections.OrderedDict(a=nested(900)), lambda: (x for x in [nested(900)]),
    ],
)
def test_deep_containers_are_refused(make):
    with pytest.raises(ValueError, match="params: expected at most 100 containers inside one another"):
        fastopt.Adam(make())
    opt = fastopt.Adam(np.ones(2))
    with pytest.raises(ValueError, match="params: expected at most 100 containers"):
        opt.add_param_group({"params": nested(900)})
    with pytest.raises(ValueError, match="params: expected at most 100 containers"):
        opt.rebind(make())


def test_one_hundred_levels():
    params, grads = nested(100), nested(100)
    opt = fastopt.SGD(params, lr=1.0, ema=0.5)
    opt.step(grads)
    copy.deepcopy(opt).step(grads)
    with pytest.raises((TypeError, ValueError), match="grads"):
        opt.step(nested(99))
    with pytest.raises((TypeError, ValueError), match="grads"):
        opt.step(nested(900))
    while isinstance(params, list):
        (params,) = params
    assert not params.any()


# --- A caller who changes the containers ---------------------------------------------------------------


def replace_item(params):
    params["W"] = params["W"] - 1


def replace_inner(params):
    params["layers"][1] = params["layers"][1].copy()


def replace_container(params):
    params["layers"] = [a.copy() for a in params["layers"]]


def change_type(params):
    params["layers"][0] = 1.0


def make_float32(params):
    params["W"] = params["W"].astype(np.float32)


def append(params):
    params["layers"].append(np.ones(3))


def add_key(params):
    params["new"] = np.ones(3)


def remove(params):
    del params["layers"][0]


def remove_key(params):
    del params["W"]


def exchange(params):
    params["layers"].reverse()


def include_itself(params):
    params["layers"][0] = params


CHANGES = [
    replace_item, replace_inner, replace_container, change_type, make_float32, append, add_key, remove,
    remove_key, exchange, include_itself,
]


def net():
    return {"W": np.full((2, 3), 5.0), "layers": [np.full(3, 5.0), np.full(3, 5.0)]}


def grads_of(params):
    return {"W": np.ones((2, 3)), "layers": [np.ones(3), np.ones(3)]}


CALLS = {
    "step": lambda opt, grads: opt.step(grads),
    "step with options": lambda opt, grads: opt.step(grads, max_norm=1.0),
    "add_param_group": lambda opt, grads: opt.add_param_group({"params": np.ones(4)}),
    "pickle": lambda opt, grads: pickle.dumps(opt),
    "deepcopy": lambda opt, grads: copy.deepcopy(opt),
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"ema": 0.5, "centralize": True}])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_container_is_noticed(change, call, options, grouped):
    params, other = net(), np.ones(2)
    original = [params["W"], *params["layers"]]
    groups = [{"params": params}, {"params": [other]}] if grouped else params
    opt = fastopt.Adam(groups, lr=0.1, **options)
    grads = [grads_of(params), [np.ones(2)]] if grouped else grads_of(params)
    for _ in range(2):
        opt.step(grads)
    before = [a.copy() for a in (*original, *opt.state[0].values())]
    steps = opt.steps
    change(params)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^params.*(rebind|a container has changed)"):
            CALLS[call](opt, grads)
    assert all(map(same_bits, before, [*original, *opt.state[0].values()])) and opt.steps == steps
    assert len(opt.groups) == 1 + grouped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_item, r'params\["W"\]: the container has another array than the one that the optimizer '
         r'updates; write values with params\["W"\]\[\.\.\.\] = values, or pass the new arrays to rebind'),
        (replace_inner, r'params\["layers"\]\[1\]: the container has another array'),
        (append, r'params: expected arrays at the same places as before, but \["layers"\]\[2\] was added'),
        (remove_key, r'params: .* but \["W"\] was removed; use add_param_group, or rebind'),
        (change_type, r'params: a container has changed since .*: params\["layers"\]\[0\]: .*got float'),
        (include_itself, "params: a container has changed since .*: does one contain itself"),
    ],
)
def test_messages(change, message):
    params = net()
    opt = fastopt.Adam(params)
    change(params)
    with pytest.raises(ValueError, match=message):
        opt.step(grads_of(params))


def test_other_views_and_containers_of_the_same_arrays():
    params = net()
    original = [params["W"], *params["layers"]]
    opt = fastopt.SGD(params, lr=1.0)
    opt.step(grads_of(params))
    params["W"] = params["W"][:]
    params["layers"] = tuple(params["layers"])
    opt.step(grads_of(params))
    params["layers"] = list(params["layers"])
    params["W"] = params.pop("W")       # another order of the keys
    opt.step(grads_of(params))
    assert all((a == 2).all() for a in original)
    params["layers"][0] = np.ones(3)    # which is noticed in the new list, too
    with pytest.raises(ValueError, match=r'params\["layers"\]\[0\]: the container has another array'):
        opt.step(grads_of(params))
    params["layers"][0] = original[1]
    opt.step(grads_of(params))
    assert all((a == 1).all() for a in original)


def test_a_list_that_grows_before_a_group_is_added():
    """The new array must not get the state of another one."""
    W, b, n, c = (np.full(2, float(i)) for i in range(4))
    layers = [W]
    opt = fastopt.Adam([{"params": layers}, {"params": [b]}])
    opt.step([[np.ones(2)], [np.full(2, 2.0)]])
    layers.append(n)
    with pytest.raises(ValueError, match=r"params: .* \[0\]\[1\] was added"):
        opt.add_param_group({"params": [c]})
    layers.pop()
    opt.add_param_group({"params": [c]})
    assert (opt.state[1]["exp_avg"] == np.full(2, 2.0) * (1 - 0.9)).all()
    opt.step([[np.ones(2)], [np.ones(2)], [np.ones(2)]])


def test_networks_notice_it_in_training():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 4)), rng.integers(0, 3, 20)
    model = fastopt.MLP([4, 5, 3], seed=0)
    trainer = fastopt.Trainer(model, fastopt.Adam(model.params))
    trainer.fit(X, y, epochs=1)
    model.params[1][0] = np.zeros_like(model.params[1][0])
    with pytest.raises(ValueError, match=r"params\[1\]\[0\]: the container has another array"):
        trainer.fit(X, y, epochs=1)


def test_an_optimizer_is_freed_when_it_is_dropped():
    opt = fastopt.Adam(net())
    opt.step(grads_of(opt.params))
    gone = weakref.ref(opt.state[0])
    gc.disable()
    try:
        del opt
        assert gone() is None
    finally:
        gc.enable()


# --- rebind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"ema": 0.5, "lookahead": (3, 0.5)}])
@pytest.mark.parametrize("grouped", [False, True])
def test_rebind_keeps_state(options, grouped):
    def wrap(params):
        return [{"params": params, "lr": 0.1}] if grouped else params

    first, second = net(), net()
    opt, twin = (fastopt.Adam(wrap(p), lr=0.1, **options) for p in (first, second))
    rng = np.random.default_rng(0)
    for i in range(9):
        if i in (3, 6):
            old = first
            # In another order, layout and container: the place decides.
            first = {
                "layers": tuple(a.copy() for a in old["layers"]), "W": old["W"].copy(order="F"),
            }
            opt.rebind(wrap(first))
            assert opt.groups[0]["params"] is first
            old["W"][...] = 99
        grads = {"W": rng.standard_normal((2, 3)), "layers": list(rng.standard_normal((2, 3)))}
        opt.step([grads] if grouped else grads)
        twin.step([grads] if grouped else grads)
    assert same_bits(first["W"], second["W"]) and all(map(same_bits, first["layers"], second["layers"]))
    assert opt.steps == twin.steps
    for one, other in zip(opt.state, twin.state, strict=True):
        assert all(same_bits(one[name], other[name]) for name in one)
    restored = pickle.loads(pickle.dumps(opt))
    assert (restored.groups[0]["params"]["W"] == first["W"]).all()
    for one, other in zip(opt.state, restored.state, strict=True):
        assert all(same_bits(one[name], other[name]) for name in one)
    for other in (opt, twin, restored):
        other.step([grads] if grouped else grads)
    assert same_bits(first["W"], second["W"])
    assert same_bits(first["W"], restored.groups[0]["params"]["W"])


def test_rebind_after_an_array_was_replaced_or_resized():
    params = net()
    opt = fastopt.SGD(params, lr=1.0, momentum=0.5)
    opt.step(grads_of(params))
    params["W"] = np.full((2, 3), 7.0)
    with pytest.raises(ValueError, match="rebind"):
        opt.step(grads_of(params))
    opt.rebind(params)
    opt.step(grads_of(params))
    assert (params["W"] == 7 - 1.5).all()
    params["layers"][0].resize(10_000, refcheck=False)
    with pytest.raises(ValueError, match="rebind"):
        opt.step(grads_of(params))
    params["layers"][0] = np.zeros(3)
    opt.rebind(params)
    opt.step(grads_of(params))
    assert (params["layers"][0] == -1.75).all()


@pytest.mark.parametrize(
    ("new", "error", "message"),
    [
        (lambda: {"W": np.ones((2, 3))}, ValueError, r'params: .* but \["layers"\]\[0\] was removed'),
        (lambda: net() | {"b": np.ones(2)}, ValueError, r'params: .* but \["b"\] was added'),
        (lambda: net() | {"W": np.ones((3, 2))}, ValueError,
         r'params\["W"\]: expected float64 of shape \(2, 3\), as before, got float64 of shape \(3, 2\)'),
        (lambda: net() | {"W": np.ones((2, 3), np.float32)}, ValueError, r'params\["W"\]: .*got float32'),
        (lambda: net() | {"W": np.ones((2, 3), int)}, TypeError, r'params\["W"\]: expected dtype'),
        (lambda: net() | {"W": np.ones((4, 3))[::2]}, ValueError, r'params\["W"\]: .*without gaps'),
        (lambda: [{"params": net()}], ValueError, "params: expected a nesting without groups, as in opt"),
        (lambda: net() | {"layers": 2 * [np.ones(3)]}, ValueError, "same array"),
    ],
)
def test_rebind_refuses_what_does_not_fit(new, error, message):
    params = net()
    opt = fastopt.SGD(params, lr=1.0)
    with pytest.raises(error, match=message):
        opt.rebind(new())
    opt.step(grads_of(params))
    assert (params["W"] == 4).all() and opt.params is params
    grouped = fastopt.SGD([{"params": net()}])
    with pytest.raises(ValueError, match="params: expected a list of 1 groups"):
        grouped.rebind(net())


def test_rebind_of_rows_that_are_behind():
    p = np.ones((4, 3))
    opt = fastopt.Adam(p, sparse="exact")
    for rows in ([0], [1], [2]):
        opt.step_rows(p, rows, np.ones((1, 3)))
    twin = copy.deepcopy(opt)
    opt.rebind(p.copy())
    assert same_bits(p, twin.params) and same_bits(opt.state[0]["exp_avg"], twin.state[0]["exp_avg"])


@pytest.mark.parametrize("added", [False, True])
def test_rebind_of_groups_by_name(added):
    def make(params):
        groups = fastopt.param_groups(params, {"W": {"lr": 0.01}})
        opt = fastopt.Adam(groups, lr=0.1)
        if added:
            opt.add_param_group({"params": [extra[len(extras)]]})
            extras.append(None)
        return opt

    extra, extras = [np.full(2, 3.0), np.full(2, 3.0)], []
    first, second = net(), net()
    opt, twin = make(first), make(second)
    rng = np.random.default_rng(0)
    for i in range(6):
        if i == 3:
            first = {"layers": [a.copy() for a in first["layers"]], "W": first["W"].copy(order="F")}
            if added:
                opt.rebind([first, {"params": [extra[0]]}])
            else:
                opt.rebind(fastopt.param_groups(first, {"W": {"lr": 5.0}}))
            (name, array), = opt.groups[1]["params"].items()
            assert name == "W" and np.shares_memory(array, first["W"]) and opt.groups[1]["lr"] == 0.01
        grads = {"W": rng.standard_normal((2, 3)), "layers": list(rng.standard_normal((2, 3)))}
        for other in (opt, twin):
            other.step([grads, [np.ones(2)]] if added else grads)
        copied = pickle.loads(pickle.dumps(opt))
    assert same_bits(first["W"], second["W"]) and all(map(same_bits, first["layers"], second["layers"]))
    nesting = copied.params[0] if added else copied.params
    assert same_bits(nesting["W"], np.asarray(second["W"]))
    for one, other in zip(copied.state, twin.state, strict=True):
        assert all(same_bits(one[name], other[name]) for name in one)
    first["W"] = np.ones((2, 3))
    with pytest.raises(ValueError, match=r'\["W"\]: the container has another array'):
        opt.step([grads, [np.ones(2)]] if added else grads)


def test_groups_by_name_of_iterators_and_subclasses():
    a, b = two()
    opt = fastopt.SGD(fastopt.param_groups((x.view(np.matrix) for x in (a, a[:0])), {"0": {"lr": 1.0}}))
    opt.step([a.copy(), a[:0]])
    assert not a.any() and b.any()


# --- Hostile containers -------------------------------------------------------------------------------


class Moody(dict):
    """A dict that denies its keys every other time."""

    calls = 0

    def __contains__(self, key):
        Moody.calls += 1
        return Moody.calls % 2 == 0

    def keys(self):
        return dict(self).keys()


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"ema": 0.5}])
def test_a_dict_that_changes_its_answer(options):
    params = {"a": np.ones(3), "b": np.ones(3)}
    opt = fastopt.SGD(params, lr=1.0, **options)
    grads = Moody(a=np.ones(3), b=np.ones(3))
    for _ in range(7):
        try:
            opt.step(grads)
        except ValueError as error:
            assert "grads" in str(error)
    assert np.isfinite(params["a"]).all()
    assert fastopt.SGD(Moody(a=np.ones(3), b=np.ones(3))).step({"a": np.ones(3), "b": np.ones(3)})


@pytest.mark.parametrize("what", ["grads", "params"])
def test_a_list_that_another_thread_changes(what):
    params = [np.ones(50) for _ in range(20)]
    grads = [np.zeros(50) for _ in range(20)]
    original = list(params)
    opt = fastopt.SGD(params, lr=1.0)
    target = grads if what == "grads" else params
    stop = threading.Event()

    def change():
        while not stop.is_set():
            last = target.pop()
            target[3], saved = np.zeros(50), target[3]
            target[3] = saved
            target.append(last)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            try:
                opt.step(grads)
            except (ValueError, IndexError) as error:
                assert isinstance(error, IndexError) or what in str(error)
    finally:
        stop.set()
        thread.join()
    assert all((a == 1).all() for a in original)
    opt.step(grads)
