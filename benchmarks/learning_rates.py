"""Which learning rate suits a rule, and how much it matters: the table of docs/learning-rates.md.

    python benchmarks/learning_rates.py fashion-mnist

A net of 256 and 128 ReLU units learns for six epochs in minibatches of 128, always from the same first
weights, with a rate that falls to zero by a cosine; schedule-free rules keep theirs, and are evaluated at
their average. From the default of a rule on, rates are tried upward and downward, three a decade apart
twice, until the test accuracy is a point below the best. Without a folder of data a smaller net
learns the digits that come with fastopt.
"""

import argparse
import contextlib
import sys
from inspect import signature
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import fastopt
from fastopt.nn.data import load, load_digits, train_test_split
from fastopt.optimizers import BY_NAME

RATES = [float(f"{digit}e{power}") for power in range(-7, 3) for digit in (1, 3)]
WITHIN = 0.01       # of the best accuracy: how far rates are tried
# Beside every rule as it is by default. Decay is left out: it is a matter of its own.
VARIANTS = {
    "SGD(momentum=0.9)": (fastopt.SGD, {"momentum": 0.9}),
    "SGD(momentum=0.9, nesterov=True)": (fastopt.SGD, {"momentum": 0.9, "nesterov": True}),
    "SignSGD(momentum=0.9)": (fastopt.SignSGD, {"momentum": 0.9}),
    "Adam(cautious=True)": (fastopt.Adam, {"cautious": True}),
    "AdamW(weight_decay=0.1)": (fastopt.AdamW, {"weight_decay": 0.1}),
    'Muon(adjust_lr_fn="match_rms_adamw")': (fastopt.Muon, {"adjust_lr_fn": "match_rms_adamw"}),
}


def read(folder):
    if folder is None:
        return train_test_split(*load_digits()), [64], 32, 20
    data = load(folder)
    return (data.X_train, data.X_test, data.y_train, data.y_test), [256, 128], 128, 6


def train(rule, options, lr, task):
    """Training loss of the last epoch and test accuracy; of a training that diverged, infinity and 0."""
    (X_train, X_test, y_train, y_test), hidden, batch, epochs = task
    net = fastopt.MLP([X_train.shape[1], *hidden, y_train.max() + 1], loss="cross_entropy", seed=0)
    is_free = hasattr(rule, "averaged")
    steps = epochs * -(-len(y_train) // batch)
    opt = rule(net.params, lr=lr if is_free else fastopt.schedules.Cosine(lr, steps), **options)
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


def sweep(rule, options, task):
    """Results by rate: from the rule's default upward and downward, until they get worse."""
    default = signature(rule).parameters["lr"].default
    start = int(np.argmin([abs(np.log(rate / default)) for rate in RATES]))
    results = {}
    for places in (range(start, len(RATES)), range(start - 1, -1, -1)):
        for place in places:
            results[RATES[place]] = train(rule, options, RATES[place], task)
            accuracies = [accuracy for _, accuracy in results.values()]
            if accuracies[-1] < max(accuracies) - WITHIN and len(results) > 1:
                break
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="a folder of IDX files, an .npz or a CSV")
    parser.add_argument("--rules", help="names in lower case, comma between (default: all)")
    args = parser.parse_args()
    task = read(args.data)
    chosen = {rule.__name__: (rule, {}) for rule in BY_NAME.values()} | VARIANTS
    del chosen["FTRL"]      # it begins at zero, and a net of zeros does not learn
    for name in ("AdamW", "Muon", 'Muon(adjust_lr_fn="match_rms_adamw")'):
        chosen[name] = (chosen[name][0], {**chosen[name][1], "weight_decay": 0.0})
    if args.rules:
        wanted = args.rules.split(",")
        chosen = {name: entry for name, entry in chosen.items() if name.split("(")[0].lower() in wanted}
    print("| rule | default | best | accuracy | loss | within half a point |")
    print("|---|---:|---:|---:|---:|---|")
    for name, (rule, options) in sorted(chosen.items(), key=lambda item: item[0].lower()):
        results = sweep(rule, options, task)
        best = max(results, key=lambda rate: results[rate][1])
        loss, top = results[best]
        good = sorted(rate for rate, (_, accuracy) in results.items() if accuracy >= top - 0.005)
        default = signature(rule).parameters["lr"].default
        print(
            f"| `{name}` | {default:g} | {best:g} | {100 * top:.1f} | {loss:.3f} "
            f"| {good[0]:g} to {good[-1]:g} |", flush=True,
        )


if __name__ == "__main__":
    main()
