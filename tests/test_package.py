"""What an installation promises: one version, one instruction set, no needless imports, the environment."""

import ast
import importlib
import os
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import fastopt
from fastopt._core import dispatch

EXTRAS = ("tqdm", "matplotlib", "pandas", "scipy", "sklearn", "torch")

# A few steps that run every part of a kernel module, and a digest of all the bits they leave.
STEPS = """
import hashlib
import numpy as np
import fastopt

digest = hashlib.sha256()
rng = np.random.default_rng(0)
for dtype in ("float32", "float64"):
    for optimizer in (fastopt.SGD, fastopt.Adagrad, fastopt.RMSprop, fastopt.Adam, fastopt.AdamW):
        params = [rng.standard_normal(n).astype(dtype) for n in (1, 37, 1009, 70001)]
        opt = optimizer(params, lr=0.01, weight_decay=0.1, ema=0.9)
        for _ in range(3):
            opt.step([rng.standard_normal(p.size).astype(dtype) for p in params], max_norm=1.0)
            digest.update(np.float64(opt.grad_norm))
        for array in (*params, *opt.ema, *(s for state in opt.state for s in state.values())):
            digest.update(array)
print(digest.hexdigest())
"""


def python(code, **environment):
    """Run code in a Python of its own, where of fastopt's variables only the given ones are set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTOPT_") and k != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True
    )


def output(code, **environment):
    result = python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def refusal(**environment):
    """Last line of what `import fastopt` fails with."""
    result = python("import fastopt", **environment)
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


def test_version_is_written_once():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"] and "version" not in project


def test_version_is_that_of_the_installation():
    try:
        installed = metadata.version("fastopt")
    except metadata.PackageNotFoundError:
        pytest.skip("fastopt is on the path, but not installed")
    assert installed == fastopt.__version__


def test_public_names_are_there_and_documented():
    assert len(set(fastopt.__all__)) == len(fastopt.__all__)
    for name in set(fastopt.__all__) - {"__version__"}:
        assert getattr(fastopt, name).__doc__, name


def test_type_checkers_see_the_public_names():
    stub = ast.parse((Path(fastopt.__file__).with_suffix(".pyi")).read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    declared = [(node.module, alias.name) for node in imports for alias in node.names]
    expected = [(module, name) for name, module in fastopt._MODULE_OF.items()]
    expected += [("fastopt", name) for name in fastopt._SUBMODULES] + [("fastopt._version", "__version__")]
    assert sorted(declared) == sorted(expected)


@pytest.mark.parametrize("package", ["optimizers", "nn", "nn.data", "schedules", "interop"])
def test_packages_have_the_names_of_their_api(package):
    module = importlib.import_module(f"fastopt.{package}")
    names = importlib.import_module(f"fastopt.{package}.api").__all__
    assert sorted(dir(module)) == sorted(module.__all__) == sorted(names)
    assert all(getattr(module, name).__doc__ for name in names)
    with pytest.raises(AttributeError, match=f"module 'fastopt.{package}' has no attribute 'missing'"):
        getattr(module, "missing")  # noqa: B009


@pytest.mark.parametrize("package, name", [("fastopt", "py.typed"), ("fastopt.nn", "digits.npz")])
def test_data_files_are_installed(package, name):
    assert resources.files(package).joinpath(name).is_file()


def test_digits_are_attributed():
    text = resources.files("fastopt.nn").joinpath("digits.txt").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text and "https://doi.org/10.24432/C50P49" in text


def test_import_takes_no_extras():
    code = f"import sys, fastopt; print([name for name in {EXTRAS} if name in sys.modules])"
    assert output(code) == "[]"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has its lock always")
def test_import_leaves_the_lock_off():
    code = "import sys, fastopt.cli, fastopt.solver; print(sys._is_gil_enabled())"
    assert output(f"import warnings; warnings.simplefilter('error'); {code}") == "False"


@pytest.mark.parametrize("isa", ["", *dispatch.runnable()])
def test_only_the_chosen_kernels_are_imported(isa):
    compiled = ("fastopt._core.kernels_", "fastopt.nn._core.layers_")
    code = f"import sys, fastopt.nn.mlp; print([m for m in sys.modules if m.startswith({compiled})])"
    chosen = isa or dispatch.runnable()[-1]
    assert output(code, FASTOPT_ISA=isa) == str([name + chosen for name in compiled])


# A processor that says less of itself than it is: what asks it is imported alone, and answers something else.
LESSER = """
import importlib.util, sys, types

bare = types.ModuleType("fastopt")
bare.__path__ = importlib.util.find_spec("fastopt").submodule_search_locations
sys.modules["fastopt"] = bare
from fastopt._core import runtime

assert runtime.cpu_level() >= {level}
runtime.cpu_level = lambda: {level}
del sys.modules["fastopt"]
import fastopt.nn.mlp
print([m for m in sys.modules if m.startswith(("fastopt._core.kernels_", "fastopt.nn._core.layers_"))])
"""


@pytest.mark.parametrize("isa", dispatch.runnable())
def test_what_the_processor_lacks_is_never_imported(isa):
    code = LESSER.format(level=dispatch._LEVELS[isa])
    assert output(code) == str([f"fastopt._core.kernels_{isa}", f"fastopt.nn._core.layers_{isa}"])
    assert output(code, FASTOPT_ISA=isa) == output(code)
    for more in set(dispatch.runnable()) - {"base", isa}:
        if dispatch._LEVELS[more] > dispatch._LEVELS[isa]:
            assert f"ImportError: FASTOPT_ISA={more}" in python(code, FASTOPT_ISA=more).stderr


def test_every_instruction_set_gives_the_same_bits():
    expected = output(STEPS)
    assert len(expected) == 64
    for isa in dispatch.runnable():
        assert output(STEPS, FASTOPT_ISA=isa) == expected, isa


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_threads_do_not_change_the_bits(threads):
    assert output(STEPS, FASTOPT_NUM_THREADS=threads) == output(STEPS)


@pytest.mark.parametrize("isa", ["nonsense", "V3", "v99", "9" * 20, " "])
def test_unknown_instruction_set_is_refused(isa):
    assert refusal(FASTOPT_ISA=isa) == (
        f"ImportError: FASTOPT_ISA={isa}: this machine and installation can run "
        f"{', '.join(dispatch.runnable())}"
    )


@pytest.mark.parametrize(
    "environment, threads",
    [
        ({"FASTOPT_NUM_THREADS": "3"}, 3),
        ({"FASTOPT_NUM_THREADS": " 3 "}, 3),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"FASTOPT_NUM_THREADS": "3", "OMP_NUM_THREADS": "4"}, 3),
    ],
    ids=str,
)
def test_threads_from_the_environment(environment, threads):
    assert output("import fastopt; print(fastopt.get_num_threads())", **environment) == str(threads)


def test_openmp_nonsense_is_not_ours():
    code = "import fastopt; print(fastopt.get_num_threads())"
    assert output(code, OMP_NUM_THREADS="many") == output(code)


@pytest.mark.parametrize("threads", ["9" * 20, "2147483648", "1000000000"])
def test_openmp_thread_count_is_limited(threads):
    assert output("import fastopt; print(fastopt.get_num_threads())", OMP_NUM_THREADS=threads) == "256"


@pytest.mark.parametrize(
    "threads", ["0", "-1", "1.5", "many", "²", "9" * 20, "2147483648", "1e3", "4,2", " "]
)
def test_bad_thread_count_is_refused(threads):
    message = refusal(FASTOPT_NUM_THREADS=threads)
    assert message.startswith("ValueError: FASTOPT_NUM_THREADS: expected ")
    assert message.endswith(f"got {threads}") or message.endswith(f"got {threads!r}")
