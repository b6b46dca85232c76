"""Find the best learning rate of each optimizer: the table of docs/learning-rates.md.

A network with hidden layers of 256 and 128 ReLU units is trained for six epochs in minibatches of 128,
always from the same initial weights, with a learning rate that is annealed to zero with a cosine schedule;
schedule-free optimizers keep theirs, and are evaluated at their average. From the default of an optimizer
on, larger and smaller rates are tried, 1 and 3 times the powers of ten, until the test accuracy is a point
below the best. Without data a smaller network is trained on the digits of fastopt.
"""

import contextlib
from inspect import signature

import numpy as np

import fastopt
from fastopt.nn.data import load, load_digits, train_test_split
from fastopt.optimizers import BY_NAME

RATES = [float(f"{digit}e{power}") for power in range(-7, 3) for digit in (1, 3)]
WITHIN = 0.01       # of the best accuracy: rates are tried until they are worse
# In addition to every optimizer with its defaults.
VARIANTS = {
    "SGD(momentum=0.9)": (fastopt.SGD, {"momentum": 0.9}),
    "SGD(momentum=0.9, nesterov=True)": (fastopt.SGD, {"momentum": 0.9, "nesterov": True}),
    "SignSGD(momentum=0.9)": (fastopt.SignSGD, {"momentum": 0.9}),
    "Adam(cautious=True)": (fastopt.Adam, {"cautious": True}),
    "AdamW(weight_decay=0.1)": (fastopt.AdamW, {"weight_decay": 0.1}),
    'Muon(adjust_lr_fn="match_rms_adamw")': (fastopt.Muon, {"adjust_lr_fn": "match_rms_adamw"}),
}


def read(folder):
    """Return split data, widths of the hidden layers, batch size and epochs."""
    if folder is None:
        return train_test_split(*load_digits()), [64], 32, 20
    data = load(folder)
    return (data.X_train, data.X_test, data.y_train, data.y_test), [256, 128], 128, 6


def train(optimizer, options, lr, task):
    """Return the last training loss and the test accuracy; infinity and 0 for a run that diverged."""
    (X_train, X_test, y_train, y_test), hidden, batch, epochs = task
    net = fastopt.MLP([X_train.shape[1], *hidden, y_train.max() + 1], loss="cross_entropy", seed=0)
    is_free = hasattr(optimizer, "averaged")
    steps = epochs * -(-len(y_train) // batch)
    opt = optimizer(net.params, lr=lr if is_free else fastopt.schedules.Cosine(lr, steps), **options)
    trainer = fastopt.Trainer(net, opt, [fastopt.callbacks.TerminateOnNaN()])
    with np.errstate(all="ignore"):
        history = trainer.fit(
            X_train, y_train, batch_size=batch, epochs=epochs, verbose=0, seed=0, training_accuracy=False
        )
        loss = history.history["loss"][-1]
        if len(history.history["loss"]) < epochs or not np.isfinite(loss):
            return np.inf, 0.0
        with opt.averaged() if is_free else contextlib.nullcontext():
            return loss, (net.predict(X_test) == y_test).mean()


def sweep(optimizer, options, task):
    """Return the results by rate, from the default upward and downward until they get worse."""
    default = signature(optimizer).parameters["lr"].default
    start = int(np.argmin([abs(np.log(rate / default)) for rate in RATES]))
    results = {}
    for rates in (RATES[start:], RATES[:start][::-1]):
        for rate in rates:
            results[rate] = train(optimizer, options, rate, task)
            accuracies = [accuracy for _, accuracy in results.values()]
            if accuracies[-1] < max(accuracies) - WITHIN and len(results) > 1:
                break
    return results


def add_options(command):
    command.add_argument("data", nargs="?", help="a folder of IDX files, an .npz or a CSV")
    command.add_argument("--optimizers", help="names in lower case, comma-separated (default: all)")


def run(options):
    task = read(options.data)
    chosen = {optimizer.__name__: (optimizer, {}) for optimizer in BY_NAME.values()} | VARIANTS
    del chosen["FTRL"]      # it sets the weights to zero at its first step, and such a network does not learn
    for name in ("AdamW", "Muon", 'Muon(adjust_lr_fn="match_rms_adamw")'):
        chosen[name] = (chosen[name][0], {**chosen[name][1], "weight_decay": 0.0})
    if options.optimizers:
        wanted = options.optimizers.split(",")
        chosen = {name: entry for name, entry in chosen.items() if name.split("(")[0].lower() in wanted}
    print("| optimizer | default | best | accuracy | loss | within half a point |")
    print("|---|---:|---:|---:|---:|---|")
    for name, (optimizer, hyperparameters) in sorted(chosen.items(), key=lambda item: item[0].lower()):
        results = sweep(optimizer, hyperparameters, task)
        best = max(results, key=lambda rate: results[rate][1])
        loss, top = results[best]
        good = sorted(rate for rate, (_, accuracy) in results.items() if accuracy >= top - 0.005)
        default = signature(optimizer).parameters["lr"].default
        print(
            f"| `{name}` | {default:g} | {best:g} | {100 * top:.1f} | {loss:.3f} "
            f"| {good[0]:g} to {good[-1]:g} |", flush=True,
        )
