"""fastopt.MLP against torch's autograd: every activation, normalization and loss, float64."""

import numpy as np
import pytest
from mlp_helpers import FEATURES, OUTPUTS, batch, flat

from fastopt.nn.layers import ACTIVATIONS, LOSSES
from fastopt.nn.mlp import MLP

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

TORCH_ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def torch_losses(net):
    """Return functions for the loss of each sample and output (cross-entropy: of each sample)."""
    smooth = net.label_smoothing
    return {
        "cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=smooth),
        "binary_cross_entropy": lambda z, y: F.binary_cross_entropy_with_logits(
            z, y.double() * (1 - smooth) + smooth / 2, reduction="none"
        ),
        "mse": lambda z, y: F.mse_loss(z, y, reduction="none"),
        "squared_error": lambda z, y: F.mse_loss(z, y, reduction="none") / 2,
        "huber": lambda z, y: F.huber_loss(z, y, reduction="none", delta=net.delta),
        "quantile": lambda z, y: torch.maximum(net.quantile * (y - z), (net.quantile - 1) * (y - z)),
        "poisson": lambda z, y: F.poisson_nll_loss(z, y, reduction="none"),
    }


def torch_step(net, X, y, weight):
    """Return the loss, the gradients and the running averages of batch normalization."""
    params = [[torch.tensor(a, requires_grad=True) for a in layer] for layer in net.params]
    running = [[torch.tensor(a) for a in pair] for pair in net.running]
    out = torch.tensor(X)
    for i, (W, b, *scale) in enumerate(params):
        out = out @ W
        norm = net.norm[i] if i < len(net.norm) else None
        if norm == "batch":
            out = F.batch_norm(out, *running[i], scale[0], b, training=True)
        elif norm == "layer":
            out = F.layer_norm(out, b.shape, scale[0], b)
        else:
            out = out + b
        if i < len(net.activation):
            out = TORCH_ACTIVATIONS[net.activation[i]](out)
    losses = torch_losses(net)[net.loss](out, torch.tensor(y))
    if losses.ndim == 2:
        losses = losses.mean(1) if net.reduction == "mean" else losses.sum(1)
    w = torch.ones(len(X)) if weight is None else torch.tensor(weight)
    loss = (w * losses).sum() / w.sum() + net.l2 / 2 * sum((W**2).sum() for W, *_ in params)
    loss.backward()
    return loss.item(), [a.grad.numpy() for a in flat(params)], [a.numpy() for a in flat(running)]


CASES = [{"activation": name} for name in ACTIVATIONS]
CASES += [{"loss": loss} for loss in LOSSES]
CASES += [{"loss": loss, "reduction": "sum", "l2": 0.3} for loss in LOSSES]
CASES += [
    {"norm": "batch"},
    {"norm": "layer"},
    {"norm": ["batch", "layer"], "activation": ["gelu", "silu"]},
    {"label_smoothing": 0.3},
    {"loss": "binary_cross_entropy", "label_smoothing": 0.3},
    {"loss": "huber", "delta": 0.2},
    {"loss": "quantile", "quantile": 0.8},
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_gradients_match_autograd(options, weighted):
    net = MLP(
        [FEATURES, 7, 6, OUTPUTS],
        **{"loss": "cross_entropy", "activation": "tanh", "dtype": "float64", "seed": 1, **options},
    )
    X, y = batch(net.loss, n=37)
    weight = np.random.default_rng(0).uniform(0, 2, 37) if weighted else None
    expected, expected_grads, running = torch_step(net, X, y, weight)
    loss, grads = net.train_step(X, y, weight)
    assert loss == pytest.approx(expected, rel=1e-12)
    for g, e in zip(flat(grads), expected_grads, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12 * np.abs(e).max())
    for actual, e in zip(flat(net.running), running, strict=True):
        np.testing.assert_allclose(actual, e, rtol=1e-12, atol=1e-14)
