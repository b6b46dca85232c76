"""Counterparts of the table of rules in other libraries.

A row of `rules.RULES` names torch's counterpart itself. Rows that are missing here have none: keras and optax
have no cautious, proximal or dampened variants. In spite of their names, these use another formula: Adafactor
and Muon in keras; in optax Adafactor, Muon, Adan (which weights differences by ``1 - b2``) and Rprop (whose
steps come one later).
"""

import numpy as np
from rules import MATRIX_RULES, RULES

from fastopt import interop

SHAPES = [(4, 3), (3,), ()]

# Class and options; the learning rate is the row's.
KERAS = {
    "sgd of keras": ("SGD", {"weight_decay": 0.1, "nesterov": True}),
    "momentum, lr inside": ("SGD", {"momentum": 0.9}),
    "nesterov, lr inside": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "nesterov of keras": ("SGD", {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    "adagrad of keras": (
        "Adagrad", {"epsilon": 1e-3, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
    ),
    "adadelta of keras": ("Adadelta", {"weight_decay": 0.1}),
    "rmsprop, eps inside": ("RMSprop", {}),
    "rmsprop momentum, lr inside": ("RMSprop", {"momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop centered of keras": ("RMSprop", {"centered": True, "epsilon": 1e-4}),
    "rmsprop centered momentum, lr inside": (
        "RMSprop", {"centered": True, "momentum": 0.5, "rho": 0.8, "epsilon": 1e-4},
    ),
    "adam, eps-hat of keras": ("Adam", {"epsilon": 1e-3, "weight_decay": 0.1}),
    "amsgrad of keras": ("AdamW", {"amsgrad": True}),
    "adamax of keras": ("Adamax", {"epsilon": 1e-3, "weight_decay": 0.1}),
    "nadam of keras": ("Nadam", {"weight_decay": 0.1}),
    "lion": ("Lion", {"weight_decay": 0.1}),
    "ftrl of keras": (
        "Ftrl",
        {"l1_regularization_strength": 0.5, "l2_regularization_strength": 0.1, "weight_decay": 0.1},
    ),
    "lamb of keras": ("Lamb", {"weight_decay": 0.1}),
}

# Functions of `optax` and `optax.contrib`.
OPTAX = {
    "sgd": lambda o, _: o.sgd(0.01),
    "sgd decay": lambda o, _: decayed(o, o.sgd(0.01)),
    "momentum": lambda o, _: o.sgd(0.01, 0.9),
    "nesterov": lambda o, _: o.sgd(0.01, 0.9, nesterov=True),
    "adagrad of optax": lambda o, _: o.adagrad(0.01, initial_accumulator_value=0.0),
    "adadelta": lambda o, _: o.adadelta(0.01),
    "adadelta decay": lambda o, _: o.adadelta(0.5, rho=0.8, eps=1e-3, weight_decay=0.1),
    "rmsprop of optax": lambda o, _: decayed(o, o.rmsprop(0.01, momentum=0.9)),
    "rmsprop centered momentum, lr inside": (
        lambda o, _: o.rmsprop(0.01, decay=0.8, eps=1e-4, momentum=0.5, centered=True)
    ),
    "adam": lambda o, _: o.adam(0.01),
    "adam decay": lambda o, _: decayed(o, o.adam(0.01, 0.8, 0.99, 1e-4)),
    "adam without memory": lambda o, _: o.adam(0.01, 0.0, 0.9),
    "amsgrad of optax": lambda o, _: o.amsgrad(0.01),
    "adamw": lambda o, _: o.adamw(0.01, weight_decay=0.1),
    "adamw amsgrad of optax": lambda o, _: o.chain(
        o.scale_by_amsgrad(), o.add_decayed_weights(0.1), o.scale_by_learning_rate(0.01)
    ),
    "adamax": lambda o, _: o.adamax(0.01),
    "adamax decay": lambda o, _: decayed(o, o.adamax(0.01, 0.8, 0.9, 1e-3)),
    "nadam of optax": lambda o, _: o.nadamw(0.01, weight_decay=0.1),
    "radam of optax": lambda o, _: o.radam(0.01, 0.8, 0.9),
    "sign_sgd": lambda o, _: o.chain(
        o.scale_by_sign(), o.add_decayed_weights(0.1), o.scale_by_learning_rate(0.01)
    ),
    "signum": lambda o, _: o.chain(
        o.ema(0.9, debias=False), o.scale_by_sign(), o.scale_by_learning_rate(0.01)
    ),
    "lion": lambda o, _: o.lion(0.01, weight_decay=0.1),
    "adabelief": lambda o, _: o.adabelief(0.01, eps=1e-10, eps_root=1e-10),
    "adabelief decay": lambda o, _: o.chain(
        o.scale_by_belief(0.8, 0.9, 1e-6, 1e-6), o.add_decayed_weights(0.1), o.scale_by_learning_rate(0.01)
    ),
    "yogi": lambda o, _: o.yogi(0.01),
    "yogi decay": lambda o, _: decayed(o, o.chain(
        o.scale_by_yogi(0.8, 0.9, initial_accumulator_value=0.1), o.scale_by_learning_rate(0.01)
    )),
    "adopt": lambda o, contrib: contrib.adopt(0.01),
    "adopt unclipped": lambda o, contrib: decayed(
        o, contrib.adopt(0.01, 0.8, 0.9, 1e-2, use_clipping=False)
    ),
    "ademamix": lambda o, contrib: contrib.ademamix(0.01),
    "sgd, schedule-free": lambda o, contrib: contrib.schedule_free(o.sgd(0.01), 0.01, b1=0.9),
    "adamw, schedule-free": lambda o, contrib: contrib.schedule_free_adamw(0.01),
    "lars of optax": lambda o, _: o.lars(0.01),
    "lamb": lambda o, _: o.lamb(0.01),
    "lamb decay": lambda o, _: o.lamb(0.01, 0.8, 0.9, 1e-3, weight_decay=0.1),
    "prodigy of optax": lambda o, contrib: contrib.prodigy(
        1.0, weight_decay=0.1, estim_lr0=1e-4, estim_lr_coef=0.5, safeguard_warmup=True
    ),
}

# Class and options.
SKLEARN = {
    "sgd of sklearn": ("SGDOptimizer", {"momentum": 0.0}),
    "momentum of sklearn": ("SGDOptimizer", {"momentum": 0.5, "nesterov": False}),
    "nesterov of sklearn": ("SGDOptimizer", {}),
    "adam, eps-hat": ("AdamOptimizer", {"epsilon": 1e-3}),
}


def decayed(optax, transformation):
    return optax.chain(optax.add_decayed_weights(0.1), transformation)


class Torch:
    """Parameters and their torch optimizer, which takes steps with given gradients."""

    rows = [rule for rule in RULES if rule.torch]
    matrix_rows = MATRIX_RULES
    convention = "torch"
    has_maximize = True

    def __init__(self, torch, rule, params):
        self.torch, self.rule = torch, rule
        self.params = [torch.tensor(p).requires_grad_() for p in params]
        self.optimizer = getattr(torch.optim, rule.torch)(self.params, **{"lr": 1e-2, **rule.options})

    def step(self, grads):
        for p, g in zip(self.params, grads, strict=True):
            p.grad = self.torch.tensor(g)
        self.optimizer.step()

    def values(self):
        return [p.detach().numpy().copy() for p in self.params]

    def load_into(self, opt):
        opt.load_state_dict(interop.from_torch(self.optimizer.state_dict()))

    def load_from(self, opt):
        self.optimizer.load_state_dict(interop.to_torch(opt))


class Keras:
    rows = [rule for rule in RULES if rule.name in KERAS]
    convention = "keras"
    has_maximize = False

    def __init__(self, keras, rule, params):
        self.keras = keras
        self.params = [keras.Variable(p.copy(), dtype=p.dtype.name) for p in params]    # JAX may share memory
        name, options = KERAS[rule.name]
        lr = rule.options.get("lr", 1e-2)
        self.optimizer = getattr(keras.optimizers, name)(**{"learning_rate": lr, **options})

    def step(self, grads):
        self.optimizer.apply([self.keras.ops.convert_to_tensor(g) for g in grads], self.params)

    def values(self):
        return [np.array(self.keras.ops.convert_to_numpy(v)) for v in self.params]

    def load_into(self, opt):
        opt.load_state_dict(interop.from_keras(self.optimizer))

    def load_from(self, opt):
        self.optimizer = interop.to_keras(opt, self.params)


class Optax:
    rows = [rule for rule in RULES if rule.name in OPTAX]
    convention = "optax"
    has_maximize = False

    def __init__(self, optax, rule, params):
        import jax
        from optax import contrib

        self.jnp, self.optax = jax.numpy, optax
        self.params = [jax.numpy.array(p) for p in params]
        transformation = OPTAX[rule.name](optax, contrib)
        self.state = transformation.init(self.params)
        self.update = jax.jit(transformation.update)

    def step(self, grads):
        updates, self.state = self.update([self.jnp.asarray(g) for g in grads], self.state, self.params)
        self.params = self.optax.apply_updates(self.params, updates)

    def values(self):
        return [np.array(p) for p in self.params]

    def load_into(self, opt):
        opt.load_state_dict(interop.from_optax(self.state, opt))

    def load_from(self, opt):
        self.state = interop.to_optax(opt, self.state)


class Sklearn:
    rows = [rule for rule in RULES if rule.name in SKLEARN]
    convention = "sklearn"
    has_maximize = False

    def __init__(self, module, rule, params):
        self.params = [p.copy() for p in params]
        name, options = SKLEARN[rule.name]
        self.optimizer = getattr(module, name)(self.params, 1e-2, **options)

    def step(self, grads):
        self.optimizer.update_params(self.params, grads)

    def values(self):
        return [p.copy() for p in self.params]

    def load_into(self, opt):
        opt.load_state_dict(interop.from_sklearn(self.optimizer))

    def load_from(self, opt):
        self.optimizer = interop.to_sklearn(opt, self.params)


LIBRARIES = {"torch": Torch, "keras": Keras, "optax": Optax, "sklearn": Sklearn}


def make_optimizer(rule, convention, params, **more):
    """The row's optimizer, with the library's convention if it supports several."""
    has_conventions = len(rule.optimizer.RULE.CONVENTIONS) > 1
    return rule.make(params, **({"convention": convention} if has_conventions else {}), **more)


def gradients(values, noise, rule, library=None):
    """Gradients that depend on the parameters, so errors persist; negated to emulate `maximize`."""
    negated = library is not None and not library.has_maximize and rule.options.get("maximize", False)
    return [np.array((-1 if negated else 1) * (v + n), v.dtype) for v, n in zip(values, noise, strict=True)]


def start(shapes, steps, dtype=np.float64, seed=0):
    """Parameters, and the noise in their gradients for each step."""
    rng = np.random.default_rng(seed)
    params = [np.array(rng.standard_normal(s), dtype) for s in shapes]
    return params, [[np.array(rng.standard_normal(s), dtype) for s in shapes] for _ in range(steps)]


def assert_same(actual, expected, rtol=1e-10, atol=1e-13):
    for p, q in zip(actual, expected, strict=True):
        np.testing.assert_allclose(p, q, rtol=rtol, atol=atol)
