"""Every convention has the defaults of its library; with options, see `test_parity`."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from libraries import SHAPES, assert_same, start

import fastopt
from fastopt import solver

# Of keras, which has not yet met NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 200
SPEAKERS = [
    kind
    for name in fastopt.optimizers.__all__
    if len((kind := getattr(fastopt, name)).RULE.CONVENTIONS) > 1
]
CELLS = [(kind, convention) for kind in SPEAKERS for convention in kind.RULE.CONVENTIONS]


def walk(kind, **options):
    """Where our optimizer gets."""
    params, noise = start(SHAPES, STEPS)
    opt = kind(params, **options)
    for step in noise:
        opt.step([np.array(p + n) for p, n in zip(params, step, strict=True)])
    return params


# --- keras -------------------------------------------------------------------------------------------

KERAS = {
    fastopt.SGD: "SGD", fastopt.Adagrad: "Adagrad", fastopt.Adadelta: "Adadelta", fastopt.RMSprop: "RMSprop",
    fastopt.Adam: "Adam", fastopt.AdamW: "AdamW", fastopt.Adamax: "Adamax", fastopt.NAdam: "Nadam",
    fastopt.FTRL: "Ftrl", fastopt.Lion: "Lion", fastopt.LAMB: "Lamb",
}


def walk_keras(keras, name, **options):
    to_numpy = keras.ops.convert_to_numpy
    params, noise = start(SHAPES, STEPS)
    variables = [keras.Variable(p, dtype="float64") for p in params]
    opt = getattr(keras.optimizers, name)(**options)
    for step in noise:
        grads = [to_numpy(v) + n for v, n in zip(variables, step, strict=True)]
        opt.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)
    return [to_numpy(v) for v in variables]


@pytest.mark.parametrize("kind", KERAS, ids=lambda kind: kind.__name__)
def test_keras_by_default(kind, keras):
    assert_same(walk(kind, convention="keras"), walk_keras(keras, KERAS[kind]))


def test_keras_decays_by_the_learning_rate_of_the_step(keras):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    theirs = walk_keras(keras, "Adam", learning_rate=schedule, weight_decay=0.1)
    ours = walk(fastopt.Adam, lr=lambda k: 0.1 * 0.5 ** (k / 10), weight_decay=0.1, convention="keras")
    assert_same(ours, theirs)


# --- optax -------------------------------------------------------------------------------------------

OPTAX = {
    fastopt.SGD: "sgd", fastopt.Adagrad: "adagrad", fastopt.Adadelta: "adadelta",
    fastopt.RMSprop: "rmsprop", fastopt.Adam: "adam", fastopt.AdamW: "adamw", fastopt.Adamax: "adamax",
    fastopt.NAdam: "nadam", fastopt.RAdam: "radam", fastopt.Lion: "lion", fastopt.LAMB: "lamb",
}


def walk_optax(optax, transformation):
    import jax
    params, noise = start(SHAPES, STEPS)
    params = [jax.numpy.asarray(p) for p in params]
    state, update = transformation.init(params), jax.jit(transformation.update)
    for step in noise:
        grads = [p + n for p, n in zip(params, step, strict=True)]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return [np.asarray(p) for p in params]


@pytest.mark.parametrize("kind", OPTAX, ids=lambda kind: kind.__name__)
def test_optax_by_default(kind, optax):
    """But for the learning rate, which optax always asks for."""
    theirs = getattr(optax, OPTAX[kind])(0.01)
    assert_same(walk(kind, lr=0.01, convention="optax"), walk_optax(optax, theirs))


def test_a_learning_rate_that_changes_inside_the_velocity_of_optax(optax):
    theirs = optax.rmsprop(lambda k: 0.1 * 0.5 ** (k.astype(float) / 10), momentum=0.9)
    ours = walk(fastopt.RMSprop, lr=lambda k: 0.1 * 0.5 ** (k / 10), momentum=0.9, convention="optax")
    assert_same(ours, walk_optax(optax, theirs))


# --- scikit-learn ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "solver_name"), [(fastopt.SGD, "sgd"), (fastopt.Adam, "adam")])
def test_sklearn_by_default(kind, solver_name, sklearn):
    """As the estimators begin, whose numbers are the ones that people see."""
    from sklearn.neural_network import MLPClassifier
    net = MLPClassifier(solver=solver_name)
    params, noise = start(SHAPES, STEPS)
    if solver_name == "sgd":
        opt = sklearn.SGDOptimizer(
            params, net.learning_rate_init, net.learning_rate, net.momentum, net.nesterovs_momentum
        )
    else:
        opt = sklearn.AdamOptimizer(params, net.learning_rate_init, net.beta_1, net.beta_2, net.epsilon)
    for step in noise:
        opt.update_params(params, [p + n for p, n in zip(params, step, strict=True)])
    assert_same(walk(kind, convention="sklearn"), params)


# --- The article -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options", "update", "states"), [
    (fastopt.SGD, {}, "vanilla_update", 0),
    (fastopt.SGD, {"momentum": 0.9}, "momentum_update", 1),
    (fastopt.Adagrad, {}, "adagrad_update", 1),
    (fastopt.RMSprop, {}, "rmsprop_update", 1),
    (fastopt.Adam, {}, "adam_update", 2),
])
def test_the_article_by_default(kind, options, update, states):
    params, noise = start(SHAPES, STEPS)
    held = [[[np.zeros_like(p) for p in params]] for _ in range(states)]
    for t, step in enumerate(noise, 1):
        grads = [np.array(p + n) for p, n in zip(params, step, strict=True)]
        counted = {"t": t} if update == "adam_update" else {}
        getattr(solver, update)(*held, [params], [grads], **counted)
    assert_same(walk(kind, convention="article", **options), params)


# --- torch -------------------------------------------------------------------------------------------


def theirs_of(kind):
    return getattr(pytest.importorskip("torch", reason="torch is not installed").optim, kind.__name__)


IN_TORCH = [kind for kind in SPEAKERS if kind not in (fastopt.FTRL, fastopt.Lion, fastopt.LAMB)]


@pytest.mark.parametrize("kind", IN_TORCH, ids=lambda kind: kind.__name__)
def test_the_signature_has_the_defaults_of_torch(kind):
    """The paths are compared in `test_parity`."""
    theirs = inspect.signature(theirs_of(kind)).parameters
    ours = inspect.signature(kind).parameters
    common = ours.keys() & theirs.keys() - {"params"}
    assert {n: ours[n].default for n in common} == {n: theirs[n].default for n in common}
    assert theirs.keys() - ours.keys() <= {
        "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"
    }


# --- What is not given -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "convention"), CELLS, ids=str)
def test_what_is_given_is_kept_and_what_is_not_is_the_dialects(kind, convention):
    defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
    defaults |= kind.RULE.CONVENTIONS[convention]
    group = kind(np.zeros(3), convention=convention).groups[0]
    for name, value in group.hyperparameters().items():
        if name not in ("convention", "independent_weight_decay"):
            assert value == defaults[name]
    for name in kind.RULE.CONVENTIONS[convention]:
        torchs = inspect.signature(kind).parameters[name].default
        given = {name: torchs}
        if (kind, name) == (fastopt.FTRL, "initial_accumulator_value"):
            given["beta"] = 1.0
        assert kind(np.zeros(3), convention=convention, **given).groups[0][name] == torchs


def test_arguments_may_stand_in_their_places():
    opt = fastopt.RMSprop(np.zeros(3), 0.5, 0.99, convention="keras")
    assert (opt.groups[0]["lr"], opt.groups[0]["alpha"], opt.groups[0]["eps"]) == (0.5, 0.99, 1e-7)
    assert "eps=1e-07" in repr(opt) and "convention='keras'" in repr(opt)


def test_a_group_begins_as_the_optimizer_does():
    opt = fastopt.Adam([{"params": np.zeros(3)}, {"params": np.zeros(2), "eps": 1e-3}], convention="keras")
    assert [group["eps"] for group in opt.groups] == [1e-7, 1e-3]
    opt.add_param_group({"params": np.zeros(1)})
    assert opt.groups[2]["eps"] == 1e-7


def test_a_class_of_ones_own_speaks_as_its_base():
    class Mine(fastopt.Adam):
        def __init__(self, params, rate):
            super().__init__(params, rate, convention="keras")

    group = Mine(np.zeros(3), 0.5).groups[0]
    assert (group["lr"], group["eps"]) == (0.5, 1e-7)


@pytest.mark.parametrize("convention", ["theano", "sklearn", ["keras"], None])
def test_a_dialect_that_the_rule_does_not_speak(convention):
    with pytest.raises(ValueError, match="convention: expected one of torch, keras, optax, got"):
        fastopt.Lion(np.zeros(3), convention=convention)


def test_what_is_missing_is_still_missed():
    with pytest.raises(TypeError, match="params"):
        fastopt.Adam()


# --- The page ----------------------------------------------------------------------------------------

ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| (.+) \| (.+) \|$", re.M)


def numbers_of(kind, convention):
    """Return the defaults of a row: for torch all that differ anywhere, for others those that they set."""
    signature = inspect.signature(kind).parameters
    elsewhere = [n for n in signature if any(n in numbers for numbers in kind.RULE.CONVENTIONS.values())]
    numbers = {n: signature[n].default for n in elsewhere}
    if convention != "torch":
        own = kind.RULE.CONVENTIONS[convention]
        numbers = {n: own[n] for n in elsewhere if n in own}
    return ", ".join(f"`{n}={value!r}`" for n, value in numbers.items()) or "the same"


def test_the_page_has_every_dialect_and_its_numbers():
    text = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text(encoding="utf-8")
    rows = {(kind, convention): numbers for kind, convention, _, numbers in ROW.findall(text)}
    expected = {(kind.__name__, convention): numbers_of(kind, convention) for kind, convention in CELLS}
    assert rows == expected
    assert list(rows) == list(expected)


@pytest.mark.parametrize("kind", SPEAKERS, ids=lambda kind: kind.__name__)
def test_the_docstring_names_the_dialects(kind):
    named = re.search(r"convention : \{(.*)\}", kind.__doc__)[1]
    assert named.replace('"', "").split(", ") == list(kind.RULE.CONVENTIONS)
