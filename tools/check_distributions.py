"""Check what the wheel and the source archive hold, and print the sizes.

A wheel holds Python, compiled modules without symbols, and data, but no source of the compiled part;
the source archive holds all that it takes to build, test and measure, but nothing that is generated.

Usage: python tools/check_distributions.py FOLDER       with one wheel and one source archive
"""

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

LARGEST_WHEEL = 1_500_000
SOURCES = {".pyx", ".pxd", ".c", ".h"}
COMPILED = {".so", ".pyd", ".dylib"}
IN_WHEEL = {"fastopt/py.typed", "fastopt/nn/digits.npz", "fastopt/nn/digits.txt"}
IN_SOURCE = {"csrc", "tests", "tests/c", "docs", "examples", "benchmarks", "tools"}


def main(folder):
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    faults = [*wheel_faults(wheel), *source_faults(source)]
    print("\n".join(faults or ["both distributions hold what they should"]))
    return 1 if faults else 0


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
    if not contents:
        yield f"{wheel.name} has no compiled module"
    if size > LARGEST_WHEEL:
        yield f"{wheel.name} is larger than {LARGEST_WHEEL} bytes"
    yield from (f"{wheel.name} lacks {name}" for name in sorted(IN_WHEEL - members.keys()))
    yield from (f"{wheel.name} has {name}" for name in members if PurePosixPath(name).suffix in SOURCES)


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
    raise SystemExit(main(Path(sys.argv[1])))
