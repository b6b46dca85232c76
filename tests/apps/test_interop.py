"""Runs that move to another library mid-training, in both directions, for every shared optimizer."""

import sys
import types

import numpy as np
import pytest
from libraries import LIBRARIES, SHAPES, Torch, assert_same, gradients, make_optimizer, start

import fastopt
from fastopt import interop

# Keras calls a deprecated function of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 20
HALF = STEPS // 2
# An optax state has no hyperparameters, and lacks the scalar state of schedule-free optimizers and Prodigy.
NOT_CONVERTIBLE = {
    "optax": ("sgd, schedule-free", "adamw, schedule-free", "prodigy of optax", "signum", "sign_sgd"),
}
CELLS = [
    (name, rule)
    for name, library in LIBRARIES.items()
    for rule in library.rows
    if rule.name not in NOT_CONVERTIBLE.get(name, ())
    and not (rule.options.get("maximize") and name in ("keras", "sklearn"))     # without this option
]
MATRICES = [(4, 3), (3, 5)]


def run(foreign, rule, noise):
    for step in noise:
        foreign.step(gradients(foreign.values(), step, rule, foreign))


def run_fastopt(opt, params, rule, noise):
    for step in noise:
        opt.step(gradients(params, step, rule))


def library_then_fastopt(kind, module, rule, shapes, dtype=np.float64):
    """Parameters and states after 10 steps in the library and 10 in fastopt, and after 20 in the library."""
    params, noise = start(shapes, STEPS, dtype)
    foreign, full_run = kind(module, rule, params), kind(module, rule, params)
    run(full_run, rule, noise)
    run(foreign, rule, noise[:HALF])
    opt = optimizer_with_other_state(kind, rule, params)
    foreign.load_into(opt)
    for p, value in zip(params, foreign.values(), strict=True):
        p[...] = value
    run_fastopt(opt, params, rule, noise[HALF:])
    return [*params, *arrays_of(opt)], [*full_run.values(), *foreign_arrays(full_run, rule, params)]


def fastopt_then_library(kind, module, rule, shapes, dtype=np.float64):
    """Parameters and states after 10 steps in fastopt and 10 in the library, and after 20 in fastopt."""
    params, noise = start(shapes, STEPS, dtype)
    full_params = [p.copy() for p in params]
    opt = make_optimizer(rule, kind.convention, params)
    run_fastopt(opt, params, rule, noise[:HALF])
    foreign = kind(module, rule, params)
    foreign.load_from(opt)
    run(foreign, rule, noise[HALF:])
    full_run = make_optimizer(rule, kind.convention, full_params)
    run_fastopt(full_run, full_params, rule, noise)
    return [*foreign.values(), *foreign_arrays(foreign, rule, params)], [*full_params, *arrays_of(full_run)]


def foreign_arrays(foreign, rule, params):
    """State arrays of the library's optimizer, under fastopt's names."""
    opt = optimizer_with_other_state(foreign, rule, [p.copy() for p in params])
    foreign.load_into(opt)
    return arrays_of(opt)


def arrays_of(opt):
    return [array for state in opt.state for _, array in sorted(state.items())]


def optimizer_with_other_state(kind, rule, params):
    """The same optimizer with another state, and another learning rate if hyperparameters are converted."""
    more = {} if kind.convention == "optax" else {"lr": 0.5}
    opt = make_optimizer(rule, kind.convention, [p.copy() for p in params], **more)
    opt.step([np.ones_like(p) for p in params])
    moved = make_optimizer(rule, kind.convention, params, **more)
    moved.load_state_dict(opt.state_dict())
    return moved


@pytest.mark.parametrize(("library", "rule"), CELLS, ids=str)
def test_from_library_mid_run(library, rule, request):
    assert_same(*library_then_fastopt(LIBRARIES[library], request.getfixturevalue(library), rule, SHAPES))


@pytest.mark.parametrize(("library", "rule"), CELLS, ids=str)
def test_to_library_mid_run(library, rule, request):
    assert_same(*fastopt_then_library(LIBRARIES[library], request.getfixturevalue(library), rule, SHAPES))


@pytest.mark.parametrize("rule", Torch.matrix_rows, ids=str)
@pytest.mark.parametrize("way", [library_then_fastopt, fastopt_then_library])
def test_matrix_optimizers(rule, way, torch, monkeypatch):
    """torch's Muon rounds to bfloat16; the test disables this."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    assert_same(*way(Torch, torch, rule, MATRICES), atol=1e-12)


@pytest.mark.parametrize("rule", Torch.rows, ids=str)
@pytest.mark.parametrize("way", [library_then_fastopt, fastopt_then_library])
def test_single_precision(rule, way):
    """torch's default, in which its scalars are float32 as well."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert_same(*way(Torch, torch, rule, SHAPES, np.float32), rtol=2e-3, atol=2e-5)


# --- torch -------------------------------------------------------------------------------------------


def pair(torch, kind="Adam", **options):
    """A fastopt and a torch optimizer of equal parameters, and the tensors."""
    params = [np.arange(3.0), np.ones((2, 2))]
    tensors = [torch.tensor(p).requires_grad_() for p in params]
    return getattr(fastopt, kind)(params, **options), getattr(torch.optim, kind)(tensors, **options), tensors


def step_torch(torch_opt, tensors, scale=1.0):
    for q in tensors:
        q.grad = scale * torch_ones(q)
    torch_opt.step()


def torch_ones(q):
    return q.detach() * 0 + 1


def test_torch_round_trip(torch):
    opt, torch_opt, tensors = pair(torch, lr=0.1)
    step_torch(torch_opt, tensors)
    opt.load_state_dict(fastopt.interop.from_torch(torch_opt.state_dict()))
    assert opt.steps == 1
    torch_opt.load_state_dict(fastopt.interop.to_torch(opt))
    assert torch_opt.state_dict()["state"][0]["step"].item() == 1.0


@pytest.mark.parametrize("rule", Torch.rows, ids=str)
def test_before_the_first_step(rule, torch):
    """Most torch optimizers have no state yet; loading it resets a fastopt optimizer."""
    params, noise = start(SHAPES, 3)
    foreign, opt = Torch(torch, rule, params), optimizer_with_other_state(Torch, rule, params)
    foreign.load_into(opt)
    assert opt.steps == 0
    run(foreign, rule, noise)
    run_fastopt(opt, params, rule, noise)
    assert_same(params, foreign.values())
    unstepped = Torch(torch, rule, params)
    unstepped.load_from(make_optimizer(rule, "torch", params))
    run(unstepped, rule, noise)
    run_fastopt(make_optimizer(rule, "torch", params), params, rule, noise)
    assert_same(params, unstepped.values())


def test_initial_accumulator_value_is_converted(torch):
    """torch initializes the accumulators in the constructor."""
    opt = fastopt.Adagrad(np.ones(3), initial_accumulator_value=0.5)
    q = torch.ones(3, requires_grad=True)
    torch_opt = torch.optim.Adagrad([q])
    torch_opt.load_state_dict(interop.to_torch(opt))
    q.grad = torch.ones(3)
    torch_opt.step()
    assert torch_opt.state[q]["sum"].tolist() == [1.5] * 3


def test_arrays_that_torch_has_before_the_first_step(torch):
    """A state dict does not have the arrays of a parameter without state, the optimizer has."""
    opt = fastopt.Adagrad(np.ones(3), initial_accumulator_value=0.5)
    with pytest.raises(ValueError, match=r"state\[0\]: expected arrays, which Adagrad of torch has bef"):
        interop.to_torch(opt.state_dict())
    opt.step(np.ones(3))
    opt.load_state_dict(interop.from_torch(torch.optim.Adagrad([torch.ones(3)]).state_dict()))
    assert opt.steps == 0 and (opt.state[0]["sum"] == 0.0).all()


def test_step_count_per_group(torch):
    """One group is added later, and one has not taken a step."""
    params, noise = start([(3,), (2, 2), (4,)], STEPS)
    tensors = [torch.tensor(p).requires_grad_() for p in params]
    options = [{"lr": 0.1}, {"betas": (0.8, 0.9)}, {"weight_decay": 0.5}]
    torch_opt = torch.optim.Adam([{"params": [tensors[0]], **options[0]}])
    opt = fastopt.Adam([{"params": [p], **o} for p, o in zip(params, options, strict=True)])

    def step(k):
        for q, n in zip(tensors, noise[k], strict=True):
            q.grad = q.detach() + torch.tensor(n)
        torch_opt.step()

    for k in range(5):
        step(k)
    torch_opt.add_param_group({"params": [tensors[1]], **options[1]})
    for k in range(5, HALF):
        step(k)
    torch_opt.add_param_group({"params": [tensors[2]], **options[2]})
    opt.load_state_dict(interop.from_torch(torch_opt.state_dict()))
    assert [state.steps for state in opt.state] == [10, 5, 0]
    back = interop.to_torch(opt)
    for p, q in zip(params, tensors, strict=True):
        p[...] = q.detach().numpy()
    for k in range(HALF, STEPS):
        step(k)
        opt.step([[p + n] for p, n in zip(params, noise[k], strict=True)])
    assert_same(params, [q.detach().numpy() for q in tensors])
    assert [len(group["params"]) for group in back["param_groups"]] == [1, 1, 1]
    assert [back["state"][k]["step"].item() for k in (0, 1)] == [10.0, 5.0] and 2 not in back["state"]


@pytest.mark.parametrize("rule", [rule for rule in Torch.rows if rule.torch != "SGD"], ids=str)
def test_step_count_per_parameter(rule, torch):
    """Parameters of one group that had no gradient in some steps, in both directions."""
    params, noise = start(SHAPES, STEPS)
    foreign, full_run = Torch(torch, rule, params), Torch(torch, rule, params)

    def step_foreign(foreign, k):
        for i, (q, n) in enumerate(zip(foreign.params, noise[k], strict=True)):
            q.grad = None if k % 3 == i else q.detach() + torch.tensor(n)
        foreign.optimizer.step()

    for k in range(STEPS):
        step_foreign(full_run, k)
    for k in range(HALF):
        step_foreign(foreign, k)
    opt = optimizer_with_other_state(foreign, rule, params)
    foreign.load_into(opt)
    for p, value in zip(params, foreign.values(), strict=True):
        p[...] = value
    for k in range(HALF, HALF + 5):
        opt.step([None if k % 3 == i else p + noise[k][i] for i, p in enumerate(params)])
    resumed = Torch(torch, rule, params)
    resumed.load_from(opt)
    for k in range(HALF + 5, STEPS):
        step_foreign(resumed, k)
    assert_same(resumed.values(), full_run.values())
    for each in (resumed, full_run):
        states = each.optimizer.state_dict()["state"]
        assert [states[k]["step"].item() for k in range(3)] == [13, 13, 14]


@pytest.mark.parametrize("library", ["keras", "sklearn", "optax"])
def test_libraries_with_one_step_count_take_no_other(library, request):
    module = request.getfixturevalue(library)
    params = [np.ones(3), np.ones(2)]
    opt = fastopt.Adam(params, convention=library)
    opt.step([np.ones(3), None])
    with pytest.raises(ValueError, match=r"expected the same step for all parameters, .* got 1 and 0"):
        if library == "keras":
            interop.to_keras(opt, [module.Variable(p, dtype="float64") for p in params])
        elif library == "sklearn":
            interop.to_sklearn(opt, params)
        else:
            interop.to_optax(opt, module.adam(0.1).init(params))


def test_schedules_are_not_converted(torch):
    """The loading optimizer keeps its schedules; the converted value is that of the next step."""
    rate = fastopt.schedules.Exponential(0.1, 0.5)
    _, torch_opt, tensors = pair(torch, lr=0.3)
    step_torch(torch_opt, tensors)
    opt = fastopt.Adam([np.arange(3.0), np.ones((2, 2))], lr=rate, betas=(lambda k: 0.5, 0.9))
    opt.load_state_dict(interop.from_torch(torch_opt.state_dict()))
    assert opt.groups[0]["lr"] is rate and opt.steps == 1
    converted = interop.to_torch(opt)["param_groups"][0]
    assert converted["lr"] == rate(1) and converted["betas"] == (0.5, 0.9)
    with pytest.raises(ValueError, match=r"\['groups'\]\[0\]: expected betas, got none; if it is sched"):
        interop.to_torch(opt.state_dict())


def test_torch_only_options_are_ignored(torch):
    opt, torch_opt, tensors = pair(torch)
    step_torch(torch_opt, tensors)
    torch.optim.lr_scheduler.StepLR(torch_opt, 1)
    torch_opt.param_groups[0]["name"] = "all"
    saved = torch_opt.state_dict()
    saved["param_groups"][0] |= {"foreach": True, "lr": torch.tensor(0.25)}
    opt.load_state_dict(interop.from_torch(saved))
    assert opt.groups[0]["lr"] == 0.25
    assert interop.to_torch(opt)["param_groups"][0]["foreach"] is None


def test_arrays_are_copies(torch):
    opt, torch_opt, tensors = pair(torch)
    step_torch(torch_opt, tensors)
    loaded = interop.from_torch(torch_opt.state_dict())
    opt.load_state_dict(loaded)
    converted = interop.to_torch(loaded)
    before = loaded["state"][0]["exp_avg"].copy()
    step_torch(torch_opt, tensors)
    converted["state"][0]["exp_avg"].zero_()
    assert (loaded["state"][0]["exp_avg"] == before).all() and (opt.state[0]["exp_avg"] == before).all()


def test_adam_and_adamw_before_torch_2_7(torch):
    """Their groups do not have `decoupled_weight_decay`."""
    opt, torch_opt, tensors = pair(torch, "AdamW")
    step_torch(torch_opt, tensors)
    saved = torch_opt.state_dict()
    assert interop.from_torch(saved)["optimizer"] == "AdamW"
    del saved["param_groups"][0]["decoupled_weight_decay"]
    with pytest.raises(ValueError, match="optimizer: expected 'Adam' or 'AdamW'"):
        interop.from_torch(saved)
    opt.load_state_dict(interop.from_torch(saved, "AdamW"))
    assert opt.steps == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"param_groups": {"grad_averaging": True}}, r"expected options of .*Adam, got 'grad_averaging'"),
    ({"state": {7: {}}}, r"\['state'\]: expected parameters of the groups, got 7"),
    ({"step": 1.5}, r"\['state'\]\[0\]\['step'\]: expected a non-negative integer, got 1.5"),
    ({"step": float("nan")}, r"\['step'\]: expected a non-negative integer, got nan"),
    ({"step": -1}, r"\['step'\]: expected a non-negative integer, got -1"),
    ({"master_param": np.ones(3)}, r"unexpected: state\['0'\]\['master_param'\]"),
])
def test_what_torch_states_should_not_have(change, message, torch):
    opt, torch_opt, tensors = pair(torch)
    step_torch(torch_opt, tensors)
    saved = torch_opt.state_dict()
    if "param_groups" in change:
        saved["param_groups"][0] |= change["param_groups"]
    elif "state" in change:
        saved["state"] |= change["state"]
    else:
        saved["state"][0] |= change
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(interop.from_torch(saved))
    assert opt.steps == 0


def test_the_name_of_the_optimizer_must_agree(torch):
    _, torch_opt, _ = pair(torch, "AdamW")
    with pytest.raises(ValueError, match="optimizer: expected 'AdamW' for this state_dict, got 'Adam'"):
        interop.from_torch(torch_opt.state_dict(), "Adam")


def test_sparse_adam_is_adam_with_keras_convention(torch):
    rng = np.random.default_rng(0)
    p, grads = rng.standard_normal((4, 3)), rng.standard_normal((9, 4, 3))
    q = torch.tensor(p).requires_grad_()
    torch_opt = torch.optim.SparseAdam([q], lr=0.1, eps=1e-3)

    def step(g):
        q.grad = torch.tensor(g).to_sparse(1)
        torch_opt.step()

    for g in grads[:3]:
        step(g)
    opt = fastopt.Adam([p])
    opt.load_state_dict(interop.from_torch(torch_opt.state_dict()))
    assert opt.groups[0]["convention"] == "keras"
    p[...] = q.detach().numpy()
    for g in grads[3:6]:
        step(g)
        opt.step([g])
    assert_same([p], [q.detach().numpy()])
    torch_opt.load_state_dict(interop.to_torch(opt, "SparseAdam"))
    for g in grads[6:]:
        step(g)
        opt.step([g])
    assert_same([p], [q.detach().numpy()])


def test_from_torch_without_torch(monkeypatch):
    """NumPy arrays may take the place of tensors."""
    monkeypatch.setitem(sys.modules, "torch", None)
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "nesterov": False, "params": ["w"]}
    saved = {"state": {"w": {"momentum_buffer": np.ones(3)}}, "param_groups": [group]}
    opt = fastopt.SGD(np.zeros(3))
    opt.load_state_dict(interop.from_torch(saved))
    assert opt.steps == 1 and opt.groups[0]["momentum"] == 0.9
    assert (opt.state[0]["momentum_buffer"] == 1).all()


@pytest.mark.parametrize(("module", "function", "more", "name"), [
    ("torch", interop.to_torch, [], "torch"),
    ("keras", interop.to_keras, [[]], "keras"),
    ("sklearn.neural_network._stochastic_optimizers", interop.to_sklearn, [[]], "scikit-learn"),
    ("jax.numpy", interop.to_optax, [()], "optax"),
])
def test_import_error_names_the_library(module, function, more, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"this needs {name}: pip install {name}"):
        function(fastopt.Adam(np.ones(3)), *more)


ADAM = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
        "decoupled_weight_decay": False, "params": [0]}


def adam_state(array=None, **more):
    array = np.ones(3) if array is None else array
    state = {"step": 1.0, "exp_avg": array, "exp_avg_sq": array}
    return {"state": {0: state}, "param_groups": [ADAM | more]}


class Bfloat16:
    """A tensor of a dtype that NumPy does not have."""

    dtype = "torch.bfloat16"

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize(("saved", "error", "message"), [
    (None, TypeError, "state_dict: expected a dict with the keys state, param_groups, got NoneType"),
    ({"groups": []}, TypeError, "got .*groups"),
    ({"state": {}, "param_groups": []}, ValueError, "expected groups of one optimizer"),
    ({"state": {}, "param_groups": [{"lr": 1.0}]}, TypeError, "expected a dict with the keys params, lr"),
    ({"state": {}, "param_groups": [{"lr": 1, "params": [0], "max_iter": 20}]}, ValueError,
     "expected one of Muon, .*, got groups with lr, params, max_iter"),
    ({"state": {}, "param_groups": [ADAM, ADAM | {"decoupled_weight_decay": True}]}, ValueError,
     r"expected groups of one optimizer, got \['Adam', 'AdamW'\]"),
    (adam_state(np.ones(3, complex)), TypeError, r"\['exp_avg'\]: expected float32 or float64, got comp"),
    (adam_state(np.ones(3, np.float16)), TypeError, "got float16"),
    (adam_state(Bfloat16()), TypeError, "expected float32 or float64, got torch.bfloat16"),
    (adam_state(lr=-1.0), ValueError, "lr: expected"),
    (adam_state(betas=(0.9,)), ValueError, "betas: expected a pair"),
])
def test_invalid_torch_state_dicts_raise(saved, error, message):
    with pytest.raises(error, match=message):
        interop.from_torch(saved)


def test_unknown_torch_class_raises():
    with pytest.raises(ValueError, match=r"optimizer: expected one of Muon, .*, got 'LBFGS'"):
        interop.from_torch(adam_state(), "LBFGS")


def test_state_of_another_optimizer_or_shape_changes_nothing():
    opt = fastopt.Adam(np.ones(4))
    for saved in (adam_state(), adam_state(decoupled_weight_decay=True)):
        with pytest.raises(ValueError, match="state_dict"):
            opt.load_state_dict(interop.from_torch(saved))
    assert opt.steps == 0 and opt.groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda p: fastopt.Yogi(p), ValueError, "optimizer: expected one of Muon, .*, got Yogi"),
    (lambda p: fastopt.Adam(p, convention="keras"), ValueError,
     "convention: expected 'torch', as torch.optim.Adam has it, got 'keras'"),
    (lambda p: fastopt.Adam(p, cautious=True), ValueError, "cautious: expected False"),
    (lambda p: fastopt.Adagrad(p, rowwise=True), ValueError, "rowwise: expected False"),
    (lambda p: fastopt.Adam(p, independent_weight_decay=0.1), ValueError, "weight_decay: expected 0.0"),
    (lambda p: fastopt.Muon(p, maximize=True), ValueError, "maximize: expected False, as torch.optim.Muon"),
    (lambda p: fastopt.Adam(p, ema=0.9), ValueError, "expected no ema"),
    (lambda p: fastopt.Adam(p, lookahead=(5, 0.5)), ValueError, "expected no lookahead"),
    (lambda p: fastopt.Adam(p, accumulate=2), ValueError, "expected no accumulated"),
    (lambda p: p, TypeError, "optimizer: expected a dict with the keys optimizer, steps"),
    (lambda p: fastopt.Adam(p).state_dict() | {"groups": [{}]}, TypeError, r"\[0\]: expected a dict"),
])
def test_to_torch_refuses_unsupported_options(make, error, message, torch):
    with pytest.raises(error, match=message):
        interop.to_torch(make(np.ones((2, 2))))


def test_torch_muon_requires_matrices(torch):
    p = np.ones(3)
    opt = fastopt.Muon(p)
    opt.step(p.copy())
    with pytest.raises(ValueError, match=r"state\[0\]: expected a matrix"):
        interop.to_torch(opt)
    with pytest.raises(ValueError, match=r"name: expected the class of torch.optim for Muon, got 'Adam'"):
        interop.to_torch(opt, "Adam")
    with pytest.raises(ValueError, match=r"name: expected the class of torch.optim for Muon, got 'LBFGS'"):
        interop.to_torch(opt, "LBFGS")


# --- keras -------------------------------------------------------------------------------------------


def test_keras_schedule_is_evaluated(keras):
    """The converted learning rate is the value at the next step."""
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    variable = keras.Variable(np.ones(3), dtype="float64")
    keras_opt = keras.optimizers.Adam(rate)
    for _ in range(10):
        keras_opt.apply([keras.ops.ones(3)], [variable])
    assert interop.from_keras(keras_opt)["groups"][0]["lr"] == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda o: o.Adafactor(), ValueError, "expected one of SGD, .* of keras.optimizers, got Adafactor"),
    (lambda o: o.Adam(clipnorm=1.0), ValueError, "expected clipnorm=None, .*, got 1"),
    (lambda o: o.Adam(use_ema=True), ValueError, "expected use_ema=False"),
    (lambda o: o.Adam(gradient_accumulation_steps=2), ValueError, "expected gradient_acc.*=None"),
    (lambda o: o.Ftrl(learning_rate_power=-0.4), ValueError, "expected learning_rate_power=-0.5"),
])
def test_from_keras_refuses_unsupported_options(make, error, message, keras):
    keras_opt = make(keras.optimizers)
    keras_opt.build([keras.Variable(np.ones(3), dtype="float64")])
    with pytest.raises(error, match=message):
        interop.from_keras(keras_opt)


def test_from_keras_requires_built_optimizer_without_exclusions(keras):
    with pytest.raises(ValueError, match="optimizer: expected a built one"):
        interop.from_keras(keras.optimizers.Adam())
    with pytest.raises(TypeError, match=r"expected one of keras.optimizers, got Adam"):
        interop.from_keras(fastopt.Adam(np.ones(3)))
    keras_opt = keras.optimizers.AdamW()
    keras_opt.exclude_from_weight_decay(var_names=["bias"])
    keras_opt.build([keras.Variable(np.ones(3), dtype="float64")])
    with pytest.raises(ValueError, match="expected weight decay of all variables"):
        interop.from_keras(keras_opt)


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: fastopt.Adam(p), "convention: expected 'keras', got 'torch'"),
    (lambda p: fastopt.RAdam(p), "optimizer: expected one of SGD, .*, got RAdam"),
    (lambda p: fastopt.Adam(p, convention="keras", cautious=True), "cautious: expected False, as keras"),
    (lambda p: fastopt.SGD(p, convention="keras", momentum=0.9, dampening=0.1), "dampening: expected 0.0"),
    (lambda p: fastopt.Adam([{"params": q} for q in p], convention="keras"), "expected one group, got 2"),
])
def test_to_keras_refuses_unsupported_options(make, message, keras):
    params = [np.ones(3), np.ones((2, 2))]
    variables = [keras.Variable(p, dtype="float64") for p in params]
    with pytest.raises(ValueError, match=message):
        interop.to_keras(make(params), variables)


def test_keras_variables_of_wrong_shape_raise(keras):
    opt = fastopt.Adam([np.ones(3), np.ones((2, 2))], convention="keras")
    variables = [keras.Variable(np.ones(s), dtype="float64") for s in (3, (2, 3))]
    with pytest.raises(ValueError, match=r"variables: expected 2 as the optimizer has, got 1"):
        interop.to_keras(opt, variables[:1])
    with pytest.raises(ValueError, match=r"variables\[1\]: expected shape \(2, 2\), got \(2, 3\)"):
        interop.to_keras(opt, variables)


def test_keras_variables_that_are_not_converted_raise(keras):
    """Such as those of a subclass."""
    class Wrapped(keras.optimizers.Adam):
        def build(self, variables):
            super().build(variables)
            self.add_variable_from_reference(variables[0], name="extra")

    Wrapped.__name__ = "Adam"
    keras_opt = Wrapped()
    keras_opt.build([keras.Variable(np.ones(3), dtype="float64")])
    with pytest.raises(ValueError, match=r"expected the variables of keras.optimizers.Adam .*extra"):
        interop.from_keras(keras_opt)


# --- scikit-learn ------------------------------------------------------------------------------------


def digits():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 6))
    return X, (X[:, 0] > 0).astype(int)


def backward(mlp, X, y):
    """scikit-learn's own gradients of the loss, in the order of ``coefs_ + intercepts_``."""
    sizes = [X.shape[1], *mlp.hidden_layer_sizes, mlp.n_outputs_]
    activations = [X] + [np.empty((len(X), n)) for n in sizes[1:]]
    deltas = [np.empty_like(a) for a in activations[1:]]
    grads = [np.empty_like(w) for w in mlp.coefs_], [np.empty_like(b) for b in mlp.intercepts_]
    target = mlp._label_binarizer.transform(y) if hasattr(mlp, "_label_binarizer") else y.reshape(-1, 1)
    *_, coefs, intercepts = mlp._backprop(X, target, None, activations, deltas, *grads)
    return [*coefs, *intercepts]


@pytest.fixture(params=["plain", "patched"])
def estimators(request):
    """scikit-learn's estimators, original and patched."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn import neural_network

    from fastopt.sklearn import patch, unpatch

    if request.param == "patched":
        patch()
    yield neural_network
    unpatch()


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
@pytest.mark.parametrize(("kind", "options"), [
    (fastopt.Adam, {"solver": "adam", "beta_1": 0.8, "epsilon": 1e-4}),
    (fastopt.SGD, {"solver": "sgd", "momentum": 0.7}),
    (fastopt.SGD, {"solver": "sgd", "momentum": 0.0}),
])
def test_partial_fit_resumes_in_either_library(name, kind, options, estimators):
    X, y = digits()
    classes = {"classes": [0, 1]} if name == "MLPClassifier" else {}

    def make():
        return getattr(estimators, name)(
            hidden_layer_sizes=(5,), batch_size=len(X), shuffle=False, random_state=0,
            learning_rate_init=0.05, **options,
        )

    def fit(mlp, steps):
        for _ in range(steps):
            mlp.partial_fit(X, y, **classes)

    full_run, mlp = make(), make()
    fit(full_run, STEPS)
    fit(mlp, 5)
    params = mlp.coefs_ + mlp.intercepts_
    opt = kind(params, lr=0.9, convention="sklearn")
    opt.load_state_dict(interop.from_sklearn(mlp))
    for _ in range(HALF):
        opt.step(backward(mlp, X, y))
    mlp._optimizer = interop.to_sklearn(opt, params)
    fit(mlp, STEPS - HALF - 5)
    assert_same(mlp.coefs_ + mlp.intercepts_, full_run.coefs_ + full_run.intercepts_, atol=1e-12)


def test_from_sklearn_refuses_other_objects():
    for bad in (object(), None, fastopt.Adam(np.ones(3)), types.SimpleNamespace(_optimizer=3)):
        with pytest.raises(TypeError, match="estimator: expected an MLPClassifier or MLPRegressor"):
            interop.from_sklearn(bad)


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: fastopt.Adam(p), "convention: expected 'sklearn', got 'torch'"),
    (lambda p: fastopt.RMSprop(p), "optimizer: expected one of SGD, Adam, got RMSprop"),
    (lambda p: fastopt.Adam(p, convention="sklearn", weight_decay=0.1), "weight_decay: expected 0.0, as sci"),
    (lambda p: fastopt.Adam([p, p.copy()], convention="sklearn"), "params: expected 2 as the"),
])
def test_to_sklearn_refuses_unsupported_options(make, message, sklearn):
    with pytest.raises(ValueError, match=message):
        interop.to_sklearn(make(np.ones(3)), [np.ones(3)])


# --- optax -------------------------------------------------------------------------------------------


def test_nested_parameters(optax):
    """JAX sorts the keys of dicts; fastopt keeps their order."""
    import jax

    rng = np.random.default_rng(0)
    params = {"w": [rng.standard_normal((2, 3)), rng.standard_normal(3)], "b": rng.standard_normal(2)}
    tensors = jax.tree.map(jax.numpy.array, params)
    transformation = optax.adam(0.1)
    state, opt = transformation.init(tensors), fastopt.Adam(params, lr=0.1, convention="optax")
    for _ in range(3):
        updates, state = transformation.update(jax.tree.map(lambda p: p + 1, tensors), state, tensors)
        tensors = optax.apply_updates(tensors, updates)
    opt.load_state_dict(interop.from_optax(state, opt))
    assert opt.steps == 3
    again = interop.to_optax(opt, transformation.init(tensors))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype and (a == b).all()


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda p: fastopt.Adam(p), ValueError, "convention: expected 'optax', got 'torch'"),
    (lambda p: fastopt.Prodigy(p), ValueError, "optimizer: expected one of SGD, .*, got Prodigy"),
    (lambda p: fastopt.Adam([{"params": p}], convention="optax"), ValueError, "without groups"),
    (lambda p: fastopt.Adam([p], convention="optax"), ValueError, "mu: expected the nesting"),
    (lambda p: fastopt.Adam({"a": p}, convention="optax"), ValueError, "mu: expected the nesting"),
    (lambda p: fastopt.Adam(np.ones(4), convention="optax"), ValueError, r"expected .*shape \(4,\)"),
    (lambda p: fastopt.Adagrad(p, convention="optax"), ValueError, "expected a field sum_of_squares"),
])
def test_optax_states_of_wrong_structure_raise(make, error, message, optax):
    p = np.ones(3)
    opt, state = make(p), optax.adam(0.1).init(p)
    with pytest.raises(error, match=message):
        opt.load_state_dict(interop.from_optax(state, opt))
    with pytest.raises(error, match=message):
        interop.to_optax(opt, state)


# Transformations whose states are more than that of the optimizer, and the part that is not converted.
LOSSY = {
    "accumulated": (lambda o: o.MultiSteps(o.adam(0.1), 2), "expected no accumulated .* got mini_step 1"),
    "trace": (lambda o: o.chain(o.trace(0.9), o.adam(0.1)), "Adam alone, got a TraceState with trace"),
    "ema": (lambda o: o.chain(o.adam(0.1), o.ema(0.9)), "Adam alone, got a EmaState with ema"),
    "two": (lambda o: o.chain(o.adam(0.1), o.adam(0.1)), "Adam alone, got a ScaleByAdamState with mu"),
    "amsgrad": (lambda o: o.amsgrad(0.1), "Adam alone, got a ScaleByAmsgradState with nu_max"),
    "noise": (lambda o: o.chain(o.add_noise(0.1, 0.5, 0), o.adam(0.1)), "got a AddNoiseState with rng_key"),
    "zeroed": (lambda o: o.chain(o.zero_nans(), o.adam(0.1)), "got a ZeroNansState with found_nan"),
    "hyperparameters": (lambda o: o.inject_hyperparams(o.adam)(0.1), "got a Inject.* with hyperparams"),
    "skipped": (lambda o: o.apply_if_finite(o.adam(0.1), 5), "got a ApplyIfFiniteState with notfinite_count"),
    "masked": (lambda o: o.masked(o.adam(0.1), {"w": True, "b": False}), r"expected .*shape \(3,\)"),
    "per parameter": (
        lambda o: o.multi_transform({"x": o.adam(0.1), "y": o.sgd(0.1)}, {"w": "x", "b": "y"}),
        "expected a field mu, got none",
    ),
    "plateau": (
        lambda o: o.chain(o.adam(0.1), o.contrib.reduce_on_plateau()),
        "got a ReduceLROnPlateauState with scale",
    ),
}


@pytest.mark.parametrize("name", LOSSY)
def test_optax_states_with_other_parts_raise(name, optax):
    import jax

    make, message = LOSSY[name]
    params = {"w": np.ones((2, 2)), "b": np.ones(3)}
    tensors = jax.tree.map(jax.numpy.array, params)
    transformation = make(optax)
    state = transformation.init(tensors)
    for _ in range(3):
        grads = jax.tree.map(jax.numpy.ones_like, tensors)
        _, state = transformation.update(grads, state, tensors, **{"value": 1.0} if name == "plateau" else {})
    opt = fastopt.Adam(params, convention="optax")
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(interop.from_optax(state, opt))
    with pytest.raises(ValueError, match="expected"):
        interop.to_optax(opt, state)
    assert opt.steps == 0


@pytest.mark.parametrize("make", [
    lambda o: o.chain(o.clip_by_global_norm(1.0), o.adam(0.1)),
    lambda o: o.adam(o.cosine_decay_schedule(0.1, 100)),
    lambda o: o.MultiSteps(o.adam(0.1), 1),
    lambda o: o.masked(o.adam(0.1), True),
])
def test_optax_states_with_other_parts_that_have_no_state(make, optax):
    params = np.ones(3)
    transformation = make(optax)
    state = transformation.init(params)
    for _ in range(3):
        _, state = transformation.update(np.ones(3), state, params)
    opt = fastopt.Adam(params, convention="optax")
    opt.load_state_dict(interop.from_optax(state, opt))
    assert opt.steps == opt.state[0].steps == 3 and opt.state[0]["exp_avg"].any()
    again = interop.from_optax(interop.to_optax(opt, state), opt)
    assert again["steps"] == 3 and (again["state"][""]["exp_avg"] == opt.state[0]["exp_avg"]).all()


def test_a_trace_before_rmsprop_is_another_optimizer(optax):
    params = np.ones(3)
    opt = fastopt.RMSprop(params, momentum=0.9, convention="optax")
    interop.from_optax(optax.rmsprop(0.1, momentum=0.9).init(params), opt)
    with pytest.raises(ValueError, match="state: expected the trace after nu"):
        interop.from_optax(optax.chain(optax.trace(0.9), optax.rmsprop(0.1)).init(params), opt)


def test_momenta_that_were_not_constant_do_not_fit_optax(optax):
    opt = fastopt.NAdam(np.ones(3), convention="optax")
    opt.step(np.ones(3))
    opt.groups[0]["betas"] = (0.5, 0.999)
    opt.step(np.ones(3))
    with pytest.raises(ValueError, match="betas: expected values that were constant from the first step on"):
        interop.to_optax(opt, optax.nadam(0.1).init(np.ones(3)))


def test_wrong_types_for_optax_raise(optax):
    opt = fastopt.Adam(np.ones(3), convention="optax")
    with pytest.raises(TypeError, match="state: expected an optax state, which is a tuple, got dict"):
        interop.from_optax({}, opt)
    with pytest.raises(TypeError, match="optimizer: expected a fastopt optimizer, got dict"):
        interop.from_optax((), opt.state_dict())
