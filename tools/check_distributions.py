"""Check the contents of wheels and source archives, and print their sizes.

A wheel contains Python modules, compiled modules without symbols, and data, but no C or Cython source and no
third-party library. It has the modules of all instruction sets of its platform, and supports either all
Python versions or one free-threaded version. The source archive contains everything that is needed to build,
test and benchmark, but no generated files.

Usage: python tools/check_distributions.py PATH...

A path is a file, or a folder with one wheel and one source archive.
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

MAX_WHEEL_BYTES = 1_500_000
SOURCES = {".pyx", ".pxd", ".c", ".h"}
COMPILED = {".so", ".pyd", ".dylib", ".dll"}
STUBBED = (
    "_core/rows", "_core/runtime", "_core/scalar_math", "_core/step_table", "nn/_core/gemm",
    "nn/_core/net",
)  # other modules exist once per instruction set and need no stub
IN_WHEEL = {
    "fastopt/py.typed", "fastopt/nn/digits.npz", "fastopt/nn/digits.txt",
    *(f"fastopt/{name}.pyi" for name in STUBBED),
}
IN_SOURCE = {
    "csrc", "tests", "tests/core", "tests/harness", "docs", "examples", "benchmarks", "benchmarks/contenders",
    "tools",
}

# Python and ABI tags: the stable ABI from Python 3.11 or 3.12, or one free-threaded version.
TAGS = re.compile(r"cp31[12]-abi3|(cp3\d+)-\1t")
MODULE = {
    "abi3": re.compile(r"fastopt/(nn/)?_core/\w+(\.abi3\.so|\.pyd)"),
    "free-threaded": re.compile(r"fastopt/(nn/)?_core/\w+\.(cpython-3\d+t-[\w-]+\.so|cp3\d+t-\w+\.pyd)"),
}


def main(paths):
    errors = [error for path in paths for file in files(path) for error in check(file)]
    print("\n".join(errors or ["all distributions are complete"]))
    return 1 if errors else 0


def files(path):
    if not path.is_dir():
        return [path]
    (wheel,), (source,) = path.glob("*.whl"), path.glob("*.tar.gz")
    return [wheel, source]


def check(file):
    return wheel_errors(file) if file.suffix == ".whl" else source_errors(file)


def wheel_errors(wheel):
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size} bytes")
    with zipfile.ZipFile(wheel) as archive:
        members = {item.filename: item for item in archive.infolist()}
        contents = {name: archive.read(name) for name in members if PurePosixPath(name).suffix in COMPILED}
    for name, content in contents.items():
        print(f"  {name}: {len(content)} bytes, {members[name].compress_size} in the wheel")
        if b".debug_info" in content or b".symtab" in content:
            yield f"{name} contains symbols or debugging information"
    yield from module_errors(wheel.stem, contents)
    if size > MAX_WHEEL_BYTES:
        yield f"{wheel.name} is larger than {MAX_WHEEL_BYTES} bytes"
    yield from (f"{wheel.name} lacks {name}" for name in sorted(IN_WHEEL - members.keys()))
    yield from (f"{wheel.name} has {name}" for name in members if PurePosixPath(name).suffix in SOURCES)
    own = re.compile(r"fastopt(-[\w.]+\.dist-info)?/")  # repaired wheels add libraries elsewhere
    yield from (f"{wheel.name} has {name}" for name in members if not own.match(name))


def module_errors(wheel, names):
    """Yield errors in the compiled files of a wheel; `wheel` is its name without the suffix."""
    *_, python, abi, platform = wheel.split("-")
    if not TAGS.fullmatch(f"{python}-{abi}"):
        yield f"{wheel} supports neither all Python versions nor one free-threaded version"
    module = MODULE["abi3" if abi == "abi3" else "free-threaded"]
    yield from (
        f"{wheel} has {name}, which does not match its tags" for name in names if not module.fullmatch(name)
    )
    expected = {f"{name}_{isa}" for name in ("kernels", "layers") for isa in instruction_sets(platform)}
    actual = {PurePosixPath(name).name.partition(".")[0] for name in names}
    actual = {name for name in actual if name.startswith(("kernels_", "layers_"))}
    yield from (f"{wheel} lacks {name}" for name in sorted(expected - actual))
    yield from (f"{wheel} has {name}" for name in sorted(actual - expected))


def instruction_sets(platform):
    """Return the instruction sets that a wheel for a platform contains."""
    if not platform.endswith(("x86_64", "amd64")):
        return ("base",)
    return ("base", "v3") if platform.startswith("macosx") else ("base", "v3", "v4")


def source_errors(source):
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
