"""A small character-level transformer, trained with ``torch.optim.AdamW`` and with `fastopt.torch.AdamW`.

The text is generated: lines of arithmetic such as ``37+58=95;``, and the model predicts the next
character. Both runs begin with the same weights and see the same minibatches, so their losses agree up to
rounding. Clipping by the global norm, the step and zeroing the gradients are three calls in torch and one
here.

Needs PyTorch: pip install 'fastopt[torch]'
"""

import argparse
from statistics import median
from time import perf_counter

import torch
from torch import nn

import fastopt.torch

SYMBOLS = "0123456789+=; "
LENGTH, BATCH, WIDTH, LAYERS, HEADS = 32, 16, 64, 2, 4


def make_text(n_lines, seed=0):
    """Return lines of sums as one tensor of indices of symbols."""
    numbers = torch.randint(0, 100, (n_lines, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    text = "".join(f"{a}+{b}={a + b}; " for a, b in numbers)
    return torch.tensor([SYMBOLS.index(c) for c in text])


class Transformer(nn.Module):
    """A decoder: each position sees the ones before it."""

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


def minibatches(text, steps):
    """Yield inputs, and the same text one character later."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        starts = torch.randint(0, len(text) - LENGTH - 1, (BATCH, 1), generator=generator)
        window = text[starts + torch.arange(LENGTH + 1)]
        yield window[:, :-1], window[:, 1:]


def train(make_optimizer, update, steps):
    """Return the losses and the median time of an update in milliseconds."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = make_optimizer(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    losses, times = [], []
    for inputs, targets in minibatches(make_text(4000), steps):
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        start = perf_counter()
        update(model, optimizer)
        times.append(perf_counter() - start)
        schedule.step()
        losses.append(loss.item())
    return losses, 1e3 * median(times)


def update_in_torch(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def update_in_fastopt(model, optimizer):
    optimizer.step(max_norm=1.0, zero_grad=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args().steps
    runs = {
        "torch.optim.AdamW": train(torch.optim.AdamW, update_in_torch, steps),
        "torch.optim.AdamW, fused": train(
            lambda params, **options: torch.optim.AdamW(params, fused=True, **options), update_in_torch, steps
        ),
        "fastopt.torch.AdamW": train(fastopt.torch.AdamW, update_in_fastopt, steps),
    }
    for name, (losses, milliseconds) in runs.items():
        n = max(1, steps // 10)
        print(f"{name:26} loss {sum(losses[:n]) / n:.4f} -> {sum(losses[-n:]) / n:.4f}, "
              f"{milliseconds:.2f} ms per clipped step")


if __name__ == "__main__":
    main()
