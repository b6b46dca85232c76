"""
Federated averaging
===================

Each of twenty clients has a part of the digits data, mostly samples of a few classes. In each round, four of
them copy the weights of the server and train on their own data. The server uses the negative mean of their
changes as a gradient. With gradient descent and a learning rate of 1 this is FedAvg; with Adam it is FedAdam
(Reddi et al., *Adaptive federated optimization*, 2021; their Adam has no bias correction).
"""

import matplotlib.pyplot as plt
import numpy as np

import fastopt
from fastopt.nn.data import load_digits, train_test_split

CLIENTS, CHOSEN, ROUNDS, BATCH, RATE = 20, 4, 40, 20, 0.1


def split_among_clients(y, rng):
    """Return the indices of each client's samples; most of them are of a few digits."""
    fractions = rng.dirichlet(np.full(CLIENTS, 0.2), size=10)
    owner = np.array([rng.choice(CLIENTS, p=fractions[digit]) for digit in y])
    return [rows for client in range(CLIENTS) if len(rows := np.flatnonzero(owner == client))]


def client_update(W, X, y, rng):
    """Return the weight change after an epoch of softmax regression on a client's data."""
    local = W.copy()
    for rows in np.array_split(rng.permutation(len(y)), -(-len(y) // BATCH)):
        p = np.exp(X[rows] @ local)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1
        fastopt.functional.sgd_(local, X[rows].T @ p / len(rows), lr=RATE)
    return local - W


def train(make_server):
    """Return the test accuracy after each round."""
    X_train, X_test, y_train, y_test = train_test_split(*load_digits())
    rng = np.random.default_rng(0)
    clients = split_among_clients(y_train, rng)
    W = np.zeros((64, 10), np.float32)
    server, accuracies = make_server(W), []
    for _ in range(ROUNDS):
        chosen = [clients[i] for i in rng.choice(len(clients), CHOSEN, replace=False)]
        updates = [client_update(W, X_train[rows], y_train[rows], rng) for rows in chosen]
        server.step(-np.average(updates, axis=0, weights=[len(rows) for rows in chosen]).astype("f4"))
        accuracies.append(((X_test @ W).argmax(axis=1) == y_test).mean())
    return np.array(accuracies)


average = train(lambda W: fastopt.SGD(W, lr=1.0))
adam = train(lambda W: fastopt.Adam(W, lr=0.1, betas=(0.9, 0.99), eps=1e-3))
for n in (10, 20, 40):
    print(f"Round {n}: test accuracy {average[n - 1]:.4f} by FedAvg, {adam[n - 1]:.4f} by FedAdam")

figure, panel = plt.subplots()
panel.plot(np.arange(1, ROUNDS + 1), 100 * average, label="FedAvg")
panel.plot(np.arange(1, ROUNDS + 1), 100 * adam, "--", label="FedAdam")
panel.set(xlabel="Round", ylabel="Test accuracy (%)")
panel.set_title("Digits, softmax regression, 4 of 20 clients per round")
figure.legend(loc="outside right center")
plt.show()

# %%
# :doc:`/federated` compares more optimizers on the server.
