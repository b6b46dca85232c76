"""Train a multilayer perceptron on Fashion-MNIST to a test accuracy of about 91 %.

The recipe uses two hidden layers with batch normalization and dropout, label smoothing, AdamW with decoupled
weight decay, and a one-cycle learning rate schedule. Each of them is one argument.

    python examples/fashion_mnist.py fashion-mnist

Without a data folder it trains a smaller network on the packaged digits, in a second.
"""

import argparse
import time

import fastopt
from fastopt import schedules
from fastopt.nn.data import load, load_digits, train_test_split


def read(folder):
    if folder is not None:
        data = load(folder)
        return data.X_train, data.X_test, data.y_train, data.y_test
    return train_test_split(*load_digits())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="folder of IDX files, .npz file or CSV file")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    X_train, X_test, y_train, y_test = read(args.data)
    hidden = [512, 256] if args.data else [128, 64]
    net = fastopt.MLP(
        [X_train.shape[1], *hidden, y_train.max() + 1],
        loss="cross_entropy",
        norm="batch",
        dropout=0.3,
        label_smoothing=0.1,
        seed=args.seed,
    )
    print(net.summary(), end="\n\n")

    batch_size = 128
    steps = -(-len(X_train) // batch_size) * args.epochs
    opt = fastopt.AdamW(net.params, lr=schedules.OneCycle(2e-3, steps=steps), weight_decay=0.02)
    start = time.perf_counter()
    fastopt.Trainer(net, opt).fit(
        X_train,
        y_train,
        batch_size=batch_size,
        epochs=args.epochs,
        validation_data=(X_test, y_test),
        training_accuracy=False,
        seed=args.seed,
    )
    accuracy = (net.predict(X_test) == y_test).mean()
    print(f"\nTest accuracy {accuracy:.4f} after {time.perf_counter() - start:.1f} seconds")


if __name__ == "__main__":
    main()
