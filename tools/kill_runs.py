"""Kill training runs at random moments, resume them, and compare with a run that was never stopped.

``fastopt train`` saves its state after every batch, so that many of the kills hit a write. Runs are killed
once each, then one run again and again; they are resumed until they end. Then model and history, apart from
the times, must be equal byte for byte to those of the uninterrupted run, and the folder must hold the same
files, whose checksums must be right. After each kill all backups must be readable.

Usage: python tools/kill_runs.py [--kills 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastopt.checkpoint import load_tree
from fastopt.cli import outputs
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
    outputs.read_summary(str(folder))
    return sorted(path.name for path in folder.iterdir()), (folder / "model.npz").read_bytes(), history


def check(folder: Path, kills: int, kills_per_run: int, seed: int) -> tuple[int, int]:
    """Kill runs `kills` times; return the numbers of runs and of kills that left a partial file behind."""
    rng = random.Random(seed)
    before = os.times()
    finish(start(*_OPTIONS, "--out", str(folder / "expected")))
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    expected = results(folder / "expected")
    n_runs = n_partial = 0
    while kills:
        run, n_left = folder / f"run-{n_runs}", min(kills, kills_per_run)
        n_runs += 1
        while True:
            is_begun = (run / "config.toml").exists()
            where = ["--resume", str(run)] if is_begun else [*_OPTIONS, "--out", str(run), "--overwrite"]
            process = start(*where)
            if n_left:
                _wait(process, rng.uniform(0.0, seconds))
                process.kill()
            output, _ = process.communicate()
            if process.returncode == 0:     # if the process should have been killed, it was faster
                break
            if process.returncode > 0:
                raise AssertionError(f"status {process.returncode}\n{output}")
            kills, n_left = kills - 1, n_left - 1
            n_partial += any(run.glob(".fastopt-tmp-*"))
            for backup in find_backups(run):
                load_tree(backup)
        if results(run) != expected:
            raise AssertionError(f"the resumed run differs: {results(run)[::2]}\n{output}")
        shutil.rmtree(run)
    return n_runs, n_partial


def _wait(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a process has used the processor for some seconds, as others may have delayed it."""
    while process.poll() is None:
        try:
            nanoseconds = Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()[0]
        except OSError:     # not on Linux
            time.sleep(seconds)
            return
        if int(nanoseconds) >= 1e9 * seconds:
            return
        time.sleep(1e-3)


def main() -> None:
    """Print how many runs were killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kills_per_run in (1, args.kills):
            path = Path(folder, str(kills_per_run))
            path.mkdir()
            n_runs, n_partial = check(path, args.kills, kills_per_run, args.seed)
            print(
                f"{args.kills} kills, at most {kills_per_run} per run, {n_partial} of them during a write: "
                f"the models and histories of all {n_runs} runs are equal byte for byte to those of an "
                "uninterrupted run",
                flush=True,
            )


if __name__ == "__main__":
    main()
