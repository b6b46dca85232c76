"""Kill training runs at random moments, resume them, and compare with a run that was never stopped.

``fastopt train`` saves its state after every batch, so that many of the kills hit a write. Each run is
killed and resumed until it ends. Then its model and its history, apart from the times, must be equal byte for
byte to those of the uninterrupted run, and the folder must hold the same files. After each kill the newest
backup must be readable.

Usage: python tools/kill_runs.py [--kills 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastopt.checkpoint import load_tree
from fastopt.nn.callbacks.backup import find_backups

_OPTIONS = [
    "--epochs=4", "--batch-size=48", "--dropout=0.2", "--norm=batch", "--ema=0.9", "--save-freq=1",
    "--callbacks=early_stopping(patience=9),reduce_lr_on_plateau()",
]


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start ``fastopt train``."""
    command = [sys.executable, "-m", "fastopt", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process, which must succeed; return its output."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise AssertionError(f"status {process.returncode}\n{output}")
    return output


def results(folder: Path) -> tuple[list[str], bytes, list[dict[str, str]]]:
    """Return the names of the files of a run, its model, and its history without the times."""
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        history = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return sorted(path.name for path in folder.iterdir()), (folder / "model.npz").read_bytes(), history


def check(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill runs `kills` times; return the numbers of runs and of kills that left a partial file behind."""
    rng = random.Random(seed)
    before = os.times()
    finish(start(*_OPTIONS, "--out", str(folder / "expected")))
    after = os.times()
    # The time of the processor, because other processes may have delayed the run.
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    expected = results(folder / "expected")
    run, n_runs, n_partial = folder / "run", 1, 0
    while True:
        is_begun = (run / "config.toml").exists()
        where = ["--resume", str(run)] if is_begun else [*_OPTIONS, "--out", str(run), "--overwrite"]
        process = start(*where)
        if not kills:
            finish(process)
            break
        time.sleep(rng.uniform(0.0, 1.1 * seconds))
        process.kill()
        output, _ = process.communicate()
        if process.returncode == 0:     # it has ended before
            _compare(run, expected, output)
            for path in run.iterdir():
                path.unlink()
            n_runs += 1
            continue
        if process.returncode > 0:
            raise AssertionError(f"status {process.returncode}\n{output}")
        kills -= 1
        n_partial += any(run.glob(".fastopt-tmp-*"))
        for backup in find_backups(run)[-1:]:
            load_tree(backup)
    _compare(run, expected, "")
    return n_runs, n_partial


def _compare(run: Path, expected: object, output: str) -> None:
    if results(run) != expected:
        raise AssertionError(f"the resumed run differs: {results(run)[::2]}\n{output}")


def main() -> None:
    """Print how many runs were killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        n_runs, n_partial = check(Path(folder), args.kills, args.seed)
    print(
        f"{args.kills} kills in {n_runs} runs, {n_partial} of them during a write: models and histories are "
        "equal byte for byte"
    )


if __name__ == "__main__":
    main()
