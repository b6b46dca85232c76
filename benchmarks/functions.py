"""Time the functions without an optimizer object: the tables "Functions" of docs/performance-log.md.

`fastopt.functional.adam_` on one array; steps of optimizer objects whose learning rate changes; the update
functions of `fastopt.solver`, next to the article's lines in NumPy and a step of the optimizer object; the
trainers of `fastopt.solver`, next to a loop by hand around ``opt.step``. Contenders take turns in one
process, and every call gets other gradient objects, as a backward pass makes them. Times are medians in
microseconds, as tables in Markdown.
"""

from itertools import cycle, pairwise
from statistics import median
from time import perf_counter

import numpy as np

import fastopt
from fastopt import functional, solver
from fastopt.cli.options import positive_int

LR, MU, DECAY, BETA1, BETA2 = 0.01, 0.9, 0.9, 0.9, 0.999
NETWORKS = (((64, 32, 10), np.float64), ((784, 256, 128, 10), np.float32))


def add_options(command):
    add = command.add_argument
    add("--threads", type=positive_int, default=fastopt.get_num_threads(), help="(default: %(default)s)")
    add("--rounds", type=positive_int, default=51, help="turns per contender (default: %(default)s)")
    add("--calls", type=positive_int, default=200, help="calls per turn (default: %(default)s)")
    add("--batches", type=positive_int, default=200, help="per training run (default: %(default)s)")


def run(options):
    fastopt.set_num_threads(options.threads)
    print("| functional.adam_ | us per call |\n|---|---:|")
    for dtype in (np.float32, np.float64):
        times = measure({"adam_": functional_calls(dtype)}, options)
        print(f"| 1,000 elements, {np.dtype(dtype).name} | {times['adam_']:.1f} |", flush=True)
    print("\n| 1,000 elements, float32 | " + " | ".join(LR_CHANGES) + " |\n|---|" + len(LR_CHANGES) * "---:|")
    for optimizer in (fastopt.SGD, fastopt.RMSprop, fastopt.Adam, fastopt.AdamW):
        times = measure(learning_rate_calls(optimizer), options)
        plain, *others = (times[name] for name in LR_CHANGES)
        cells = [f"{plain:.2f}", *(f"+{time - plain:.2f}" for time in others)]
        print(f"| {optimizer.__name__} | {' | '.join(cells)} |", flush=True)
    for title, contender, timer in (
        ("update", "function", lambda *network: measure(update_calls(*network), options)),
        ("trainer, per minibatch", "trainer", lambda *network: measure_trainers(*network, options)),
    ):
        names = contender, "NumPy", "opt.step"
        print(f"\n| {title} | {' | '.join(names)} | / NumPy | / opt.step |\n|---|" + 5 * "---:|")
        for sizes, dtype in NETWORKS:
            for name in UPDATES:
                times = timer(name, sizes, dtype)
                first, *others = (times[key] for key in names)
                cells = [f"{time:.1f}" for time in (first, *others)]
                cells += [f"{first / time:.2f}" for time in others]
                network = f"{'-'.join(map(str, sizes))} {np.dtype(dtype).name}"
                print(f"| {name}, {network} | {' | '.join(cells)} |", flush=True)


def measure(contenders, options):
    """Return the median time of a call of each contender, which is called with the number of the call."""
    times = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, call in contenders.items():
            call(0)
            start = perf_counter()
            for i in range(options.calls):
                call(i)
            times[name].append(1e6 * (perf_counter() - start) / options.calls)
    return {name: median(values) for name, values in times.items()}


def functional_calls(dtype):
    rng = np.random.default_rng(0)
    p, m, v = (np.zeros(1000, dtype) for _ in range(3))
    grads = [rng.standard_normal(1000).astype(dtype) for _ in range(2)]
    return lambda i: functional.adam_(p, grads[i % 2], m, v, lr=1e-3, step=i + 2)


# --- The article's lines -----------------------------------------------------------------------------


def numpy_vanilla(states, params, grads, t):
    for layer, layer_grads in zip(params, reversed(grads), strict=True):
        for i in range(len(layer)):
            layer[i] += -LR * layer_grads[i]


def numpy_momentum(states, params, grads, t):
    for v, layer, layer_grads in zip(*states, params, reversed(grads), strict=True):
        for i in range(len(layer)):
            v[i] = MU * v[i] + LR * layer_grads[i]
            layer[i] -= v[i]


def numpy_adagrad(states, params, grads, t):
    for c, layer, layer_grads in zip(*states, params, reversed(grads), strict=True):
        for i in range(len(layer)):
            c[i] += layer_grads[i] ** 2
            layer[i] += -LR * layer_grads[i] / (np.sqrt(c[i]) + 1e-8)


def numpy_rmsprop(states, params, grads, t):
    for c, layer, layer_grads in zip(*states, params, reversed(grads), strict=True):
        for i in range(len(layer)):
            c[i] = DECAY * c[i] + (1 - DECAY) * layer_grads[i] ** 2
            layer[i] += -LR * layer_grads[i] / (np.sqrt(c[i]) + 1e-4)


def numpy_adam(states, params, grads, t):
    for v, c, layer, layer_grads in zip(*states, params, reversed(grads), strict=True):
        for i in range(len(layer)):
            v[i] = BETA1 * v[i] + (1 - BETA1) * layer_grads[i]
            c[i] = BETA2 * c[i] + (1 - BETA2) * layer_grads[i] ** 2
            mean, square = v[i] / (1 - BETA1**t), c[i] / (1 - BETA2**t)
            layer[i] += -LR * mean / (np.sqrt(square) + 1e-4)


# Number of states, NumPy, function, optimizer, trainer.
UPDATES = {
    "vanilla": (
        0, numpy_vanilla, lambda s, p, g, t: solver.vanilla_update(p, g, LR),
        lambda p: fastopt.SGD(p, LR), solver.sgd,
    ),
    "momentum": (
        1, numpy_momentum, lambda s, p, g, t: solver.momentum_update(*s, p, g, LR, MU),
        lambda p: fastopt.SGD(p, LR, MU, convention="article"), solver.sgd_momentum,
    ),
    "adagrad": (
        1, numpy_adagrad, lambda s, p, g, t: solver.adagrad_update(*s, p, g, LR),
        lambda p: fastopt.Adagrad(p, LR, convention="article"), solver.adagrad,
    ),
    "rmsprop": (
        1, numpy_rmsprop, lambda s, p, g, t: solver.rmsprop_update(*s, p, g, LR, DECAY),
        lambda p: fastopt.RMSprop(p, LR, DECAY, convention="article"), solver.rmsprop,
    ),
    "adam": (
        2, numpy_adam, lambda s, p, g, t: solver.adam_update(*s, p, g, LR, BETA1, BETA2, t=t),
        lambda p: fastopt.Adam(p, LR, (BETA1, BETA2), convention="article"), solver.adam,
    ),
}


def layers_of(rng, sizes, dtype):
    return [
        [(rng.standard_normal((m, n)) / np.sqrt(m)).astype(dtype), np.zeros(n, dtype)]
        for m, n in pairwise(sizes)
    ]


def zeros(layers):
    return [[np.zeros_like(array) for array in layer] for layer in layers]


def update_calls(name, sizes, dtype):
    """Calls of the contenders for one network, each with parameters and gradients of its own."""
    count, in_numpy, function, make, _ = UPDATES[name]
    calls = {}
    for contender, update in (("function", function), ("NumPy", in_numpy), ("opt.step", None)):
        rng = np.random.default_rng(0)
        params = layers_of(rng, sizes, dtype)
        grads = [[[0.01 * a + 0.001 for a in layer] for layer in reversed(params)] for _ in range(2)]
        states = [zeros(params) for _ in range(count)]
        if update is None:
            opt, forward = make(params), [g[::-1] for g in grads]
            calls[contender] = lambda i, opt=opt, forward=forward: opt.step(forward[i % 2])
        else:
            calls[contender] = lambda i, u=update, s=states, p=params, g=grads: u(s, p, g[i % 2], i + 2)
    return calls


# --- Learning rates that change ----------------------------------------------------------------------

LR_CHANGES = "step", "`lr` set to the same value", "`lr` set to another value", "`lr` is a schedule"


def learning_rate_calls(optimizer):
    """Steps without and with a change of the learning rate."""
    schedule = fastopt.schedules.Cosine(LR, 10**6)
    calls = {}
    for name, lr in zip(LR_CHANGES, (LR, LR, LR, schedule), strict=True):
        p = np.ones(1000, np.float32)
        opt, grads = optimizer(p, lr=lr), [np.full_like(p, value) for value in (0.1, -0.1)]
        values = {"`lr` set to the same value": (LR, LR), "`lr` set to another value": (LR, LR / 2)}.get(name)
        calls[name] = lambda i, opt=opt, grads=grads, values=values: (
            values and opt.groups[0].__setitem__("lr", values[i % 2]), opt.step(grads[i % 2])
        )
    return calls


# --- Training ----------------------------------------------------------------------------------------


class Network:
    """Fully connected, in NumPy, with the article's protocol."""

    def __init__(self, sizes, dtype):
        layers = layers_of(np.random.default_rng(0), sizes, dtype)
        self.params = [layer for pair in zip(layers, cycle([[]]), strict=False) for layer in pair][:-1]
        self.weights = layers

    def train_step(self, X, y):
        inputs = [X]
        for W, b in self.weights[:-1]:
            inputs.append(np.maximum(inputs[-1] @ W + b, 0))
        W, b = self.weights[-1]
        scores = inputs[-1] @ W + b
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        loss = -np.log(p[rows, y]).mean()
        p[rows, y] -= 1
        back, grads = p / len(y), []
        for k in range(len(self.weights) - 1, -1, -1):
            grads += [[inputs[k].T @ back, back.sum(axis=0)], []]
            if k:
                back = (back @ self.weights[k][0].T) * (inputs[k] > 0)
        return loss, grads[:-1]

    def predict(self, X):
        for W, b in self.weights[:-1]:
            X = np.maximum(X @ W + b, 0)
        return np.argmax(X @ self.weights[-1][0] + self.weights[-1][1], axis=1)


def measure_trainers(name, sizes, dtype, options):
    """Return the median time per minibatch of 32 samples of each contender."""
    count, in_numpy, _, make, train = UPDATES[name]
    rng = np.random.default_rng(0)
    X = rng.standard_normal((32 * options.batches, sizes[0])).astype(dtype)
    y = rng.integers(0, sizes[-1], len(X))

    def by_hand(net):
        opt = make(net.params)
        order = np.random.permutation(len(X))  # noqa: NPY002 (as the trainers)
        for start in range(0, len(X), 32):
            batch = order[start : start + 32]
            opt.step(net.train_step(X[batch], y[batch])[1][::-1])

    def by_numpy(net):
        states = [zeros(net.params) for _ in range(count)]
        order = np.random.permutation(len(X))  # noqa: NPY002
        for t, start in enumerate(range(0, len(X), 32), 1):
            batch = order[start : start + 32]
            in_numpy(states, net.params, net.train_step(X[batch], y[batch])[1], t)

    contenders = {
        "trainer": lambda net: train(net, X, y, 32, 1, LR, verbose=False),
        "NumPy": by_numpy,
        "opt.step": by_hand,
    }
    times = {name: [] for name in contenders}
    for _ in range(max(options.rounds // 5, 1)):
        for contender, call in contenders.items():
            net = Network(sizes, dtype)
            start = perf_counter()
            call(net)
            times[contender].append(1e6 * (perf_counter() - start) / options.batches)
    return {name: median(values) for name, values in times.items()}
