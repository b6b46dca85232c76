"""JAX with optax, under jit."""

from functools import partial

import numpy as np

from benchmarks.contenders import AVERAGE, DECAY, MAX_NORM, StepContender, TrainingContender, bench_worker
from fastopt.cli.bench_worker import BETA1, BETA2, EPS, LR


class Optax(StepContender, bench_worker.Optax):
    """optax under jax.jit, with donated parameters and state, which XLA may update in place."""

    def clip(self, params, grads):
        self.saved, optax, jax = grads, self.optax, self.jax
        self.p, self.g, self.averages = self.copies(params), self.copies(grads), self.copies(params)
        rule = optax.chain(
            optax.clip_by_global_norm(MAX_NORM),
            optax.adamw(LR, BETA1, BETA2, EPS, weight_decay=DECAY),
        )
        self.state = rule.init(self.p)

        @partial(jax.jit, donate_argnums=(0, 1, 2, 3))
        def update(params, state, averages, grads):
            updates, state = rule.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            averages = optax.incremental_update(params, averages, 1 - AVERAGE)
            return params, state, averages, jax.tree.map(jax.numpy.zeros_like, grads)

        def step():
            self.p, self.state, self.averages, self.g = update(self.p, self.state, self.averages, self.g)

        return {"step": step}

    def refill(self):
        self.g = self.copies(self.saved)
        self.jax.block_until_ready(self.g)

    def params(self):
        return [np.asarray(a) for a in self.p]

    def fill_state(self, value):
        moments, *others = self.state
        full = partial(self.jax.tree.map, lambda a: self.jax.numpy.full_like(a, value))
        self.state = (moments._replace(mu=full(moments.mu), nu=full(moments.nu)), *others)
        self.finish()


class OptaxTraining(TrainingContender, bench_worker.Optax):
    """JAX: an epoch is one jax.lax.scan under jit, with optax.adam and donated parameters and state."""

    def setup(self, workload):
        super().setup(workload)
        jax = self.jax
        jax.config.update("jax_enable_x64", workload.dtype == np.float64)
        self.X, self.y = jax.numpy.asarray(self.X), jax.numpy.asarray(self.y.astype(np.int32))
        self.net = jax.tree.map(partial(jax.numpy.array, copy=True), workload.make_params())
        rule = self.optax.adam(LR, BETA1, BETA2, EPS)
        self.state = rule.init(self.net)
        self.epoch = self.make_epoch(rule)
        self.rng = np.random.default_rng(0)

    def make_epoch(self, rule):
        jax, optax, batch = self.jax, self.optax, self.workload.batch
        full = self.workload.rows // batch * batch

        def loss(params, X, y):
            for W, b in params[:-1]:
                X = jax.nn.relu(X @ W + b)
            W, b = params[-1]
            return optax.softmax_cross_entropy_with_integer_labels(X @ W + b, y).mean()

        def step(X, y, carry, rows):
            params, state = carry
            batch = (a.at[rows].get(mode="promise_in_bounds") for a in (X, y))
            value, grads = jax.value_and_grad(loss)(params, *batch)
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        @partial(jax.jit, donate_argnums=(0, 1))
        def epoch(params, state, order, X, y):
            update = partial(step, X, y)
            carry, losses = jax.lax.scan(update, (params, state), order[:full].reshape(-1, batch))
            if full < len(order):
                carry, _ = update(carry, order[full:])
            return *carry, losses.mean()

        return epoch

    def train(self, epochs):
        for _ in range(epochs):
            order = self.rng.permutation(self.workload.rows).astype(np.int32)     # faster than XLA's sort
            self.net, self.state, value = self.epoch(self.net, self.state, order, self.X, self.y)
        self.jax.block_until_ready((self.net, self.state, value))

    def params(self):
        return self.jax.tree.map(np.asarray, self.net)
