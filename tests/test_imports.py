"""Import directions between the modules of the package, cycles, and imports in several threads."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastopt"
SUFFIXES = (".py", ".pyi", ".pyx", ".pxd", ".pxi")

# The first must not import the second, also not for typing or in a function.
FORBIDDEN = [
    ("fastopt._core", r"fastopt(?!\._(core|version)\b)"),
    ("fastopt.optimizers", "fastopt.(nn|functional|reference|interop)"),
    (
        "fastopt.optimizers.(groups|hyperparameters|plan|rule|state|state_dict|options)",
        "fastopt.optimizers.base",
    ),
    ("fastopt.reference", "fastopt.(optimizers|functional|_core.(kernels|step_table|dispatch))"),
    ("fastopt.nn", "fastopt.(cli|sklearn|plots)"),
    ("fastopt", "benchmarks"),
]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_imports(path):
    yield from python_imports_of(ast.walk(ast.parse(path.read_text(encoding="utf-8"))), path)


def python_imports_of(nodes, path=""):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def cython_imports(path):
    pattern = r"^\s*from\s+([\w.]+)\s+c?import\s+(\(.*?\)|.*?$)"
    for module, names in re.findall(pattern, path.read_text(encoding="utf-8"), re.M | re.S):
        yield from (f"{module}.{name.split()[0]}" for name in names.strip("()").split(",") if name.strip())


def imports():
    """For each module of the package the names that it imports, modules or attributes of modules."""
    table = {}
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in SUFFIXES):
        if path.name == "__init__.pyi":     # the public names, which `__init__.py` imports lazily
            continue
        read = python_imports if path.suffix in (".py", ".pyi") else cython_imports
        table.setdefault(module_name(path), set()).update(read(path))
    return table


IMPORTS = imports()


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN)
def test_directions(importer, imported):
    wrong = [
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if re.match(rf"{importer}(\.|$)", module) and re.match(rf"{imported}(\.|$)", name)
    ]
    assert wrong == []
    assert any(re.match(rf"{importer}(\.|$)", module) for module in IMPORTS)


def test_no_cycles():
    """Packages count as their `__init__.py`; importing a submodule is not an import of its package."""
    edges = {module: set() for module in IMPORTS}
    for module, names in IMPORTS.items():
        for name in names:
            target = name if name in IMPORTS else name.rpartition(".")[0]
            if target in IMPORTS and target != module:
                edges[module].add(target)
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module not in done:
            path.append(module)
            for target in sorted(edges[module]):
                visit(target)
            path.pop()
            done.add(module)

    for module in edges:
        visit(module)


# --- Imports in several threads -------------------------------------------------------------------------


def run_time_imports(nodes):
    """Yield the names that the module imports when it is imported itself."""
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from run_time_imports(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from run_time_imports(ast.iter_child_nodes(node))


def import_locks():
    """For each module the modules whose import locks it takes while it holds its own.

    Python locks a module, then imports the package that contains it, then executes the module.
    """
    modules = {module_name(p): p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".pyx")}
    locks = {module: set() for module in modules}
    for module, path in modules.items():
        if path.suffix == ".py":
            nodes = run_time_imports(ast.parse(path.read_text(encoding="utf-8")).body)
            names = list(python_imports_of(nodes))
        else:
            names = [*cython_imports(path), *(n for p in [path.with_suffix(".pxd")] if p.exists()
                                              for n in cython_imports(p))]
        for name in [*names, module.rpartition(".")[0]]:
            target = name if name in modules else name.rpartition(".")[0]
            if target != module and target in modules:
                locks[module].add(target)
            if f"{target}.api" in modules and name != target:   # a public name of a package
                locks[module].add(f"{target}.api")
    return locks


def test_threads_can_import_any_modules_at_once():
    """No cycle of locks, except through modules that are never the first import of a program."""
    locks = import_locks()
    for package in ("fastopt", "fastopt.cli"):      # outside of them, nothing imports what they import first
        locks[package] = {module for module in locks[package] if not module.startswith(f"{package}.")}
    assert {"fastopt.nn", "fastopt.nn.data", "fastopt.optimizers.base"} <= locks.keys()
    assert "fastopt.nn" in locks["fastopt.nn.data"]
    assert "fastopt.optimizers.base" in locks["fastopt.nn.batches"]
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(locks | {"fastopt.nn": {"fastopt.nn.data"}}).static_order())
    tuple(graphlib.TopologicalSorter(locks).static_order())


PUBLIC = [
    "fastopt.nn", "fastopt.nn.data", "fastopt.optimizers", "fastopt.callbacks", "fastopt.solver",
    "fastopt.schedules",
]  # fmt: skip

IMPORT_AT_ONCE = """
import importlib, itertools, os, sys, threading
import fastopt

sys.setswitchinterval(1e-6)

def run(modules):
    errors, start = [], threading.Barrier(len(modules))
    def load(name):
        start.wait()
        try:
            module = importlib.import_module(name)
            [getattr(module, public) for public in module.__all__]
        except BaseException as error:
            errors.append(f"{name}: {error!r}")
    threads = [threading.Thread(target=load, args=(name,)) for name in modules]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return errors

for modules in [*itertools.combinations(sys.argv[1:], 2), sys.argv[1:]]:
    child = os.fork()       # one that has imported nothing else yet
    if child == 0:
        errors = run(modules)
        print(*errors, sep="\\n", end="\\n" * bool(errors), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_public_modules_are_imported_in_two_threads_at_once():
    result = subprocess.run([sys.executable, "-c", IMPORT_AT_ONCE, *PUBLIC], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
