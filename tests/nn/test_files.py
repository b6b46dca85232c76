"""Files that are replaced atomically, leftovers of killed processes, and damaged files."""

import importlib.util
import io
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastopt.atomic_write import atomic_write, remove_leftovers
from fastopt.checkpoint import load_tree, read_arrays, save_tree, write_arrays
from fastopt.nn import MLP

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("mutate_files", ROOT / "tools" / "mutate_files.py")
mutate_files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate_files)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Damaged files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mutate_files.KINDS.values(), ids=lambda kind: kind.name)
def test_damaged_files(kind, memory_path):
    """Only a ValueError that names the file, or the same contents."""
    if kind.name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    results = mutate_files.check(kind, memory_path, 400, seed=1)
    assert results["refused"] > 200


def archive_of(header, values=b"\0" * 24, version=b"\1\0"):
    """Return a zip archive with right checksums, whose only array has this header."""
    text = header.encode("latin1")
    array = b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + values
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("X.npy", array)
    return file.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}   '''",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 10**9)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('a', '<f8'), ('a', '<f8')], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8'}", "  \n\t 1", "\0", "((" * 4000, "[" * 20_000,
    ],
)  # fmt: skip
def test_headers_of_arrays(header, memory_path):
    path = memory_path / "data.npz"
    path.write_bytes(archive_of("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}"))
    assert (read_arrays(path)["X"] == np.zeros(3)).all()
    path.write_bytes(archive_of(header))
    with pytest.raises(ValueError, match=r"data\.npz: damaged, or not an \.npz file of plain arrays"):
        read_arrays(path)
    path.write_bytes(archive_of("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}", version=b"\7\1"))
    with pytest.raises(ValueError, match="damaged"):
        read_arrays(path)


@pytest.mark.parametrize("method", ["ZIP_STORED", "ZIP_DEFLATED", "ZIP_BZIP2", "ZIP_LZMA"])
def test_methods_of_compression(method, tmp_path):
    array = io.BytesIO()
    np.save(array, np.zeros(1000))
    with zipfile.ZipFile(tmp_path / "data.npz", "w", getattr(zipfile, method)) as archive:
        archive.writestr("X.npy", array.getvalue())
    if method in ("ZIP_STORED", "ZIP_DEFLATED"):
        assert (read_arrays(tmp_path / "data.npz")["X"] == np.zeros(1000)).all()
    else:
        with pytest.raises(ValueError, match="damaged"):
            read_arrays(tmp_path / "data.npz")


def test_arrays_of_any_layout_and_dtype(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "strided": np.arange(12)[::3],
        "empty": np.zeros((0, 3), np.float16), "scalar": np.array(True), "text": np.array(["a", "ä€"]),
        "big": np.arange(3, dtype=">i2"), "fields": np.zeros(2, [("a", "<i2"), ("b", "<f8")]),
    }  # fmt: skip
    write_arrays(tmp_path / "arrays", arrays)
    back = read_arrays(tmp_path / "arrays")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype and back[name].flags.writeable
    with np.load(tmp_path / "arrays") as file:
        assert set(file.files) == set(arrays)


def test_other_errors_are_not_those_of_a_damaged_file(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    write_arrays(path, {"X": np.zeros(3)})

    def fail(error):
        def read(self, member):
            raise error

        return read

    for error in (MemoryError(), OSError(5, "Input/output error")):
        monkeypatch.setattr(zipfile.ZipFile, "read", fail(error))
        with pytest.raises(type(error)):
            read_arrays(path)
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz")
    with pytest.raises(IsADirectoryError if os.name != "nt" else PermissionError):
        read_arrays(tmp_path)


def test_safetensors_of_other_programs(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"W1": np.zeros((2, 3), np.float32)}, tmp_path / "net.safetensors")
    for load in (load_tree, MLP.load):
        with pytest.raises(ValueError, match=r"net\.safetensors: damaged, or not a file of fastopt"):
            load(tmp_path / "net.safetensors")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_of_another_kind(suffix, tmp_path):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    net, tree = tmp_path / f"net.{suffix}", tmp_path / f"tree.{suffix}"
    MLP([2, 2], seed=0).save(net)
    save_tree(tree, {"a": np.zeros(2)})
    with pytest.raises(ValueError, match="not a saved training state"):
        load_tree(net)
    with pytest.raises(ValueError, match=r"not a saved fastopt\.MLP"):
        MLP.load(tree)


# --- Atomic writing -----------------------------------------------------------------------------------


def test_what_was_written_is_verified(tmp_path, monkeypatch):
    """A file whose checksum is wrong when it is read back does not replace the previous one."""
    path = tmp_path / "data.npz"
    write_arrays(path, {"X": np.zeros(300)})
    before = path.read_bytes()
    savez = np.savez

    def damaging_savez(file, **arrays):
        savez(file, **arrays)
        file.seek(300)
        file.write(b"\7")

    monkeypatch.setattr(np, "savez", damaging_savez)
    with pytest.raises(OSError, match=r"data\.npz: the file that was written differs from its checksums"):
        write_arrays(path, {"X": np.ones(300)})
    assert path.read_bytes() == before and names_in(tmp_path) == ["data.npz"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fastopt.atomic_write import atomic_write
with atomic_write(sys.argv[1]) as path:
    path.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def start_writer(path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    return process


def test_leftovers_are_removed_and_files_in_use_are_not(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed, running = start_writer(path), start_writer(tmp_path / "b.txt")
    killed.kill()
    killed.communicate()
    assert len(names_in(tmp_path)) == 3
    with atomic_write(tmp_path / "c.txt") as temporary:
        assert len(names_in(tmp_path)) == 3     # a.txt, the folder of b.txt, and our own
        remove_leftovers(tmp_path)
        temporary.write_text("new")
    assert path.read_text() == "old"
    running.communicate()
    assert running.returncode == 0
    assert names_in(tmp_path) == ["a.txt", "b.txt", "c.txt"]
    (tmp_path / ".fastopt-tmp-empty").mkdir()   # the process was killed before it could lock anything
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == ["a.txt", "b.txt", "c.txt"]


def test_threads_write_the_same_file(memory_path):
    path, errors = memory_path / "a.npz", []

    def write(value):
        try:
            for _ in range(20):
                write_arrays(path, {"X": np.full(100, value)})
                assert len(set(read_arrays(path)["X"].tolist())) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and names_in(memory_path) == ["a.npz"]


def test_permissions_are_those_of_a_new_file(tmp_path):
    with atomic_write(tmp_path / "a.txt") as path:
        path.write_text("new")
    (tmp_path / "b.txt").write_text("new")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode
