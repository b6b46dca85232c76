"""Packages whose public names are imported when the first of them is used.

The ``__init__.py`` of a package must not import modules of the package. Python locks a module before it
imports the package that contains it, so two threads would wait for each other if one of them imported the
package and the other one of these modules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module


def attach(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, whose public names are in its module ``api``."""

    def __getattr__(name: str) -> object:
        # The import system asks for `api` before it imports this module.
        if name == "api" or not hasattr(api := import_module(f"{package}.api"), name):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(api, name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return list(import_module(f"{package}.api").__all__)

    return __getattr__, __dir__
