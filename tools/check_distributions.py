"""Check what wheels and source archives hold, and print the sizes.

A wheel holds Python, compiled modules without symbols, and data, but no source of the compiled part
and nobody else's library. It has the modules of every instruction set of its platform, and serves either
all Pythons or a free-threaded one. The source archive holds all that it takes to build, test and measure,
but nothing that is generated.

Usage: python tools/check_distributions.py PATH...      a file, or a folder with a wheel and a source archive
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

LARGEST_WHEEL = 1_500_000
SOURCES = {".pyx", ".pxd", ".c", ".h"}
COMPILED = {".so", ".pyd", ".dylib", ".dll"}
STUBBED = (
    "_core/rows", "_core/runtime", "_core/scalar_math", "_core/step_table", "nn/_core/gemm",
    "nn/_core/net",
)  # the others exist once per instruction set
IN_WHEEL = {
    "fastopt/py.typed", "fastopt/nn/digits.npz", "fastopt/nn/digits.txt",
    *(f"fastopt/{name}.pyi" for name in STUBBED),
}
IN_SOURCE = {"csrc", "tests", "tests/core", "docs", "examples", "benchmarks", "tools"}


# What a wheel may call itself: one for all Pythons from 3.11 or 3.12 on, or for one free-threaded Python.
TAGS = re.compile(r"cp31[12]-abi3|(cp3\d+)-\1t")
MODULE = {
    "abi3": re.compile(r"fastopt/(nn/)?_core/\w+(\.abi3\.so|\.pyd)"),
    "free-threaded": re.compile(r"fastopt/(nn/)?_core/\w+\.(cpython-3\d+t-[\w-]+\.so|cp3\d+t-\w+\.pyd)"),
}


def main(paths):
    faults = [fault for path in paths for file in files(path) for fault in check(file)]
    print("\n".join(faults or ["all hold what they should"]))
    return 1 if faults else 0


def files(path):
    if not path.is_dir():
        return [path]
    (wheel,), (source,) = path.glob("*.whl"), path.glob("*.tar.gz")
    return [wheel, source]


def check(file):
    return wheel_faults(file) if file.suffix == ".whl" else source_faults(file)


def wheel_faults(wheel):
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size} bytes")
    with zipfile.ZipFile(wheel) as archive:
        members = {item.filename: item for item in archive.infolist()}
        contents = {name: archive.read(name) for name in members if PurePosixPath(name).suffix in COMPILED}
    for name, content in contents.items():
        print(f"  {name}: {len(content)} bytes, {members[name].compress_size} in the wheel")
        if b".debug_info" in content or b".symtab" in content:
            yield f"{name} has symbols or debugging information"
    yield from module_faults(wheel.stem, contents)
    if size > LARGEST_WHEEL:
        yield f"{wheel.name} is larger than {LARGEST_WHEEL} bytes"
    yield from (f"{wheel.name} lacks {name}" for name in sorted(IN_WHEEL - members.keys()))
    yield from (f"{wheel.name} has {name}" for name in members if PurePosixPath(name).suffix in SOURCES)
    ours = re.compile(r"fastopt(-[\w.]+\.dist-info)?/")  # repairing puts others' libraries beside these
    yield from (f"{wheel.name} has {name}" for name in members if not ours.match(name))


def module_faults(wheel, names):
    """What is wrong with a wheel's compiled files; `wheel` is its name without the suffix."""
    *_, python, abi, platform = wheel.split("-")
    if not TAGS.fullmatch(f"{python}-{abi}"):
        yield f"{wheel} is neither for all Pythons nor for a free-threaded one"
    module = MODULE["abi3" if abi == "abi3" else "free-threaded"]
    yield from (
        f"{wheel} has {name}, which is no module of its kind" for name in names if not module.fullmatch(name)
    )
    expected = {f"{name}_{isa}" for name in ("kernels", "layers") for isa in instruction_sets(platform)}
    found = {PurePosixPath(name).name.partition(".")[0] for name in names}
    found = {name for name in found if name.startswith(("kernels_", "layers_"))}
    yield from (f"{wheel} lacks {name}" for name in sorted(expected - found))
    yield from (f"{wheel} has {name}" for name in sorted(found - expected))


def instruction_sets(platform):
    """Those that a wheel for a platform is built for."""
    if not platform.endswith(("x86_64", "amd64")):
        return ("base",)
    return ("base", "v3") if platform.startswith("macosx") else ("base", "v3", "v4")


def source_faults(source):
    print(f"{source.name}: {source.stat().st_size} bytes")
    with tarfile.open(source) as archive:
        names = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]
    folders = {str(folder) for name in names for folder in name.parents}
    yield from (f"{source.name} lacks {folder}" for folder in sorted(IN_SOURCE - folders))
    modules = {name.stem for name in names if name.suffix == ".pyx"}
    if not modules:
        yield f"{source.name} has no Cython module"
    for name in names:
        if name.suffix in COMPILED or (name.suffix == ".c" and name.stem in modules):
            yield f"{source.name} has {name}, which is generated"


if __name__ == "__main__":
    raise SystemExit(main(list(map(Path, sys.argv[1:]))))
