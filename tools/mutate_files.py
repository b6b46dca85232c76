"""Load files that have been damaged at random, and check what happens.

For each kind of file, a good one is written, and then changed at random many times: bits and bytes are
changed, ranges are removed, inserted, repeated, overwritten or filled with one value, the end is cut off or
random bytes are appended. Loading it must raise the documented error or, for the kinds that have checksums,
return the contents of the good file. The address space of the process is limited, so a damaged length that
makes a reader ask for too much memory is an error as well.

Usage: python tools/mutate_files.py [--count 200000] [--seed 0] [KIND ...]
"""

from __future__ import annotations

import argparse
import collections
import gzip
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt
from fastopt.callbacks import EarlyStopping, SwapEMAWeights
from fastopt.checkpoint import load_tree, save_tree
from fastopt.cli import outputs
from fastopt.nn import MLP, data

_MEMORY = 512 << 20     # bytes that the process may allocate beyond what it has at the start


class Kind(NamedTuple):
    """A kind of file: its name, how it is written and read, and whether it has checksums."""

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    has_checksums: bool = True


def _optimizer() -> fastopt.Adam:
    params = {"W": np.arange(6.0).reshape(2, 3), "b": np.ones(3)}
    opt = fastopt.Adam(params, ema=0.9)
    opt.step({name: array + 1 for name, array in params.items()})
    return opt


def _read_optimizer(path: Path) -> Any:
    opt = fastopt.Adam({"W": np.zeros((2, 3)), "b": np.zeros(3)}, ema=0.9)
    opt.load(path)
    return opt.state_dict()


def _read_network(path: Path) -> Any:
    net = MLP.load(path)
    return [repr(net), net.state_dict()]


def _write_network(path: Path) -> None:
    MLP([3, 4, 2], norm="batch", seed=0).save(path)


def _write_data(path: Path) -> None:
    np.savez_compressed(path, X=np.arange(12.0).reshape(4, 3), y=np.array(list("abca")))


def _write_idx(path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + np.array([5, 4, 4], ">u4").tobytes()
    content = header + bytes(range(80))
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_tree(path: Path) -> None:
    save_tree(path, {"a": [1, 2.5, None, {"b": np.arange(5)}], "c": "text", "d": np.ones((2, 2), np.float32)})


def _trainer() -> fastopt.Trainer:
    net = MLP([3, 4, 2], dropout=0.2, seed=0)
    return fastopt.Trainer(net, fastopt.Adam(net.params, ema=0.9), [EarlyStopping(), SwapEMAWeights()])


def _write_trainer(path: Path) -> None:
    X, y = np.arange(12.0).reshape(4, 3), np.arange(4) % 2
    trainer = _trainer()
    trainer.fit(X, y, batch_size=2, epochs=2, validation_data=(X, y), seed=0, verbose=0)
    trainer.save(path)


def _read_trainer(path: Path) -> Any:
    trainer = _trainer()
    trainer.load(path)
    return trainer.state_dict()


def _write_run(path: Path) -> None:
    (path.parent / outputs.HISTORY).write_text("epoch,loss,lr\n0,0.25,0.1\n1,0.125,0.1\n", encoding="utf-8")
    outputs.write_summary(str(path.parent), {"epochs": 2, "stopped_by": None, "test": {"loss": 0.125}})


def _write_table(path: Path) -> None:
    rows = [f"{i};{i / 8:.3f};{'red' if i % 3 else 'blue'};{'?' if i % 5 == 0 else i % 7}" for i in range(30)]
    text = "\n".join(["id;size;color;grade", *rows]).replace(".", ",") + "\n"
    content = text.encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _read_table(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # of many different integers as labels
        table = data.load(path, ignore=["id"])
    return [table.X_train, table.y_train, table.X_test, table.y_test, table.classes, table.table.state_dict()]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("optimizer.npz", lambda path: _optimizer().save(path), _read_optimizer),
        Kind("optimizer.safetensors", lambda path: _optimizer().save(path), _read_optimizer),
        Kind("network.npz", _write_network, _read_network),
        Kind("network.safetensors", _write_network, _read_network),
        Kind("state.npz", _write_tree, load_tree),
        Kind("checkpoint.npz", _write_trainer, _read_trainer),
        Kind("checkpoint.safetensors", _write_trainer, _read_trainer),
        Kind(outputs.SUMMARY, _write_run, lambda path: outputs.read_summary(str(path.parent))),
        Kind(outputs.HISTORY, _write_run, lambda path: outputs.read_summary(str(path.parent))),
        Kind("data.npz", _write_data, data.read_arrays),
        Kind("images-idx3-ubyte", _write_idx, data.read_idx, has_checksums=False),
        Kind("images-idx3-ubyte.gz", _write_idx, data.read_idx),
        Kind("table.csv", _write_table, _read_table, has_checksums=False),
        Kind("table.csv.gz", _write_table, _read_table, has_checksums=False),
    )
}


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged versions of `content`, each with one to three changes."""
    rng = random.Random(seed)
    while count:
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 3))):
            rng.choice(_CHANGES)(damaged, rng)
        if damaged != content:
            count -= 1
            yield bytes(damaged)


def _position(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(max(len(data), 1))


def _size(rng: random.Random) -> int:
    return rng.choice((1, 2, 4, 8, 30, 100))


def _flip_bit(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_position(data, rng)] ^= 1 << rng.randrange(8)


def _set_bytes(data: bytearray, rng: random.Random) -> None:
    start, n = _position(data, rng), _size(rng)
    data[start : start + n] = rng.randbytes(len(data[start : start + n]))


def _set_equal_bytes(data: bytearray, rng: random.Random) -> None:
    start, n = _position(data, rng), _size(rng)
    data[start : start + n] = bytes([rng.choice((0, 255))]) * len(data[start : start + n])


def _remove(data: bytearray, rng: random.Random) -> None:
    start = _position(data, rng)
    del data[start : start + _size(rng)]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = _position(data, rng)
    data[start:start] = rng.randbytes(_size(rng))


def _repeat(data: bytearray, rng: random.Random) -> None:
    start, to = _position(data, rng), _position(data, rng)
    data[to:to] = data[start : start + _size(rng)]


def _overwrite(data: bytearray, rng: random.Random) -> None:
    start, to, n = _position(data, rng), _position(data, rng), _size(rng)
    part = data[start : start + n]
    data[to : to + len(part)] = part


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[_position(data, rng) :]


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(_size(rng))


_CHANGES = (
    _flip_bit, _flip_bit, _flip_bit, _set_bytes, _set_equal_bytes, _remove, _insert, _repeat, _overwrite,
    _truncate, _append,
)


def frozen(value: Any) -> Any:
    """Return nested arrays and numbers in a form that compares bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return tuple((key, frozen(each)) for key, each in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    return repr(value)


def check(kind: Kind, folder: Path, count: int, seed: int) -> collections.Counter[str]:
    """Load `count` damaged files of a kind; return how often each thing happened, or raise."""
    path = folder / kind.name
    kind.write(path)
    content, expected = path.read_bytes(), frozen(kind.read(path))
    results: collections.Counter[str] = collections.Counter()
    for i, damaged in enumerate(mutations(content, count, seed)):
        path.write_bytes(damaged)
        try:
            actual = frozen(kind.read(path))
        except ValueError as error:
            if str(path) not in str(error):
                raise AssertionError(f"{kind.name}, file {i} of seed {seed}: no path in {error}") from error
            results["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{kind.name}, file {i} of seed {seed}: {error!r}") from error
        else:
            results["same contents" if actual == expected else "other contents"] += 1
    if kind.has_checksums and results["other contents"]:
        raise AssertionError(f"{kind.name}, seed {seed}: {results['other contents']} files of other contents")
    return results


def limit_memory() -> None:
    """Limit the address space of this process."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.RLIM_INFINITY))


def main() -> None:
    """Check the kinds on the command line, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--count", type=int, default=200_000, help="files per kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"unknown kind {min(unknown)!r}")
    if sys.platform == "linux":
        limit_memory()
    shared_memory = Path("/dev/shm")
    columns = ("refused", "same contents", "other contents")
    print(f"{'kind':24}", *(f"{name:>15}" for name in columns), "  seconds")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        for name in args.kinds or KINDS:
            start = time.perf_counter()
            results = check(KINDS[name], Path(folder), args.count, args.seed)
            counts = (f"{results[column]:15,}" for column in columns)
            print(f"{name:24}", *counts, f"{time.perf_counter() - start:9.0f}", flush=True)


if __name__ == "__main__":
    main()
