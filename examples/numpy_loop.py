"""A training loop in plain NumPy with an optimizer of fastopt: softmax regression on the packaged digits.

The gradient is computed in four lines. Everything else is an option of the optimizer: warmup and cosine
annealing of the learning rate, clipping by the global norm, and an exponential moving average of the weights,
which is evaluated at the end.
"""

import numpy as np

import fastopt
from fastopt.nn.data import load_digits, train_test_split

EPOCHS, BATCH = 30, 32


def gradients(W, b, X, y):
    """Return the loss of a minibatch, and its gradients with respect to W and b."""
    rows = np.arange(len(y))
    logits = X @ W + b
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[rows, y]).mean()
    p[rows, y] -= 1
    p /= len(y)
    return loss, [X.T @ p, p.sum(axis=0)]


def accuracy(W, b, X, y):
    return ((X @ W + b).argmax(axis=1) == y).mean()


def main():
    X_train, X_test, y_train, y_test = train_test_split(*load_digits())
    W, b = np.zeros((64, 10), np.float32), np.zeros(10, np.float32)

    steps = EPOCHS * -(-len(X_train) // BATCH)
    decay = fastopt.schedules.Cosine(0.02, steps - 100)
    opt = fastopt.Adam([W, b], lr=fastopt.schedules.LinearWarmup(100, decay), ema=0.98)

    rng = np.random.default_rng(0)
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(X_train))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            loss, grads = gradients(W, b, X_train[rows], y_train[rows])
            opt.step(grads, max_norm=1.0)
        if epoch % 10 == 0:
            print(f"Epoch {epoch}: loss {loss:.4f}, norm of the gradient {opt.grad_norm:.3f}")

    print(f"Test accuracy of the last weights: {accuracy(W, b, X_test, y_test):.4f}")
    with opt.swapped_ema():
        print(f"Test accuracy of their average: {accuracy(W, b, X_test, y_test):.4f}")


if __name__ == "__main__":
    main()
