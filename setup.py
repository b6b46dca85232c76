"""The build: every Cython module once, and the kernels once for each instruction set.

All else about the package stands in pyproject.toml.
"""

import platform
import sys
import sysconfig
from pathlib import Path

from Cython.Compiler.Main import CompilationOptions, compile_single
from Cython.Compiler.Options import default_options
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
}

# Without no-math-errno no loop with a square root is vectorized. Contraction or any reordering would
# break the promise of the same bits everywhere. A silent promotion to double would halve the speed.
FLAGS = {
    "unix": [
        "-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
        "-fvisibility=hidden", "-Wdouble-promotion", "-Werror=double-promotion",
    ],
    "msvc": ["/std:c11", "/experimental:c11atomics", "/O2", "/fp:precise"],
}

# Where a processor has one baseline, one build is enough.
ISAS = {
    "base": {"unix": ["-march=x86-64-v2"], "msvc": []},
    "v3": {"unix": ["-march=x86-64-v3"], "msvc": ["/arch:AVX2"]},
    "v4": {
        "unix": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "msvc": ["/arch:AVX512"],
    },
}
if platform.machine().lower() not in ("x86_64", "amd64"):
    ISAS = {"base": {"unix": [], "msvc": []}}

# One wheel serves every Python from 3.11 on; a free-threaded one has no limited API yet.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS = [("Py_LIMITED_API", "0x030B0000")] if LIMITED else []


def extension(name, source, c_sources=(), isa="base"):
    result = Extension(
        f"fastopt.{name}",
        [f"fastopt/{source}", *(f"csrc/{c}" for c in c_sources)],
        include_dirs=["csrc"],
        depends=[str(p) for p in [*Path("csrc").glob("*.h"), *Path("fastopt").glob("*.pxd")]],
        define_macros=MACROS,
        py_limited_api=LIMITED,
    )
    result.isa = isa
    return result


class BuildExt(build_ext):
    """Compile a `.pyx` under the extension's own name, and add the compiler's and instruction set's flags."""

    def build_extension(self, ext):
        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        ext.extra_compile_args = FLAGS[kind] + ISAS[ext.isa][kind]
        if kind == "unix":
            ext.extra_compile_args.append("-pthread")
            ext.extra_link_args = ["-pthread"] if sys.platform.startswith("linux") else []
        ext.sources = [self.translate(ext, s) if s.endswith(".pyx") else s for s in ext.sources]
        super().build_extension(ext)

    def swig_sources(self, sources, extension):
        return sources  # nothing here is SWIG's, nor Cython's to translate a second time

    def translate(self, ext, source):
        """Cython's C for a module; one source makes several modules, so the name is given."""
        target = Path(self.build_temp) / f"{ext.name.rpartition('.')[2]}.c"
        target.parent.mkdir(parents=True, exist_ok=True)
        options = CompilationOptions(
            default_options,
            output_file=str(target.resolve()),
            compiler_directives=dict(DIRECTIVES),
            include_path=["."],
        )
        result = compile_single(source, options, full_module_name=ext.name)
        if result.num_errors:
            raise SystemExit(f"Cython found {result.num_errors} errors in {source}")
        return str(target)


setup(
    ext_modules=[
        extension("_runtime", "_runtime.pyx", ["fo_cpu.c", "fo_pool.c"]),
        extension("_spans", "_spans.pyx"),
        *(extension(f"_kernels_{isa}", "_kernels.pyx", isa=isa) for isa in ISAS),
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
