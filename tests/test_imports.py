"""Import directions between the modules of the package, and cycles."""

import ast
import re
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
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
