"""The build: every Cython module once, and the kernels once per instruction set.

pyproject.toml has the rest of the configuration of the package. ``FASTOPT_ISAS="base v3"`` in the environment
limits the instruction sets.
"""

import os
import sys
import sysconfig
from pathlib import Path

from Cython.Compiler.Main import CompilationOptions, compile_single
from Cython.Compiler.Options import default_options
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "binding": False,
    "freethreading_compatible": True,
}

# Without no-math-errno no loop with a square root is vectorized. Contraction or any reordering would
# break the promise of the same bits everywhere. A silent promotion to double would halve the speed.
FLAGS = {
    "unix": [
        "-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
        "-fvisibility=hidden", "-Wdouble-promotion", "-Werror=double-promotion",
    ],
    "msvc": ["/std:c11", "/O2", "/fp:precise"],
}

# Symbols and debugging information would be half of a module; `build_ext --debug` keeps them.
STRIP = {"linux": ["-Wl,--strip-all"], "macosx": ["-Wl,-x"]}


def instruction_sets(platform):
    """Flags for each instruction set of a wheel's platform, as `sysconfig.get_platform` names it."""
    if not platform.endswith(("x86_64", "amd64", "universal2")):
        return {"base": {"unix": [], "msvc": []}}  # where a processor has one baseline, one build is enough
    result = {
        "base": {"unix": ["-march=x86-64-v2"], "msvc": []},
        "v3": {"unix": ["-march=x86-64-v3"], "msvc": ["/arch:AVX2"]},
        "v4": {
            "unix": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
            "msvc": ["/arch:AVX512"],
        },
    }
    if platform.startswith("macosx"):
        # Apple's kernel shows 512-bit registers only after their first use, so v4 would never be chosen;
        # and one call of its compiler may be for both processors.
        return {
            isa: {"unix": [word for flag in result[isa]["unix"] for word in ("-Xarch_x86_64", flag)]}
            for isa in ("base", "v3")
        }
    return result


PLATFORM = sysconfig.get_platform()  # of the wheel, which need not be the machine's that builds it
ISAS = instruction_sets(PLATFORM)

# A development build may have only some instruction sets.
if "FASTOPT_ISAS" in os.environ:
    ISAS = {isa: ISAS[isa] for isa in os.environ["FASTOPT_ISAS"].split()}

# Modules with loops over arrays, which are compiled once per instruction set.
COMPILED = {"kernels": "fastopt/_core/kernels", "layers": "fastopt/nn/_core/layers"}

# One wheel serves every Python from 3.11 on, if that makes it. Later headers do not count references to None,
# True and False, whatever Python they are to serve (python/cpython#134989), and 3.11 needs that.
# A free-threaded Python has no limited API that reaches back.
OLDEST = min(sys.version_info.minor, 12)
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS = [("Py_LIMITED_API", f"0x03{OLDEST:02X}0000")] if LIMITED else []


def extension(path, c_sources=(), isa=None):
    """The extension module of ``path + ".pyx"``; `isa` is appended to its name if given."""
    result = Extension(
        path.replace("/", ".") + (f"_{isa}" if isa else ""),
        [f"{path}.pyx", *(f"csrc/{c}" for c in c_sources)],
        include_dirs=["csrc"],
        depends=["setup.py", *map(str, Path("csrc").glob("*.h")), *map(str, Path("fastopt").rglob("*.pxd"))],
        define_macros=MACROS,
        py_limited_api=LIMITED,
    )
    result.isa = isa or "base"
    return result


def extensions(isas):
    """All extension modules."""
    return [
        extension("fastopt/_core/runtime", ["fo_cpu.c", "fo_pool.c"]),
        extension("fastopt/_core/scalar_math"),
        extension("fastopt/_core/rows"),
        extension("fastopt/_core/containers"),
        extension("fastopt/_core/gradients"),
        extension("fastopt/_core/step_table"),
        extension("fastopt/_core/tensors"),
        extension("fastopt/_core/direct"),
        extension("fastopt/nn/_core/gemm"),
        extension("fastopt/nn/_core/net"),
        *(extension(path, isa=isa) for path in COMPILED.values() for isa in isas),
    ]


def threads(platform):
    """The flag of compiler and linker for POSIX threads."""
    return [] if platform.startswith("win") else ["-pthread"]


def compile_args(compiler, isa, platform=PLATFORM):
    """Flags for one instruction set; `compiler` is "unix" or "msvc"."""
    flags = FLAGS[compiler] + instruction_sets(platform)[isa][compiler]
    return flags + threads(platform) if compiler == "unix" else flags


def link_args(platform=PLATFORM):
    """Flags of the linker, if the compiler is "unix"."""
    return threads(platform) + STRIP.get(platform.partition("-")[0], [])


# With Cython 3.3, an item that cannot be appended in a list comprehension would be released twice.
APPEND = "int result = PyList_Append(list, x);\n    {}Py_DECREF(x);\n    return result;"


def translate(source, name, target):
    """Write Cython's C for a module; one source makes several modules, so the full name is given."""
    target.parent.mkdir(parents=True, exist_ok=True)
    options = CompilationOptions(
        default_options,
        output_file=str(target.resolve()),
        compiler_directives=dict(DIRECTIVES),
        include_path=["."],
    )
    result = compile_single(source, options, full_module_name=name)
    if result.num_errors:
        raise SystemExit(f"Cython found {result.num_errors} errors in {source}")
    text = target.read_text(encoding="utf-8")
    target.write_text(text.replace(APPEND.format(""), APPEND.format("if (result == 0) ")), encoding="utf-8")


class BuildExt(build_ext):
    """Translate every `.pyx` under its extension's own name, then compile side by side."""

    def build_extensions(self):
        compiler = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        for ext in self.extensions:
            ext.extra_compile_args = compile_args(compiler, ext.isa)
            if compiler == "unix":
                ext.extra_link_args = threads(PLATFORM) if self.debug else link_args()
            ext.sources = [self.c_source(ext, s) if s.endswith(".pyx") else s for s in ext.sources]
        super().build_extensions()

    def c_source(self, ext, source):
        target = Path(self.build_temp) / f"{ext.name.rpartition('.')[2]}.c"
        if self.force or newer_group([source, *ext.depends], str(target)):
            translate(source, ext.name, target)
        ext.depends.append(source)
        return str(target)

    def swig_sources(self, sources, extension):
        return sources  # nothing here is SWIG's, nor Cython's to translate a second time


if __name__ == "__main__":
    setup(
        ext_modules=extensions(ISAS),
        cmdclass={"build_ext": BuildExt},
        options={
            "build_ext": {"parallel": True},
            "bdist_wheel": {"py_limited_api": f"cp3{OLDEST}"} if LIMITED else {},
        },
    )
