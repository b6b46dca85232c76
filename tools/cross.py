"""Cross-compile all extension modules for the platforms of the wheels, with clang of the package `ziglang`.

The modules and flags are those of setup.py. Each module is linked twice: as in a wheel, where Python's
symbols stay undefined except on Windows; and with definitions of Python's stable ABI, so that a symbol
which neither the ABI nor the C library of the platform has is an error. The C tests of the thread pool are
linked, too, and run if the target is this processor on Linux, or if Wine or qemu is installed. Whatever the
compiler prints is a warning. Fails if anything is missing, has a warning or does not pass.

Usage: tools/cross.py [-o FOLDER] [target ...]      default: all targets, in build/cross
Needs the dependency groups `build` and `cross`, and a Python that has headers and a GIL.
"""

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import abi3info

ROOT = Path(__file__).resolve().parent.parent
os.chdir(ROOT)  # the paths in setup.py are relative to it
sys.path.insert(0, str(ROOT))

import setup  # noqa: E402

ZIG = [sys.executable, "-m", "ziglang"]
POOL_WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion"]


class Target(NamedTuple):
    platform: str  # as `sysconfig.get_platform` names it there
    triple: str  # as zig names it


TARGETS = {
    "win-amd64": Target("win-amd64", "x86_64-windows-gnu"),
    "win-arm64": Target("win-arm64", "aarch64-windows-gnu"),
    "musl-x86_64": Target("linux-x86_64", "x86_64-linux-musl"),
    "musl-aarch64": Target("linux-aarch64", "aarch64-linux-musl"),
    "macos-arm64": Target("macosx-11.0-arm64", "aarch64-macos.11.0"),
    "macos-x86_64": Target("macosx-10.13-x86_64", "x86_64-macos.10.13"),
    "glibc-aarch64": Target("linux-aarch64", "aarch64-linux-gnu.2.28"),
}

# What Python's headers need of its configuration. That of the Python that runs this is for one platform only.
PYCONFIG = """
#define SIZEOF_SHORT __SIZEOF_SHORT__
#define SIZEOF_INT __SIZEOF_INT__
#define SIZEOF_LONG __SIZEOF_LONG__
#define SIZEOF_LONG_LONG __SIZEOF_LONG_LONG__
#define SIZEOF_FLOAT __SIZEOF_FLOAT__
#define SIZEOF_DOUBLE __SIZEOF_DOUBLE__
#define SIZEOF_SIZE_T __SIZEOF_SIZE_T__
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#define SIZEOF_WCHAR_T __SIZEOF_WCHAR_T__
#define SIZEOF_PID_T 4
#define SIZEOF_TIME_T 8
#define HAVE_LONG_LONG 1
#define WITH_THREAD 1
#define WITH_DOC_STRINGS 1
#ifdef _WIN32
#define MS_WINDOWS
#define MS_WIN32
#define MS_WIN64
#define HAVE_DECLSPEC_DLL
#define Py_ENABLE_SHARED
#define HAVE_PY_SSIZE_T 1
typedef long long Py_ssize_t;
#define PY_SSIZE_T_MAX LLONG_MAX
#else
#define HAVE_SSIZE_T 1
#define HAVE_UNISTD_H 1
#define HAVE_SYS_TIME_H 1
#define HAVE_SYS_SELECT_H 1
#endif
"""


# What runs a program for a target that this machine cannot run: the first that is installed.
RUNNERS = {
    "win-amd64": ["wine"],
    "musl-x86_64": ["qemu-x86_64-static", "qemu-x86_64"],
    "musl-aarch64": ["qemu-aarch64-static", "qemu-aarch64"],
}


def abi_symbols(windows):
    """The names of the stable ABI that every Python has for which a wheel is made; whether each is data."""
    tables = [(abi3info.FUNCTIONS, False), (abi3info.DATAS, True)]
    return {
        symbol.name: is_data
        for table, is_data in tables
        for symbol, entry in table.items()
        if (entry.added.major, entry.added.minor) <= (3, setup.OLDEST)
        and entry.ifdef in ((None, "MS_WINDOWS") if windows else (None,))
    }


class Build:
    """A target: its folder and compiler, the steps, and what the compiler has printed."""

    def __init__(self, name, folder, include):
        self.name, self.target = name, TARGETS[name]
        self.windows, self.macos = name.startswith("win"), name.startswith("macos")
        self.folder = folder / name
        self.objects = self.folder / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.cc = [*ZIG, "cc", "-target", self.target.triple]
        self.compile = [*self.cc, *(f"-D{key}={value}" for key, value in setup.MACROS)]
        self.compile += [*([] if self.windows else ["-fPIC"]), "-isystem", include, "-Icsrc"]
        self.warnings, self.failures, self.pool = [], [], "not run"

    def run(self, command, **options):
        """Return whether a command has succeeded without a word; keep its words otherwise."""
        command = list(map(str, command))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
        done = subprocess.run(command, **options)
        if done.returncode or done.stdout:
            kept = self.failures if done.returncode else self.warnings
            kept.append(f"{shlex.join(command)}\n{done.stdout}")
            return False
        return True

    def make_stubs(self):
        """Write what stands for Python: on Windows its import library, else an object with its symbols."""
        names = abi_symbols(self.windows)
        if self.windows:
            definitions, self.python = self.objects / "python3.def", self.objects / "python3.lib"
            lines = [f"{name} DATA" if is_data else name for name, is_data in names.items()]
            definitions.write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *lines, ""]))
            machine = "arm64" if "aarch64" in self.target.triple else "i386:x86-64"
            self.run([*ZIG, "dlltool", "-d", definitions, "-l", self.python, "-m", machine])
        else:
            source, self.python = self.objects / "python3.c", self.objects / "python3.o"
            source.write_text("".join(f"char {name};\n" for name in names))
            self.run([*self.cc, "-c", source, "-o", self.python])

    def make_module(self, ext, c_files):
        """Compile a module, if it has changed since it was compiled without a warning, and link it twice.

        Return whether it is compiled, linked, and linked with nothing undefined.
        """
        flags = setup.compile_args("unix", ext.isa, self.target.platform)
        # In the words of zig, which has one processor for each call.
        flags = [f.replace("-march=x86-64-", "-mcpu=x86_64_") for f in flags if f != "-Xarch_x86_64"]
        objects = [self.objects / f"{ext.name}.{Path(source).stem}.o" for source in c_files]
        for source, compiled in zip(c_files, objects, strict=True):
            if setup.newer_group([source, *ext.depends, __file__], str(compiled)):
                command = [*self.compile, *flags, "-Wall", "-c", source, "-o", compiled]
                if not self.run(command):
                    compiled.unlink(missing_ok=True)
                    return False, False, False
        path = self.folder / ext.name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        link = [*self.cc, "-shared", *setup.link_args(self.target.platform), *objects, "-o"]
        if self.windows:
            linked = checked = self.run([*link, f"{path}.pyd", self.python])
        else:
            undefined = ["-undefined", "dynamic_lookup"] if self.macos else []
            linked = self.run([*link, f"{path}.abi3.so", *undefined])
            defined = [] if self.macos else ["-lm", "-Wl,-z,defs"]
            checked = self.run([*link, self.objects / f"{ext.name}.so", self.python, *defined])
        return True, linked, checked

    def test_pool(self):
        """Compile the C tests of the thread pool, and run them where that is possible."""
        program = self.objects / "test_pool.exe"
        sources = ["tests/core/test_pool.c", "csrc/fo_pool.c"]
        flags = ["-std=gnu11", "-O2", *POOL_WARNINGS, *setup.threads(self.target.platform)]
        compiled = self.run([*self.cc, *flags, *sources, "-o", program])
        native = sys.platform == "linux" and self.name == f"musl-{platform.machine()}"
        runner = next(filter(None, map(shutil.which, RUNNERS.get(self.name, []))), None)
        if compiled and (native or runner):
            command = [program] if native else [runner, program]
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as wine:  # it has a link to the root
                environment = {**os.environ, "WINEDEBUG": "-all", "WINEPREFIX": wine}
                done = subprocess.run(command, env=environment, timeout=600)
            self.pool = "failed" if done.returncode else "passed"


def translate(exts, folder):
    """Write Cython's C where it is older than a source; return the C files by module."""
    result = {}
    for ext in exts:
        target = folder / f"{ext.name.rpartition('.')[2]}.c"
        (source,) = (s for s in ext.sources if s.endswith(".pyx"))
        if setup.newer_group([source, *ext.depends], str(target)):
            setup.translate(source, ext.name, target)
        result[ext.name] = [str(target), *(s for s in ext.sources if s != source)]
    return result


def copy_headers(folder):
    """Copy Python's headers, with a configuration for every target."""
    shutil.copytree(sysconfig.get_path("include"), folder, dirs_exist_ok=True)
    (folder / "pyconfig.h").write_text(PYCONFIG)
    return folder


def main(names, folder):
    if not setup.LIMITED:
        raise SystemExit("a free-threaded Python has no stable ABI for several versions")
    include = copy_headers(folder / "include")
    exts = {name: setup.extensions(setup.instruction_sets(TARGETS[name].platform)) for name in names}
    unique = {ext.name: ext for modules in exts.values() for ext in modules}
    c_files = translate(unique.values(), folder / "c")
    columns = ("modules", "compiled", "linked", "checked", "warnings", "pool")
    table = [f"{'target':15}" + "".join(f"{column:>10}" for column in columns)]
    failed = False
    for name, modules in exts.items():
        build = Build(name, folder, include)
        build.make_stubs()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(build.make_module, modules, [c_files[ext.name] for ext in modules])
        counts = map(sum, zip(*done, strict=True))
        build.test_pool()
        values = [len(modules), *counts, len(build.warnings), build.pool]
        table.append(f"{name:15}" + "".join(f"{value:>10}" for value in values))
        print(*build.failures, *build.warnings, table[-1], sep="\n", flush=True)
        failed |= bool(build.failures or build.warnings) or build.pool == "failed"
    print("\n" + "\n".join(table))
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", dest="folder", type=Path, default=Path("build/cross"))
    parser.add_argument("targets", nargs="*", help=", ".join(TARGETS))
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - TARGETS.keys():
        parser.error(f"unknown targets: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    raise SystemExit(main(arguments.targets or list(TARGETS), arguments.folder))
