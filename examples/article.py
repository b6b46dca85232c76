"""Train the article's network on the packaged digits with the article's six optimizers.

The network is that of the article: two layers in NumPy, whose gradients are listed from the last layer to the
first. fastopt.solver trains it unchanged. All runs start from the same initial weights. See docs/article.md.
"""

import time

import numpy as np

from fastopt import solver
from fastopt.nn.data import load_digits, train_test_split

OPTIMIZERS = {
    "SGD": (solver.sgd, 0.1, {}),
    "Momentum": (solver.sgd_momentum, 0.02, {"mu": 0.9}),
    "Nesterov": (solver.sgd_momentum, 0.02, {"mu": 0.9, "nesterov": True}),
    "AdaGrad": (solver.adagrad, 0.02, {}),
    "RMSprop": (solver.rmsprop, 0.002, {}),
    "Adam": (solver.adam, 0.002, {}),
}


class Network:
    def __init__(self, inputs, hidden, outputs, rng):
        self.W1 = rng.normal(0, np.sqrt(2 / inputs), (inputs, hidden))
        self.b1 = np.zeros(hidden)
        self.W2 = rng.normal(0, np.sqrt(2 / hidden), (hidden, outputs))
        self.b2 = np.zeros(outputs)
        self.params = [[self.W1, self.b1], [self.W2, self.b2]]

    def forward(self, X):
        hidden = np.maximum(X @ self.W1 + self.b1, 0)
        return hidden, hidden @ self.W2 + self.b2

    def train_step(self, X, y):
        rows, (hidden, scores) = np.arange(len(y)), self.forward(X)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[rows, y]).mean()
        p[rows, y] -= 1
        p /= len(y)
        back = (p @ self.W2.T) * (hidden > 0)
        return loss, [[hidden.T @ p, p.sum(axis=0)], [X.T @ back, back.sum(axis=0)]]

    def predict(self, X):
        return self.forward(X)[1].argmax(axis=1)


if __name__ == "__main__":
    X_train, X_test, y_train, y_test = train_test_split(*load_digits())
    print("Optimizer  Rate   Training loss   Test accuracy   Time (s)")
    for name, (train, rate, options) in OPTIMIZERS.items():
        np.random.seed(0)  # noqa: NPY002 (the article's minibatches use the global random state)
        net, start = Network(64, 64, 10, np.random.default_rng(0)), time.perf_counter()
        train(net, X_train, y_train, 32, 15, rate, verbose=False, **options)
        seconds, loss = time.perf_counter() - start, net.train_step(X_train, y_train)[0]
        right = solver.accuracy(y_test, net.predict(X_test))
        print(f"{name:<9}{rate:>6}{loss:>16.4f}{right:>16.4f}{seconds:>11.2f}")
