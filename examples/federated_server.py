"""Federated learning: clients train on digits of their own, and the server steps with Adam.

FedAdam of Reddi et al., "Adaptive Federated Optimization", 2021. Each round a few clients copy the
server's weights and train them on data that never leave them. The mean of the ways they have gone,
turned around, serves as a gradient on the server. Clients hold only some of the digits, so that they
disagree. Beside it runs FedAvg, which is the same with gradient descent of rate 1 on the server.
(fastopt's Adam corrects its moments for their start at zero; the paper's does not.)
"""

import numpy as np

import fastopt
from fastopt.nn.data import load_digits, train_test_split

CLIENTS, CHOSEN, ROUNDS, BATCH, RATE = 20, 4, 40, 20, 0.1


def share_out(y, rng):
    """Rows of each client, of whom everyone gets a few of the digits."""
    shares = rng.dirichlet(np.full(CLIENTS, 0.2), size=10)
    owner = np.array([rng.choice(CLIENTS, p=shares[digit]) for digit in y])
    return [rows for client in range(CLIENTS) if len(rows := np.flatnonzero(owner == client))]


def client_way(W, X, y, rng):
    """How far an epoch of softmax regression on a client's data leads from the server's weights."""
    local = W.copy()
    for rows in np.array_split(rng.permutation(len(y)), -(-len(y) // BATCH)):
        p = np.exp(X[rows] @ local)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1
        fastopt.functional.sgd_(local, X[rows].T @ p / len(rows), lr=RATE)
    return local - W


def train(make_server):
    """Test accuracy after each round."""
    X_train, X_test, y_train, y_test = train_test_split(*load_digits())
    rng = np.random.default_rng(0)
    clients = share_out(y_train, rng)
    W = np.zeros((64, 10), np.float32)
    server, accuracies = make_server(W), []
    for _ in range(ROUNDS):
        chosen = [clients[i] for i in rng.choice(len(clients), CHOSEN, replace=False)]
        ways = [client_way(W, X_train[rows], y_train[rows], rng) for rows in chosen]
        server.step(-np.average(ways, axis=0, weights=[len(rows) for rows in chosen]).astype("f4"))
        accuracies.append(((X_test @ W).argmax(axis=1) == y_test).mean())
    return np.array(accuracies)


if __name__ == "__main__":
    average = train(lambda W: fastopt.SGD(W, lr=1.0))
    adam = train(lambda W: fastopt.Adam(W, lr=0.1, betas=(0.9, 0.99), eps=1e-3))
    for n in (10, 20, 40):
        print(f"Round {n}: test accuracy {average[n - 1]:.4f} by FedAvg, {adam[n - 1]:.4f} by FedAdam")
