"""Networks as tutorials write them, in NumPy alone: fully connected, and convolutional by ``im2col``.

They follow the protocol of `fastopt.solver`. Biases have shape ``(1, n)`` and their gradients ``(n,)``,
gradients start with the last layer, and nothing takes care of dtypes: float64 inputs give float64 gradients.
"""

import numpy as np


class Dense:
    def __init__(self, inputs, outputs, rng, dtype):
        self.W = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs / 2.0)).astype(dtype)
        self.b = np.zeros((1, outputs), dtype)
        self.params = [self.W, self.b]

    def forward(self, X):
        self.X = X
        return X @ self.W + self.b

    def backward(self, dout):
        dW = self.X.T @ dout
        db = np.sum(dout, axis=0)
        return dout @ self.W.T, [dW, db]


class Convolution:
    """A 3 x 3 convolution without padding; the weights are used as a transposed matrix."""

    def __init__(self, channels, filters, rng, dtype):
        self.W = (rng.standard_normal((filters, channels, 3, 3)) / np.sqrt(9 * channels / 2.0)).astype(dtype)
        self.b = np.zeros((filters, 1), dtype)
        self.params = [self.W, self.b]

    def forward(self, X):
        n, channels, height, width = self.shape = X.shape
        windows = np.lib.stride_tricks.sliding_window_view(X, (3, 3), axis=(2, 3))
        self.columns = windows.transpose(1, 4, 5, 2, 3, 0).reshape(channels * 9, -1)
        out = self.W.reshape(len(self.W), -1) @ self.columns + self.b
        return out.reshape(len(self.W), height - 2, width - 2, n).transpose(3, 0, 1, 2)

    def backward(self, dout):
        n, channels, height, width = self.shape
        flat = dout.transpose(1, 2, 3, 0).reshape(len(self.W), -1)
        db = np.sum(flat, axis=1, keepdims=True)
        dW = (flat @ self.columns.T).reshape(self.W.shape)
        columns = (self.W.reshape(len(self.W), -1).T @ flat).reshape(channels, 3, 3, height - 2, width - 2, n)
        dX = np.zeros(self.shape, dout.dtype)
        for i in range(3):
            for j in range(3):
                dX[:, :, i : i + height - 2, j : j + width - 2] += columns[:, i, j].transpose(3, 0, 1, 2)
        return dX, [dW, db]


class ReLU:
    params = []

    def forward(self, X):
        self.mask = X > 0
        return X * self.mask

    def backward(self, dout):
        return dout * self.mask, []


class Flatten:
    params = []

    def forward(self, X):
        self.shape = X.shape
        return X.reshape(len(X), -1)

    def backward(self, dout):
        return dout.reshape(self.shape), []


class Network:
    def __init__(self, layers):
        self.layers = layers
        self.params = [layer.params for layer in layers]

    def forward(self, X):
        for layer in self.layers:
            X = layer.forward(X)
        return X

    def train_step(self, X, y):
        scores = self.forward(X)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(len(y)), y]).mean()
        dout = p.copy()
        dout[np.arange(len(y)), y] -= 1.0
        dout /= len(y)
        grads = []
        for layer in reversed(self.layers):
            dout, grad = layer.backward(dout)
            grads.append(grad)
        return loss, grads

    def predict(self, X):
        return np.argmax(self.forward(X), axis=1)


def fully_connected(dtype, seed=0):
    """A network for the digits, as rows of 64 pixels."""
    rng = np.random.default_rng(seed)
    return Network([
        Dense(64, 20, rng, dtype), ReLU(), Dense(20, 20, rng, dtype), ReLU(), Dense(20, 10, rng, dtype),
    ])


def convolutional(dtype, seed=0):
    """A network for the digits, as images of shape (1, 8, 8)."""
    rng = np.random.default_rng(seed)
    return Network([
        Convolution(1, 4, rng, dtype), ReLU(), Convolution(4, 4, rng, dtype), ReLU(), Flatten(),
        Dense(64, 10, rng, dtype),
    ])
