"""Bad input is refused with an error that names it, before anything is written."""

import numpy as np
import pytest
from rules import OPTIMIZERS, same_bits

import fastopt
from fastopt import functional

NAN, INF = float("nan"), float("inf")


def overlapping():
    whole = np.zeros(10)
    return [whole[:6], whole[4:]]


def twice():
    p = np.zeros(3)
    return {"a": p, "b": [p]}


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([np.zeros(3, int)], TypeError, r"params\[0\]: expected dtype float32, .* got int64; leave"),
        ([np.zeros(3, complex)], TypeError, r"params\[0\]: .*complex128"),
        ([np.zeros(3, object)], TypeError, r"params\[0\]: .*object; .* pass list\(params\)"),
        ({"W": np.zeros(3, ">f4")}, TypeError, r'params\["W"\]: .*>f4 \(another byte order\)'),
        ([[], [np.zeros((4, 4))[:, :2]]], ValueError, r"params\[1\]\[0\]: expected an array without gaps"),
        (np.zeros((4, 4, 4))[:, ::-2].T, ValueError, "params: expected an array without gaps"),
        (np.broadcast_to(np.zeros(3), (2, 3)), ValueError, "params: expected an array without gaps"),
        (np.lib.stride_tricks.as_strided(np.zeros(5), (3, 2), (8, 16)), ValueError, "without gaps"),
        (np.frombuffer(bytes(24)), ValueError, "params: expected a writeable"),
        (np.zeros(25, np.uint8)[1:].view(np.float64), ValueError, "params: .*aligned"),
        ([1.0, 2.0], TypeError, r"params\[0\]: expected a NumPy array .*got float"),
        (None, TypeError, "params: .*got NoneType"),
        ([], ValueError, "params: expected at least one array"),
        ({"a": [], "b": {}}, ValueError, "params: expected at least one array"),
        ([E := np.zeros((3, 4)), E.T], ValueError, r"params\[0\] and params\[1\] share .*tied weights once"),
        ([E, E[:, :2]], ValueError, r"params\[0\] and params\[1\] share memory"),
        ([E[:, :2], E[:, 2:]], ValueError, r"params\[0\]: expected an array without gaps"),
        (overlapping(), ValueError, r"params\[0\] and params\[1\] share memory"),
        (twice(), ValueError, r'params\["a"\] and params\["b"\]\[0\] are the same array'),
        ([{"params": np.zeros(3), "speed": 1}], ValueError, "unknown hyperparameter 'speed'"),
    ],
)
def test_parameters(params, error, message):
    with pytest.raises(error, match=message):
        fastopt.Adam(params)


W, B = np.zeros((3, 4), np.float32), np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ([[W, B]], ValueError, r"grads: expected 2 entries as the parameters have, got 1"),
        ([[W], {"b": B}], ValueError, r"grads\[0\]: expected 2 entries .*got 1"),
        ([[W, B], [B]], TypeError, r"grads\[1\]: expected a dict with keys \['b'\].*got list"),
        ([[W, B], {"c": B}], ValueError, r"grads\[1\]: expected keys \['b'\].*got \['c'\]"),
        ([W, {"b": B}], TypeError, r"grads\[0\]: expected a list of 2 .*got ndarray"),
        ([[W, [B]], {"b": B}], TypeError, r"grads\[0\]\[1\]: expected a NumPy array, got list"),
        ([[W, B], {"b": [B]}], TypeError, r'grads\[1\]\["b"\]: expected a NumPy array, got list'),
        (
            [[W.T, B], {"b": B}], ValueError,
            r"grads\[0\]\[0\]: expected shape \(3, 4\) as the parameter has, got \(4, 3\)",
        ),
        ([[W, B[:3]], {"b": B}], ValueError, r"grads\[0\]\[1\]: expected shape \(4,\)"),
        ([[W, B[None]], {"b": B}], ValueError, r"grads\[0\]\[1\]: expected shape \(4,\).*\(1, 4\)"),
        (
            [[W, B], {"b": B.astype(np.longdouble)}], TypeError,
            r'grads\[1\]\["b"\]: expected dtype float32, float64, bfloat16 or float16, got (long|float)',
        ),
        ([[W, B], {"b": B.astype(">f4")}], TypeError, r"expected dtype float32, .* got >f4"),
        ([[W, B], {"b": B.astype(np.int32)}], TypeError, r"expected dtype float32, .* got int32"),
    ],
)
def test_gradients(grads, error, message):
    params = [[W + 1, B + 1], {"b": B + 1}]
    opt = fastopt.Adam(params)
    opt.step([[W + 1, B + 1], {"b": B + 1}])
    before = [a.copy() for a in (*params[0], params[1]["b"], *opt.state[0].values())]
    with pytest.raises(error, match=message):
        opt.step(grads, zero_grad=True)
    after = [*params[0], params[1]["b"], *opt.state[0].values()]
    assert all(same_bits(a, b) for a, b in zip(before, after, strict=True))
    assert opt.steps == 1


@pytest.mark.parametrize("n", [3, 100_000])  # cached from step to step, and not
def test_a_gradient_of_none_is_never_the_one_of_the_last_step(n):
    p = np.ones((n, 2))
    opt = fastopt.SGD(p, lr=1.0)
    good = np.ones((n, 2))

    def check_unchanged():
        before = p.copy()
        opt.step(None)
        assert same_bits(p, before)

    check_unchanged()
    for last in (good, np.asfortranarray(good)):
        opt.step(last)
        check_unchanged()
    with pytest.raises(ValueError, match="shape"):
        opt.step(good[1:])
    check_unchanged()
    with pytest.raises(TypeError, match="g: expected"):
        functional.sgd_(p, None, lr=0.1)


def test_masked_arrays_are_refused():
    masked = np.ma.masked_greater(np.arange(4.0), 2)
    with pytest.raises(TypeError, match=r"params: .*MaskedArray"):
        fastopt.SGD(masked)
    with pytest.raises(TypeError, match=r"grads: .*MaskedArray"):
        fastopt.SGD(np.zeros(4)).step(masked)


def test_parameters_that_come_back_read_only_are_refused():
    """As after `joblib.load(..., mmap_mode="r")`."""
    opt = fastopt.SGD(np.zeros(3))
    groups = opt.__getstate__()["_params"]
    state = groups.__getstate__()
    frozen = np.frombuffer(bytes(24))
    state["trees"] = [frozen]
    with pytest.raises(ValueError, match="params: expected a writeable"):
        type(groups).__new__(type(groups)).__setstate__(state)


def test_a_list_that_shrinks_while_it_is_read():
    outer = [np.ones(3), np.ones(3)]

    class Hostile(list):
        def __len__(self):
            outer.clear()
            return 1

    params = [[np.zeros(3)], np.zeros(3)]
    opt = fastopt.SGD(params)
    outer[0] = Hostile([np.ones(3)])
    with pytest.raises((IndexError, ValueError)):
        opt.step(outer)
    assert not params[1].any()


def test_a_string_is_not_a_list_of_gradients():
    with pytest.raises(TypeError, match=r"grads: expected a list of 2 .*got str"):
        fastopt.SGD([np.zeros(3), np.zeros(3)]).step("ab")
    with pytest.raises(TypeError, match=r"grads: expected a list of 2 .*got ndarray"):
        fastopt.SGD([np.zeros(3), np.zeros(3)]).step(np.zeros((2, 3)))


def test_a_gradient_in_another_layout_is_copied_not_misread():
    for gradient in (
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24.0).reshape(3, 8)[:, ::2],
        np.arange(12.0)[::-1].reshape(3, 4),
        np.broadcast_to(np.arange(4.0), (3, 4)),
        np.arange(97, dtype=np.uint8)[1:].view(np.float64).reshape(3, 4),
    ):
        p = np.zeros((3, 4))
        fastopt.SGD(p, lr=1.0).step(gradient)
        assert (p == -gradient).all()


def test_a_gradient_that_overlaps_what_is_written_is_copied():
    whole = np.arange(20.0)
    p, g = whole[:10], whole[5:15]
    expected = p - g
    fastopt.SGD(p, lr=1.0).step(g)
    assert (p == expected).all()
    q = np.arange(5.0)
    opt = fastopt.SGD(q, lr=1.0, momentum=0.5, ema=0.5)
    opt.step(q)
    assert (q == 0).all()
    for written in (opt.state[0]["momentum_buffer"], opt.ema):
        twin = fastopt.SGD(r := q.copy(), lr=1.0, momentum=0.5)
        twin.load_state_dict({n: v for n, v in opt.state_dict().items() if n != "ema"})
        twin.step(written.copy())
        opt.step(written)
        assert same_bits(q, r)


def test_a_scalar_gradient_of_a_zero_dimensional_parameter():
    p = np.array(1.0, np.float32)
    opt = fastopt.SGD(p, lr=1.0)
    opt.step(np.float32(0.25))
    assert p == 0.75
    with pytest.raises(ValueError, match="zero_grad=True needs a writeable array"):
        opt.step(np.float32(0.25), zero_grad=True)
    assert p == 0.75


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (lambda p: [p[0], np.zeros(6)], r"grads\[0\]: zero_grad=True, but .* shares memory"),
        (lambda p: [p[0][::-1], np.zeros(6)], r"grads\[0\]: zero_grad=True, but .* shares memory"),
        (lambda p: [np.frombuffer(bytes(48)), np.zeros(6)], r"grads\[0\]: .*read-only"),
        (lambda p: [np.frombuffer(bytes(48))[::-1], np.zeros(6)], r"grads\[0\]: .*read-only"),
        (lambda p: 2 * [np.ones(6)], r"grads\[0\] and grads\[1\] share memory"),
    ],
)
def test_zero_grad(grads, message):
    params = [np.ones(6), np.ones(6)]
    opt = fastopt.SGD(params, lr=1.0)
    with pytest.raises(ValueError, match=message):
        opt.step(grads(params), zero_grad=True)
    assert all((p == 1).all() for p in params) and opt.steps == 0


@pytest.mark.parametrize(
    ("optimizer", "options", "error", "message"),
    [
        (fastopt.SGD, {"lr": -1.0}, ValueError, r"lr: expected a finite number in \[0, inf\), got -1.0"),
        (fastopt.SGD, {"lr": NAN}, ValueError, "lr: .*nan"),
        (fastopt.SGD, {"lr": INF}, ValueError, "lr: .*inf"),
        (fastopt.SGD, {"lr": 10**400}, ValueError, "lr: expected a finite number"),
        (fastopt.SGD, {"lr": "0.1"}, TypeError, "lr: expected a number, got '0.1'"),
        (fastopt.SGD, {"lr": True}, TypeError, "lr: expected a number, got True"),
        (fastopt.SGD, {"momentum": -0.1}, ValueError, "momentum: "),
        (fastopt.SGD, {"weight_decay": -0.1}, ValueError, "weight_decay: "),
        (fastopt.SGD, {"dampening": NAN}, ValueError, "dampening: "),
        (fastopt.SGD, {"nesterov": True}, ValueError, "nesterov: expected a momentum"),
        (fastopt.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov: "),
        (fastopt.SGD, {"nesterov": 1}, TypeError, "nesterov: expected True or False, got int"),
        (fastopt.SGD, {"convention": "jax"}, ValueError, "convention: expected one of torch, .*'jax'"),
        (fastopt.SGD, {"ema": 1.0}, ValueError, "ema: "),
        (fastopt.SGD, {"skip_nonfinite": 1}, TypeError, "skip_nonfinite: "),
        (fastopt.Adagrad, {"eps": -1e-9}, ValueError, "eps: "),
        (fastopt.Adagrad, {"lr_decay": -1.0}, ValueError, "lr_decay: "),
        (fastopt.Adagrad, {"initial_accumulator_value": -1.0}, ValueError, "initial_accumulator_value: "),
        (fastopt.Adagrad, {"initial_accumulator_value": abs}, TypeError, "initial_accumulator_value: "),
        (fastopt.RMSprop, {"alpha": 1.0}, ValueError, r"alpha: expected a finite number in \[0, 1\)"),
        (fastopt.Adam, {"betas": (0.9, 1.0)}, ValueError, r"betas: expected .* \[0, 1\), got 1.0"),
        (fastopt.Adam, {"betas": (-0.1, 0.9)}, ValueError, "betas: "),
        (fastopt.Adam, {"betas": (0.9, NAN)}, ValueError, "betas: "),
        (fastopt.Adam, {"betas": 0.9}, ValueError, "betas: expected a pair"),
        (fastopt.AdamW, {"eps": NAN}, ValueError, "eps: "),
    ],
)
def test_hyperparameters(optimizer, options, error, message):
    with pytest.raises(error, match=message):
        optimizer(np.zeros(3), **options)
    # and the same when it is set later
    name, value = next(iter(options.items()))
    opt = optimizer(np.zeros(3))
    if len(options) == 1 and name in opt.groups[0] and name != "nesterov":
        with pytest.raises(error, match=message):
            opt.groups[0][name] = value


def bad_hyperparameters():
    """For every hyperparameter of every optimizer: what it must not be."""
    for kind in OPTIMIZERS:
        for name, value in kind(np.zeros((2, 2))).groups[0].hyperparameters().items():
            if name in kind.RULE.REFUSED_OPTIONS:
                continue
            label = f"{kind.__name__}-{name}"
            words = kind.RULE.CONVENTIONS if name == "convention" else kind.RULE.CHOICES.get(name)
            if words:
                yield pytest.param(kind, name, "nonsense", ValueError, id=label)
            elif name not in kind.RULE.RANGES:
                yield pytest.param(kind, name, 1, TypeError, id=label)
            elif isinstance(value, tuple):
                for i, (low, _, *_) in enumerate(kind.RULE.RANGES[name]):
                    for bad in (NAN, INF) if low == -INF else (NAN, INF, low - 1e-3):
                        changed = [*value[:i], bad, *value[i + 1 :]]
                        yield pytest.param(kind, name, changed, ValueError, id=f"{label}[{i}]-{bad}")
                yield pytest.param(kind, name, value[:1], ValueError, id=f"{label}-short")
                yield pytest.param(kind, name, ("0.1", *value[1:]), TypeError, id=f"{label}-str")
            else:
                low, high, *_ = kind.RULE.RANGES[name]
                bounds = [b for b in (low - 1e-3, high) if abs(b) < INF]
                for bad in (NAN, INF, -INF, *bounds):
                    yield pytest.param(kind, name, bad, ValueError, id=f"{label}-{bad}")
                yield pytest.param(kind, name, "0.1", TypeError, id=f"{label}-str")


@pytest.mark.parametrize(("kind", "name", "bad", "error"), list(bad_hyperparameters()))
def test_every_hyperparameter_has_a_range(kind, name, bad, error):
    with pytest.raises(error, match=f"^{name}: expected"):
        kind(np.zeros((2, 2)), **{name: bad})
    opt = kind(np.zeros((2, 2)))
    before = opt.groups[0][name]
    with pytest.raises(error, match=f"^{name}: expected"):
        opt.groups[0][name] = bad
    assert opt.groups[0][name] == before
    if name not in ("initial_accumulator_value", "d0") and isinstance(before, float):
        p = np.ones((2, 2))
        opt = kind(p, **{name: lambda step: bad})
        with pytest.raises(error, match=f"^{name}: expected"):
            opt.step(np.ones((2, 2)))
        assert (p == 1).all() and opt.steps == 0


def test_groups_refuse_unknown_names_and_deletion():
    group = fastopt.SGD(np.zeros(3)).groups[0]
    with pytest.raises(ValueError, match="speed: unknown hyperparameter"):
        group["speed"] = 1.0
    with pytest.raises(TypeError, match="lr: a hyperparameter can be set"):
        del group["lr"]
    with pytest.raises(ValueError, match="params: "):
        group["params"] = np.zeros(3)
    with pytest.raises(ValueError, match="lr: "):
        group |= {"lr": -1.0}
    assert group["lr"] == 1e-3


@pytest.mark.parametrize("group", [np.zeros(3), {}, {"lr": 1.0}])
def test_a_group_to_be_added_needs_params(group):
    with pytest.raises(TypeError, match="group: expected a dict with the key 'params'"):
        fastopt.SGD(np.zeros(3)).add_param_group(group)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_norm": -1.0}, ValueError, "max_norm: "),
        ({"max_norm": NAN}, ValueError, "max_norm: "),
        ({"clip_value": -1.0}, ValueError, "clip_value: "),
        ({"clip_value": "1"}, TypeError, "clip_value: "),
        ({"grad_scale": INF}, ValueError, "grad_scale: "),
        ({"zero_grad": "yes"}, TypeError, "zero_grad: "),
    ],
)
def test_options_of_a_step(options, error, message):
    p = np.ones(3)
    opt = fastopt.Adam(p)
    with pytest.raises(error, match=message):
        opt.step(np.ones(3), **options)
    assert (p == 1).all() and opt.steps == 0


def spoiled(**changes):
    """A good state_dict of Adam over two arrays, but for one entry."""
    opt = fastopt.Adam([np.zeros(3), np.zeros((2, 2), np.float32)])
    opt.step([np.zeros(3), np.zeros((2, 2), np.float32)])
    saved = opt.state_dict()
    for path, value in changes.items():
        inner = saved
        *way, last = path.split("__")
        for step in way:
            inner = inner[int(step) if isinstance(inner, list) else step]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return saved


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            fastopt.SGD([np.zeros(3), np.zeros((2, 2), np.float32)]).state_dict(),
            "expected one of Adam, got .*SGD",
        ),
        (
            fastopt.Adam([np.zeros(3)]).state_dict(),
            r"missing: state\['1'\]; strict=False",
        ),
        (
            spoiled(state__0__exp_avg=np.zeros(4)),
            r"state\['0'\]\['exp_avg'\]: expected float64 of shape \(3,\)",
        ),
        (spoiled(state__1__exp_avg=np.zeros((2, 2))), r"expected float32 of shape \(2, 2\), got float64"),
        (spoiled(state__1__exp_avg=None), r"missing: state\['1'\]\['exp_avg'\]"),
        (spoiled(state__1=None), r"missing: state\['1'\]"),
        (spoiled(steps=-1), "steps"),
        (spoiled(groups__0__params=None), r"\['groups'\]\[0\]: expected a dict with the keys"),
        (spoiled(state=[None, None]), r"\['state'\]: expected a dict"),
        (spoiled(groups__0__lr=-1.0), "lr: "),
        (spoiled(groups=None), "expected a dict with the keys"),
        (spoiled(ema={"0": np.zeros(3)}), "unexpected: ema"),
        ([], "expected a dict"),
    ],
)
def test_state_dict(saved, message):
    params = [np.ones(3), np.ones((2, 2), np.float32)]
    opt = fastopt.Adam(params, lr=0.5)
    opt.step([np.ones(3), np.ones((2, 2), np.float32)])
    before = opt.state_dict()
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    after = opt.state_dict()
    assert after["groups"] == before["groups"] and after["steps"] == 1
    for a, b in zip(after["state"].values(), before["state"].values(), strict=True):
        assert all(same_bits(np.asarray(a[name]), np.asarray(b[name])) for name in b)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, g, s: functional.sgd_(p, g[:2], lr=0.1), ValueError, r"g: expected shape \(3,\)"),
        (lambda p, g, s: functional.sgd_(p, g.astype("i4"), lr=0.1), TypeError, "g: expected dtype float32"),
        (lambda p, g, s: functional.sgd_(p, [1.0], lr=0.1), TypeError, "g: expected a NumPy array"),
        (lambda p, g, s: functional.sgd_(p, g, lr=-0.1), ValueError, "lr: "),
        (lambda p, g, s: functional.momentum_(p, g, s[:2], lr=0.1), ValueError, r"buf: expected .*\(3,\)"),
        (lambda p, g, s: functional.momentum_(p, g, p, lr=0.1), ValueError, "same array"),
        (lambda p, g, s: functional.rmsprop_(p, g, s, lr=0.1, momentum=0.9), ValueError, "buf: "),
        (lambda p, g, s: functional.sign_sgd_(p, g, lr=0.1, momentum=0.9), ValueError, "buf: "),
        (lambda p, g, s: functional.adam_(p, g, None, s, lr=0.1, step=1), ValueError, "got exp_avg_sq"),
        (lambda p, g, s: functional.adam_(p, g, s, s.copy(), lr=0.1), TypeError, r"adam_\(\): .*'step'"),
        (lambda p, g, s: functional.adam_(p, g, s, s.copy(), lr=0.1, step=0), ValueError, "step: "),
        (lambda p, g, s: functional.adam_(p, g, s, s.copy(), lr=0.1, step=1.5), ValueError, "step: "),
        (
            lambda p, g, s: functional.adam_(p, g, s, s.astype("f4"), lr=0.1, step=1), ValueError,
            "exp_avg_sq: expected float64",
        ),
    ],
)
def test_functions(call, error, message):
    p, g, s = np.ones(3), np.ones(3), np.zeros(3)
    with pytest.raises(error, match=message):
        call(p, g, s)
    assert (p == 1).all() and (s == 0).all()
