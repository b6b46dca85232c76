"""Check that memory does not grow over many optimizer steps with fresh gradients and many fits with backups.

Usage: python tools/check_memory.py [--steps 1000000] [--fits 1000]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastopt
from fastopt.callbacks import BackupAndRestore

_LIMIT = 1 << 20    # bytes by which memory may grow in the last nine tenths


def used_memory() -> int:
    """Return the bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def check(name: str, count: int, run: Callable[[], object]) -> None:
    """Run a function `count` times; raise if memory has grown after the first tenth."""
    for _ in range(count // 10):
        run()
    before = used_memory()
    for _ in range(count - count // 10):
        run()
    grown = used_memory() - before
    print(f"{count:,} {name}: {before >> 20} MiB, grown by {grown / 1024:,.0f} KiB", flush=True)
    if grown > _LIMIT:
        raise AssertionError(f"{name}: memory has grown by {grown:,} bytes")


def main() -> None:
    """Print the memory before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--fits", type=int, default=1_000)
    args = parser.parse_args()

    opt = fastopt.AdamW({"W": np.zeros((8, 8)), "b": np.zeros(8)}, ema=0.9)
    check("steps", args.steps, lambda: opt.step({"W": np.ones((8, 8)), "b": np.ones(8)}, max_norm=1.0))

    X = np.random.default_rng(0).standard_normal((64, 8))
    with tempfile.TemporaryDirectory() as folder:

        def fit() -> None:
            net = fastopt.MLP([8, 16, 2], dropout=0.2, seed=0)
            backup = BackupAndRestore(Path(folder, "backup"))
            trainer = fastopt.Trainer(net, fastopt.Adam(net.params), [backup])
            trainer.fit(X, X[:, 0] > 0, epochs=2, validation_data=(X, X[:, 0] > 0), verbose=0)

        check("fits", args.fits, fit)


if __name__ == "__main__":
    main()
