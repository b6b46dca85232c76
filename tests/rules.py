"""Table of update rules with options: the tests of optimizers run over it."""

from dataclasses import dataclass, field
from inspect import signature

import numpy as np

import fastopt
from fastopt import reference


@dataclass(frozen=True)
class Rule:
    """An update rule with options, as optimizer, compiled function and reference."""

    name: str
    optimizer: type
    function: str  # in fastopt.functional and fastopt.reference
    state: tuple  # names of the function's state arrays
    options: dict = field(default_factory=dict)
    torch: str | None = None  # class in torch.optim with the same formula and option names
    saturates: bool = False  # an infinite gradient can give a finite step
    couples_elements: bool = False  # an element's gradient affects all elements of its array
    couples_arrays: bool = False  # and of all arrays

    def __str__(self):
        return self.name

    def arguments(self, step):
        """Options that the function accepts; the arrays given imply the others, such as `amsgrad`."""
        options = self.make(np.zeros((1, 1))).groups[0].hyperparameters() | {"step": step}
        return {name: value for name, value in options.items() if name in self.parameters}

    @property
    def parameters(self):
        """Names of the function's parameters."""
        return signature(getattr(reference, self.function)).parameters

    def with_scalar_state(self, state):
        """State arrays by name, and an empty scalar state if the function has one."""
        return {**state, "numbers": {}} if "numbers" in self.parameters else state

    def init_value(self, name):
        """Value of a state array before the first step."""
        group = self.make(np.zeros((1, 1))).groups[0]
        has_option = self.optimizer is fastopt.Yogi or name in ("acc", "accumulator", "square_avg")
        has_option = has_option and "initial_accumulator_value" in group
        return group["initial_accumulator_value"] if has_option else 0.0

    def make(self, params, **more):
        return self.optimizer(params, **{"lr": 1e-2, **self.options, **more})

    def reference_step(self, p, g, state, step, **more):
        """Take one step with the reference."""
        getattr(reference, self.function)(p, g, **state, **{**self.arguments(step), **more})


MOMENTS = ("exp_avg", "exp_avg_sq")

RULES = [
    Rule("sgd", fastopt.SGD, "sgd_", (), torch="SGD"),
    Rule("sgd maximize", fastopt.SGD, "sgd_", (), {"maximize": True}, torch="SGD"),
    Rule("sgd decay", fastopt.SGD, "sgd_", (), {"weight_decay": 0.1}, torch="SGD"),
    Rule("momentum", fastopt.SGD, "momentum_", ("buf",), {"momentum": 0.9}, torch="SGD"),
    Rule(
        "momentum dampened", fastopt.SGD, "momentum_", ("buf",),
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, torch="SGD",
    ),
    Rule(
        "momentum, lr inside", fastopt.SGD, "momentum_", ("buf",),
        {"momentum": 0.9, "convention": "article"},
    ),
    Rule(
        "momentum dampened, lr inside", fastopt.SGD, "momentum_", ("buf",),
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "convention": "keras"},
    ),
    Rule(
        "sgd of keras", fastopt.SGD, "sgd_", (),
        {"nesterov": True, "weight_decay": 0.1, "convention": "keras"},
    ),
    Rule("sgd of sklearn", fastopt.SGD, "sgd_", (), {"momentum": 0.0, "convention": "sklearn"}),
    Rule(
        "momentum of sklearn", fastopt.SGD, "momentum_", ("buf",),
        {"momentum": 0.5, "nesterov": False, "convention": "sklearn"},
    ),
    Rule("nesterov of sklearn", fastopt.SGD, "momentum_", ("buf",), {"convention": "sklearn"}),
    Rule(
        "nesterov", fastopt.SGD, "momentum_", ("buf",),
        {"momentum": 0.9, "nesterov": True}, torch="SGD",
    ),
    Rule(
        "nesterov, lr inside", fastopt.SGD, "momentum_", ("buf",),
        {"momentum": 0.9, "nesterov": True, "convention": "keras", "maximize": True},
    ),
    Rule(
        "nesterov of keras", fastopt.SGD, "momentum_", ("buf",),
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "convention": "keras"},
    ),
    Rule("adagrad", fastopt.Adagrad, "adagrad_", ("acc",), torch="Adagrad"),
    Rule(
        "adagrad decaying", fastopt.Adagrad, "adagrad_", ("acc",),
        {"lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3}, torch="Adagrad",
    ),
    Rule(
        "adagrad started", fastopt.Adagrad, "adagrad_", ("acc",),
        {"initial_accumulator_value": 0.5}, torch="Adagrad",
    ),
    Rule(
        "adagrad of keras", fastopt.Adagrad, "adagrad_", ("acc",),
        {"convention": "keras", "eps": 1e-3, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
    ),
    Rule("adagrad of optax", fastopt.Adagrad, "adagrad_", ("acc",),
         {"convention": "optax", "initial_accumulator_value": 0.0}),
    Rule("adadelta", fastopt.Adadelta, "adadelta_", ("square_avg", "acc_delta"), torch="Adadelta"),
    Rule(
        "adadelta decay", fastopt.Adadelta, "adadelta_", ("square_avg", "acc_delta"),
        {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1, "maximize": True, "lr": 0.5}, torch="Adadelta",
    ),
    Rule(
        "adadelta of keras", fastopt.Adadelta, "adadelta_", ("square_avg", "acc_delta"),
        {"convention": "keras", "weight_decay": 0.1},
    ),
    Rule("rmsprop", fastopt.RMSprop, "rmsprop_", ("square_avg",), torch="RMSprop"),
    Rule("rmsprop, eps inside", fastopt.RMSprop, "rmsprop_", ("square_avg",), {"convention": "keras"}),
    Rule(
        "rmsprop momentum", fastopt.RMSprop, "rmsprop_", ("square_avg", "buf"),
        {"momentum": 0.9, "weight_decay": 0.1}, torch="RMSprop",
    ),
    Rule(
        "rmsprop momentum, lr inside", fastopt.RMSprop, "rmsprop_", ("square_avg", "buf"),
        {"momentum": 0.9, "convention": "keras", "weight_decay": 0.1},
    ),
    Rule(
        "rmsprop of optax", fastopt.RMSprop, "rmsprop_", ("square_avg", "buf"),
        {"momentum": 0.9, "convention": "optax", "weight_decay": 0.1},
    ),
    Rule(
        "rmsprop centered of keras", fastopt.RMSprop, "rmsprop_", ("square_avg", "grad_avg"),
        {"centered": True, "convention": "keras", "eps": 1e-4},
    ),
    Rule(
        "rmsprop centered momentum, lr inside", fastopt.RMSprop, "rmsprop_",
        ("square_avg", "grad_avg", "buf"),
        {"centered": True, "momentum": 0.5, "alpha": 0.8, "convention": "keras", "eps": 1e-4},
    ),
    Rule(
        "rmsprop centered", fastopt.RMSprop, "rmsprop_", ("square_avg", "grad_avg"),
        {"centered": True, "eps": 1e-6}, torch="RMSprop",
    ),
    Rule(
        "rmsprop centered momentum", fastopt.RMSprop, "rmsprop_", ("square_avg", "grad_avg", "buf"),
        {"centered": True, "momentum": 0.5, "eps": 1e-6, "maximize": True}, torch="RMSprop",
    ),
    Rule("adam", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq"), torch="Adam"),
    Rule(
        "adam decay", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq"),
        {"betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1, "maximize": True}, torch="Adam",
    ),
    Rule(
        "adam without memory", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq"),
        {"betas": (0.0, 0.9)}, torch="Adam",
    ),
    Rule(
        "adam, eps-hat", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq"),
        {"convention": "sklearn", "eps": 1e-3},
    ),
    Rule(
        "adam, eps-hat of keras", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq"),
        {"convention": "keras", "eps": 1e-3, "weight_decay": 0.1},
    ),
    Rule(
        "amsgrad of optax", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        {"amsgrad": True, "convention": "optax"},
    ),
    Rule(
        "amsgrad of keras", fastopt.AdamW, "adamw_", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        {"amsgrad": True, "convention": "keras"},
    ),
    Rule(
        "adamw amsgrad of optax", fastopt.AdamW, "adamw_", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        {"amsgrad": True, "weight_decay": 0.1, "convention": "optax"},
    ),
    Rule(
        "amsgrad", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        {"amsgrad": True}, torch="Adam",
    ),
    Rule(
        "amsgrad decay", fastopt.Adam, "adam_", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        {"amsgrad": True, "weight_decay": 0.1, "maximize": True}, torch="Adam",
    ),
    Rule("adamw", fastopt.AdamW, "adamw_", ("exp_avg", "exp_avg_sq"), {"weight_decay": 0.1}, torch="AdamW"),
    Rule(
        "adamw amsgrad", fastopt.AdamW, "adamw_", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        {"weight_decay": 0.1, "amsgrad": True, "maximize": True}, torch="AdamW",
    ),
    Rule(
        "adam cautious", fastopt.Adam, "adam_", MOMENTS, {"cautious": True, "weight_decay": 0.1},
        couples_elements=True,
    ),
    Rule(
        "adamw cautious, eps-hat", fastopt.AdamW, "adamw_", MOMENTS,
        {"cautious": True, "convention": "keras", "eps": 1e-3, "maximize": True}, couples_elements=True,
    ),
    Rule("adamax", fastopt.Adamax, "adamax_", ("exp_avg", "exp_inf"), torch="Adamax"),
    Rule(
        "adamax decay", fastopt.Adamax, "adamax_", ("exp_avg", "exp_inf"),
        {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}, torch="Adamax",
    ),
    Rule(
        "adamax of keras", fastopt.Adamax, "adamax_", ("exp_avg", "exp_inf"),
        {"eps": 1e-3, "weight_decay": 0.1, "convention": "keras"},
    ),
    Rule("nadam of keras", fastopt.NAdam, "nadam_", MOMENTS, {"weight_decay": 0.1, "convention": "keras"}),
    Rule("nadam of optax", fastopt.NAdam, "nadam_", MOMENTS, {"weight_decay": 0.1, "convention": "optax"}),
    Rule("radam of optax", fastopt.RAdam, "radam_", MOMENTS, {"betas": (0.8, 0.9), "convention": "optax"}),
    Rule("nadam", fastopt.NAdam, "nadam_", MOMENTS, torch="NAdam"),
    Rule(
        "nadam decay", fastopt.NAdam, "nadam_", MOMENTS,
        {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "momentum_decay": 0.1}, torch="NAdam",
    ),
    Rule(
        "nadam decoupled", fastopt.NAdam, "nadam_", MOMENTS,
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}, torch="NAdam",
    ),
    Rule("radam", fastopt.RAdam, "radam_", MOMENTS, torch="RAdam"),
    Rule(
        "radam decay", fastopt.RAdam, "radam_", MOMENTS,
        {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}, torch="RAdam",
    ),
    Rule(
        "radam decoupled", fastopt.RAdam, "radam_", MOMENTS,
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}, torch="RAdam",
    ),
    Rule("asgd", fastopt.ASGD, "asgd_", ("ax",), torch="ASGD"),
    Rule(
        "asgd averaging", fastopt.ASGD, "asgd_", ("ax",),
        {"lambd": 0.1, "alpha": 0.5, "t0": 3.0, "weight_decay": 0.1, "maximize": True}, torch="ASGD",
    ),
    Rule("rprop", fastopt.Rprop, "rprop_", ("prev", "step_size"), torch="Rprop", saturates=True),
    Rule(
        "rprop narrow", fastopt.Rprop, "rprop_", ("prev", "step_size"),
        {"etas": (0.4, 1.5), "step_sizes": (1e-3, 1.5e-2), "maximize": True}, torch="Rprop", saturates=True,
    ),
    Rule("sign_sgd", fastopt.SignSGD, "sign_sgd_", (), {"weight_decay": 0.1}, saturates=True),
    Rule(
        "signum", fastopt.SignSGD, "sign_sgd_", ("buf",), {"momentum": 0.9, "maximize": True}, saturates=True,
    ),
    Rule("lion", fastopt.Lion, "lion_", ("exp_avg",), {"weight_decay": 0.1}, saturates=True),
    Rule(
        "lion cautious", fastopt.Lion, "lion_", ("exp_avg",),
        {"cautious": True, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True},
        saturates=True, couples_elements=True,
    ),
    Rule("ftrl", fastopt.FTRL, "ftrl_", ("accumulator", "linear")),
    Rule(
        "ftrl sparse", fastopt.FTRL, "ftrl_", ("accumulator", "linear"),
        {
            "l1": 0.5, "l2": 0.1, "beta": 0.0, "initial_accumulator_value": 0.1, "weight_decay": 0.1,
            "maximize": True,
        },
    ),
    Rule(
        "ftrl of keras", fastopt.FTRL, "ftrl_", ("accumulator", "linear"),
        {"l1": 0.5, "l2": 0.1, "weight_decay": 0.1, "convention": "keras"},
    ),
    Rule("adabelief", fastopt.AdaBelief, "adabelief_", ("exp_avg", "exp_avg_var"), {"eps": 1e-10}),
    Rule(
        "adabelief decay", fastopt.AdaBelief, "adabelief_", ("exp_avg", "exp_avg_var"),
        {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "maximize": True},
    ),
    Rule("yogi", fastopt.Yogi, "yogi_", MOMENTS),
    Rule(
        "yogi decay", fastopt.Yogi, "yogi_", MOMENTS,
        {"betas": (0.8, 0.9), "initial_accumulator_value": 0.1, "weight_decay": 0.1, "maximize": True},
    ),
    Rule("adopt", fastopt.ADOPT, "adopt_", MOMENTS, saturates=True),
    Rule(
        "adopt unclipped", fastopt.ADOPT, "adopt_", MOMENTS,
        {"clip_exp": None, "betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-2}, saturates=True,
    ),
    Rule(
        "adopt decoupled", fastopt.ADOPT, "adopt_", MOMENTS,
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "clip_exp": 0.5, "maximize": True},
        saturates=True,
    ),
    Rule("ademamix", fastopt.AdEMAMix, "ademamix_", ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")),
    Rule(
        "ademamix warmed up", fastopt.AdEMAMix, "ademamix_", ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
        {"alpha_warmup": 3.0, "beta3_warmup": 4.0, "alpha": 2.0, "weight_decay": 0.1, "maximize": True},
    ),
    Rule("adan", fastopt.Adan, "adan_", ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad")),
    Rule(
        "adan proximal", fastopt.Adan, "adan_", ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad"),
        {"betas": (0.9, 0.8, 0.7), "weight_decay": 0.1, "maximize": True},
    ),
    Rule(
        "adan decoupled", fastopt.Adan, "adan_", ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad"),
        {"weight_decay": 0.1, "no_prox": True, "eps": 1e-3},
    ),
    Rule("sgd, schedule-free", fastopt.SGDScheduleFree, "sgd_schedule_free_", ("z",)),
    Rule(
        "sgd, schedule-free, warmed up", fastopt.SGDScheduleFree, "sgd_schedule_free_", ("z",),
        {"momentum": 0.8, "warmup_steps": 3.0, "r": 0.5, "weight_decay": 0.1, "maximize": True},
    ),
    Rule("adamw, schedule-free", fastopt.AdamWScheduleFree, "adamw_schedule_free_", ("z", "exp_avg_sq")),
    Rule(
        "adamw, schedule-free, warmed up", fastopt.AdamWScheduleFree, "adamw_schedule_free_",
        ("z", "exp_avg_sq"),
        {
            "betas": (0.8, 0.9), "warmup_steps": 3.0, "weight_lr_power": 1.0, "weight_decay": 0.1,
            "maximize": True,
        },
    ),
    Rule("lars", fastopt.LARS, "lars_", ("buf",), {"weight_decay": 0.1}, couples_elements=True),
    Rule(
        "lars not adapted", fastopt.LARS, "lars_", ("buf",),
        {"adapt": False, "weight_decay": 0.1, "maximize": True},
    ),
    Rule("lars of optax", fastopt.LARS, "lars_", ("buf",), {"eps": 0.0}, couples_elements=True),
    Rule("lamb", fastopt.LAMB, "lamb_", MOMENTS, couples_elements=True),
    Rule(
        "lamb decay", fastopt.LAMB, "lamb_", MOMENTS,
        {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}, couples_elements=True,
    ),
    Rule(
        "lamb of keras", fastopt.LAMB, "lamb_", MOMENTS, {"weight_decay": 0.1, "convention": "keras"},
        couples_elements=True,
    ),
    Rule(
        "prodigy", fastopt.Prodigy, "prodigy_", (*MOMENTS, "s", "p0"), {"lr": 1.0},
        couples_elements=True, couples_arrays=True,
    ),
    Rule(
        "prodigy, slow", fastopt.Prodigy, "prodigy_", (*MOMENTS, "s", "p0"),
        {
            "lr": 0.5, "d0": 1e-3, "d_coef": 0.8, "growth_rate": 1.1, "weight_decay": 0.1,
            "use_bias_correction": True, "safeguard_warmup": True, "maximize": True,
        },
        couples_elements=True, couples_arrays=True,
    ),
    Rule(
        "prodigy of optax", fastopt.Prodigy, "prodigy_", (*MOMENTS, "s", "p0"),
        {
            "lr": 1.0, "d0": 1e-4, "d_coef": 0.5, "weight_decay": 0.1, "use_bias_correction": True,
            "safeguard_warmup": True,
        },
        couples_elements=True, couples_arrays=True,
    ),
    Rule(
        "rmsprop started", fastopt.RMSprop, "rmsprop_", ("square_avg", "grad_avg", "buf"),
        {"initial_accumulator_value": 0.5, "centered": True, "momentum": 0.5},
    ),
    Rule("adam uncorrected", fastopt.Adam, "adam_", MOMENTS, {"bias_correction": False}),
    Rule(
        "adam uncorrected, eps-hat", fastopt.Adam, "adam_", MOMENTS,
        {"bias_correction": False, "convention": "keras", "cautious": True, "weight_decay": 0.1},
        couples_elements=True,
    ),
    Rule(
        "amsgrad uncorrected", fastopt.AdamW, "adamw_", (*MOMENTS, "max_exp_avg_sq"),
        {"bias_correction": False, "amsgrad": True, "convention": "optax"},
    ),
    Rule("adamax uncorrected", fastopt.Adamax, "adamax_", ("exp_avg", "exp_inf"), {"bias_correction": False}),
    Rule("nadam uncorrected", fastopt.NAdam, "nadam_", MOMENTS, {"bias_correction": False}),
    Rule(
        "adabelief uncorrected", fastopt.AdaBelief, "adabelief_", ("exp_avg", "exp_avg_var"),
        {"bias_correction": False, "eps": 1e-10},
    ),
    Rule("yogi uncorrected", fastopt.Yogi, "yogi_", MOMENTS, {"bias_correction": False}),
    Rule(
        "ademamix uncorrected", fastopt.AdEMAMix, "ademamix_", ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
        {"bias_correction": False, "weight_decay": 0.1},
    ),
    Rule(
        "adan uncorrected", fastopt.Adan, "adan_", ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad"),
        {"bias_correction": False, "weight_decay": 0.1},
    ),
    Rule(
        "lamb uncorrected", fastopt.LAMB, "lamb_", MOMENTS, {"bias_correction": False}, couples_elements=True
    ),
]

# Optimizers whose update depends on the shape of a matrix; test_matrix.py tests them.
MATRIX_RULES = [
    Rule(
        "adafactor", fastopt.Adafactor, "adafactor_", (), {"weight_decay": 0.1}, torch="Adafactor",
        couples_elements=True,
    ),
    Rule("muon", fastopt.Muon, "muon_", (), {"nesterov": False}, torch="Muon", couples_elements=True),
]

OPTIMIZERS = [getattr(fastopt.optimizers, name) for name in fastopt.optimizers.__all__ if name != "Optimizer"]


def arrays(rng, dtype, length, count, offset=0):
    """Random arrays that start `offset` elements after the start of their memory block."""
    return [rng.standard_normal(length + offset).astype(dtype)[offset:] for _ in range(count)]


def same_bits(a, b):
    """Whether two arrays are equal bit for bit, including the sign of zeros and the bits of NaNs."""
    uint = {4: np.uint32, 8: np.uint64}[a.itemsize]
    return a.dtype == b.dtype and a.shape == b.shape and bool((a.view(uint) == b.view(uint)).all())
