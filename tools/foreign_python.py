"""Assemble a Python of another platform from packages of the index, to test modules of tools/cross.py.

Usage: tools/foreign_python.py TARGET FOLDER      prints the path of the program

No package is a whole interpreter, but the tools that freeze applications ship the parts that differ between
platforms: freeze-core has a program for Linux that contains the interpreter, panda3d has the DLL for
Windows, and both have the compiled modules of the standard library. Its other modules are copied from the
Python that runs this script; the result has the same version up to the minor one.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import cross

WHEELS = {  # package, tags of the platform
    "win-amd64": ("panda3d==1.10.16", ["win_amd64"]),
    "musl-x86_64": ("freeze-core==0.6.0", ["musllinux_1_2_x86_64"]),
    "glibc-aarch64": ("freeze-core==0.6.0", [f"manylinux_2_{n}_aarch64" for n in (28, 27, 17)]),
}
PACKAGES = {
    "win-amd64": ["numpy==2.0.*", "colorama"],  # later ones need functions that Wine does not have
    "musl-x86_64": ["numpy"],
    "glibc-aarch64": ["numpy"],
}

# The program from freeze-core imports this instead of reading the command line.
STARTUP = """
import os, runpy, sys

sys.executable = os.environ["PYTHONEXECUTABLE"]
os.environ["_PYTHON_SYSCONFIGDATA_NAME"] = "{sysconfigdata}"
sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))

def init():
    pass

def run():
    arguments = sys.argv[1:]
    while option := arguments.pop(0):
        if option in ("-W", "-X"):
            arguments.pop(0)
        elif option == "-m":
            sys.argv = arguments
            return runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        elif option == "-c":
            sys.argv = ["-c", *arguments[1:]]
            return exec(arguments[0], vars(sys.modules["__main__"]))
        elif not option.startswith("-"):
            sys.argv = [option, *arguments]
            return runpy.run_path(option, run_name="__main__")
"""

MAIN = """
#include <wchar.h>
__declspec(dllimport) int Py_Main(int, wchar_t **);
int wmain(int count, wchar_t **arguments) { return Py_Main(count, arguments); }
"""


def pip(command, target, *packages):
    """Run `pip download -d FOLDER` or `pip install --target FOLDER` for another platform."""
    tags = [word for tag in WHEELS[target][1] for word in ("--platform", tag)]
    minor = ["--python-version", f"3.{sys.version_info.minor}"]
    options = ["--quiet", "--only-binary", ":all:", *minor, *tags]
    subprocess.run([sys.executable, "-m", "pip", *command, *options, *packages], check=True)


def copy_library(folder):
    """Copy the modules of the standard library that are not compiled."""
    ignored = shutil.ignore_patterns("site-packages", "lib-dynload", "test", "__pycache__", "config-*")
    shutil.copytree(sysconfig.get_path("stdlib"), folder, ignore=ignored, dirs_exist_ok=True)


def assemble_linux(wheel, folder):
    wheel.extractall(folder)
    core = folder / "freeze_core"
    (program,) = (core / "bases").glob("console-*")
    program.chmod(0o755)
    copy_library(core / "lib")
    (core / "bases/lib").symlink_to("../lib")  # where the program looks for modules
    (data,) = (core / "lib").glob("_sysconfigdata_*.py")
    (core / "lib/__startup__.py").write_text(STARTUP.format(sysconfigdata=data.stem))
    return program


def assemble_windows(wheel, folder):
    """The program and python3.dll, which forwards the stable ABI, are compiled here."""
    (folder / "DLLs").mkdir(parents=True)
    for name in wheel.namelist():
        if name.startswith("deploy_libs/"):
            base = name.rpartition("/")[2]
            place = folder if base.lower().startswith(("python", "vcruntime")) else folder / "DLLs"
            (place / base).write_bytes(wheel.read(name))
    copy_library(folder / "Lib")
    dll = f"python3{sys.version_info.minor}"
    export = '__asm__(".section .drectve,\\"yn\\"\\n.ascii \\" -export:{0}={1}.{0}\\"");\n'
    lines = [export.format(name, dll) for name in cross.abi_symbols(windows=True)]
    (folder / "python3.c").write_text("".join(lines))
    (folder / "main.c").write_text(MAIN)
    (folder / "main.def").write_text(f"LIBRARY {dll}.dll\nEXPORTS\nPy_Main\n")
    cc = [*cross.ZIG, "cc", "-target", cross.TARGETS["win-amd64"].triple]
    dlltool = [*cross.ZIG, "dlltool", "-d", "main.def", "-l", "main.lib", "-m", "i386:x86-64"]
    subprocess.run(dlltool, check=True, cwd=folder)
    subprocess.run([*cc, "-municode", "main.c", "main.lib", "-o", "python.exe"], check=True, cwd=folder)
    subprocess.run([*cc, "-shared", "python3.c", "-o", "python3.dll"], check=True, cwd=folder)
    return folder / "python.exe"


def main(target, folder):
    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    pip(["download", "--no-deps", "--dest", str(wheels)], target, WHEELS[target][0])
    (wheel,) = wheels.glob("*.whl")
    assemble = assemble_windows if target.startswith("win") else assemble_linux
    program = assemble(zipfile.ZipFile(wheel), folder / "python")
    pip(["install", "--target", str(folder / "packages")], target, "pytest", "hypothesis", *PACKAGES[target])
    print(program)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in WHEELS:
        raise SystemExit(__doc__)
    main(*map(os.fspath, sys.argv[1:]))
