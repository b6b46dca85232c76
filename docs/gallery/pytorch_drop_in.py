"""
PyTorch drop-in
===============

A small character-level transformer is trained with ``torch.optim.AdamW`` and with
`fastopt.torch.AdamW`. Both runs begin with the same weights and see the same minibatches, so their
losses agree up to rounding. Clipping the gradients, the step and zeroing the gradients are three calls in
torch and one call in fastopt.

.. only:: not torch

   This page was built without PyTorch, so it does not show the output.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import fastopt.torch

SYMBOLS = "0123456789+=; "
LENGTH, BATCH, WIDTH, LAYERS, HEADS, STEPS = 32, 16, 64, 2, 4, 150

# %%
# The text consists of lines of arithmetic such as ``37+58=95;``, and the model predicts the next
# character.


def make_text(n_lines):
    numbers = torch.randint(0, 100, (n_lines, 2), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([SYMBOLS.index(c) for a, b in numbers for c in f"{a}+{b}={a + b}; "])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.symbol, self.position = nn.Embedding(len(SYMBOLS), WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, len(SYMBOLS))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, symbols):
        x = self.symbol(symbols) + self.position.weight
        return self.output(self.layers(x, mask=self.mask, is_causal=True))


# %%
# The two training loops differ only in the update. Schedulers of torch work with both optimizers.


def update_in_torch(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def update_in_fastopt(model, optimizer):
    optimizer.step(max_norm=1.0, zero_grad=True)


def train(make_optimizer, update):
    """Return the losses, and the median time of an update in milliseconds."""
    torch.manual_seed(0)
    model, text, generator = Transformer(), make_text(4000), torch.Generator().manual_seed(1)
    optimizer = make_optimizer(model.parameters(), lr=1e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    losses, times = [], []
    for _ in range(STEPS):
        starts = torch.randint(0, len(text) - LENGTH - 1, (BATCH, 1), generator=generator)
        window = text[starts + torch.arange(LENGTH + 1)]
        loss = nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        start = time.perf_counter()
        update(model, optimizer)
        times.append(time.perf_counter() - start)
        scheduler.step()
        losses.append(loss.item())
    return losses, 1e3 * np.median(times)


RUNS = {
    "torch.optim.AdamW": train(torch.optim.AdamW, update_in_torch),
    "fastopt.torch.AdamW": train(fastopt.torch.AdamW, update_in_fastopt),
}
figure, panel = plt.subplots()
for (name, (losses, milliseconds)), style in zip(RUNS.items(), ("-", ":"), strict=True):
    last = np.mean(losses[-20:])
    print(f"{name:20} loss {losses[0]:.4f} -> {last:.4f}, {milliseconds:.2f} ms per clipped step")
    panel.plot(losses, style, label=f"{name}, {milliseconds:.1f} ms")
panel.set(xlabel="Step", ylabel="Training loss", title="Character-level transformer, AdamW")
figure.legend(loc="outside lower center", ncols=2)
plt.show()

# %%
# :doc:`/pytorch` describes the classes. The tutorial :doc:`/from-torch` converts a training script step by
# step.
