"""Train two small networks with every number format: the accuracy in docs/number-formats.md.

The first task is an MLP on images, the second one a network that predicts the next character of the
documentation from the 16 before it. All runs of a seed have the same initial weights and minibatches. A
value is the training loss of the last epoch, or of the last 300 steps; formats are compared with float32.

The update error is that of the last step of a run in float32: optimizers with other state receive the same
gradients in all steps, and the error is the norm of the difference of the updates over that of the update.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

import fastopt
from benchmarks.formats import FORMATS
from fastopt import plots
from fastopt.cli.options import positive_int
from fastopt.nn.data import load

LR = 1e-3
FLOAT32 = "float32 / float32"
CHOSEN = {      # dtype of parameters and gradients, and options
    **{name: ("bfloat16" if is_16 else "float32", options) for name, (is_16, options) in FORMATS.items()},
    "bfloat16 to nearest / float32": ("bfloat16", {"rounding": "nearest"}),
}
INFERIOR = {"bfloat16 to nearest / float32"}    # for comparison
TOLERANCE = {"images": 0.003, "characters": 0.008}
CONTEXT, EMBEDDING = 16, 24


class Images:
    """An MLP with 256 and 128 hidden units on a data set of images, 5 epochs in minibatches of 128."""

    def __init__(self, folder):
        data = load(folder)
        self.X, self.y = np.asarray(data.X_train, np.float32).reshape(len(data.y_train), -1), data.y_train
        self.last = -(-len(self.y) // 128)
        self.steps = 5 * self.last
        self.sizes = [self.X.shape[1], 256, 128, int(self.y.max()) + 1]

    def batches(self, rng):
        for _ in range(5):
            order = rng.permutation(len(self.y))
            for i in range(0, len(order), 128):
                yield self.X[order[i : i + 128]], self.y[order[i : i + 128]]

    def make_params(self, rng):
        return dense_params(self.sizes, rng)

    def loss_and_grads(self, params, X, y):
        return backward(params, X, y)[:2]


class Characters:
    """A network that predicts the next character of a text, 1,500 steps of 128 characters."""

    last, steps = 300, 1500

    def __init__(self, folder):
        text = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.md")))
        alphabet, codes = np.unique(np.array(list(text)), return_inverse=True)
        self.n_chars, self.codes = len(alphabet), codes

    def batches(self, rng):
        for _ in range(self.steps):
            starts = rng.integers(len(self.codes) - CONTEXT, size=128)
            rows = self.codes[starts[:, None] + np.arange(CONTEXT + 1)]
            yield rows[:, :-1], rows[:, -1]

    def make_params(self, rng):
        embedding = rng.standard_normal((self.n_chars, EMBEDDING)).astype(np.float32)
        return [embedding, *dense_params([CONTEXT * EMBEDDING, 256, 256, self.n_chars], rng)]

    def loss_and_grads(self, params, X, y):
        loss, grads, grad_input = backward(params[1:], params[0][X].reshape(len(X), -1), y)
        one_hot = np.eye(self.n_chars, dtype=np.float32)[X.ravel()]
        return loss, [one_hot.T @ grad_input.reshape(-1, EMBEDDING), *grads]


def dense_params(sizes, rng):
    params = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        weight = rng.standard_normal((fan_in, fan_out)) * np.sqrt(2 / fan_in)
        params += [weight.astype(np.float32), np.zeros(fan_out, np.float32)]
    return params


def backward(params, X, y):
    """Return the cross-entropy of a ReLU network, the gradients, and the gradient of its input."""
    inputs = [X]
    for i in range(0, len(params), 2):
        X = X @ params[i] + params[i + 1]
        if i + 2 < len(params):
            inputs.append(np.maximum(X, 0, out=X))
    X -= X.max(axis=1, keepdims=True)
    np.exp(X, out=X)
    X /= X.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(X[rows, y]).mean()
    X[rows, y] -= 1
    delta = X / np.float32(len(y))
    grads = []
    for i in reversed(range(0, len(params), 2)):
        grads[:0] = [inputs[i // 2].T @ delta, delta.sum(axis=0)]
        delta = delta @ params[i].T
        if i:
            delta *= inputs[i // 2] > 0
    return loss, grads, delta


class FastoptRun:
    """AdamW of fastopt on copies of float32 arrays in a number format."""

    def __init__(self, params, name, seed):
        import ml_dtypes  # of the extra bf16

        dtype, options = CHOSEN[name]
        self.dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        self.params = [p.astype(self.dtype) for p in params]
        self.opt = fastopt.AdamW(self.params, lr=LR, seed=seed, **options)

    def values(self):
        return [p.astype(np.float32) for p in self.params]

    def step(self, grads):
        self.opt.step([g.astype(self.dtype) for g in grads])


class TorchRun:
    """AdamW of another library on tensors that share the memory of float32 arrays."""

    def __init__(self, params, name, seed):
        import torch

        self.params = [p.copy() for p in params]
        self.tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in self.params]
        if name == "bitsandbytes, 8 bits":
            from bitsandbytes.optim import AdamW8bit as AdamW
        elif name == "torchao, 8 bits":
            from torchao.optim import AdamW8bit as AdamW
        else:
            AdamW = torch.optim.AdamW
        self.from_numpy = torch.from_numpy
        self.opt = AdamW(self.tensors, lr=LR, weight_decay=0.01)

    def values(self):
        return self.params

    def step(self, grads):
        for tensor, g in zip(self.tensors, grads, strict=True):
            tensor.grad = self.from_numpy(g)
        self.opt.step()


PEERS = ("torch, float32", "bitsandbytes, 8 bits", "torchao, 8 bits")


def make_run(params, name, seed):
    return (TorchRun if name in PEERS else FastoptRun)(params, name, seed)


def train(task, name, seed, shadows=()):
    """Return the loss at the end of a run, and the update error of each of the other formats."""
    rng = np.random.default_rng(seed)
    params = task.make_params(rng)
    run, others = make_run(params, name, seed), {other: make_run(params, other, seed) for other in shadows}
    losses = []
    with np.errstate(all="ignore"):     # of contenders that diverge
        for step, (X, y) in enumerate(task.batches(rng), 1):
            loss, grads = task.loss_and_grads(run.values(), X, y)
            losses.append(loss)
            runs = {name: run, **others}
            before = {key: flat(other) for key, other in runs.items()} if step == task.steps else {}
            for other in runs.values():
                other.step(grads)
        updates = {key: flat(runs[key]) - start for key, start in before.items()}
        norm = np.linalg.norm(updates[name])
        errors = {other: np.linalg.norm(updates[other] - updates[name]) / norm for other in others}
        return float(np.mean(losses[-task.last:])), errors


def flat(run):
    return np.concatenate([np.asarray(p, np.float64).ravel() for p in run.values()])


def add_options(command):
    add = command.add_argument
    add("data", help="a folder of IDX files of images, such as Fashion-MNIST")
    add("--text", default="docs", help="a folder of .md files with the characters (default: docs)")
    add("--seeds", type=positive_int, default=3, help="runs per format (default: %(default)s)")
    add("--peers", action="store_true", help="also train with torch, bitsandbytes and torchao")
    add("--plot", metavar="FILE.svg", help="draw the differences to float32")


def run(options):
    tasks = {"images": Images(options.data), "characters": Characters(options.text)}
    names = [*CHOSEN, *(PEERS if options.peers else ())]
    losses = {(task, name): [] for task in tasks for name in names}
    errors = {(task, name): [] for task in tasks for name in names}
    same = [name for name in names if name in PEERS or CHOSEN[name][0] == "float32"]
    for seed in range(options.seeds):
        for task, work in tasks.items():
            for name in names:
                shadows = [other for other in same if other != name] if name == FLOAT32 else []
                loss, own_errors = train(work, name, seed, shadows)
                losses[task, name].append(loss)
                print(f"{task}, seed {seed}, {name}: {loss:.5f}", file=sys.stderr, flush=True)
                for other, error in own_errors.items():
                    errors[task, other].append(error)
    print(f"| {' | '.join(['parameters and gradients / state', *tasks, 'update error'])} |")
    print(f"|---|{(len(tasks) + 1) * '---:|'}")
    for name in names:
        cells = [f"{np.mean(losses[task, name]):.4f}" for task in tasks]
        found = [error for task in tasks for error in errors[task, name]]
        print(f"| {' | '.join([name, *cells, f'{np.mean(found):.3f}' if found else ''])} |", flush=True)
    if options.plot:
        draw(losses, tasks, names, options.plot)
    missed = [
        f"{name} on {task}: {excess(losses, task, name):+.4f}" for task in tasks for name in CHOSEN
        if name not in INFERIOR and not abs(excess(losses, task, name)) <= TOLERANCE[task]
    ]
    if missed:
        raise ValueError(f"loss: expected that of float32 up to the tolerance, got {'; '.join(missed)}")


def excess(losses, task, name):
    return np.mean(losses[task, name]) - np.mean(losses[task, FLOAT32])


def draw(losses, tasks, names, path):
    """Draw the difference of each run to float32, and the mean of each format that is not inferior."""
    figure = plots.make_figure(figsize=(9, 0.32 * len(names) + 1.2))
    shown = [name for name in names if name != FLOAT32 and name not in INFERIOR]
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True), tasks, strict=True):
        limit = TOLERANCE[task]
        axes.axvspan(-limit, limit, color="0.5", alpha=0.15, linewidth=0)
        axes.axvline(0, color="0.5", linewidth=1)
        for i, name in enumerate(shown):
            difference = np.subtract(losses[task, name], losses[task, FLOAT32])
            axes.plot(difference, np.full(len(difference), i), "o", color="C0", alpha=0.6, markersize=4)
            axes.plot(difference.mean(), i, "|", color="C1", markersize=14, markeredgewidth=2)
        axes.set(title=f"{task}: training loss minus that of float32", ylim=(len(shown) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)
    figure.axes[0].set_yticks(range(len(shown)), shown)
    figure.savefig(path)
