"""``fastopt compare --surface``: paths of optimizers on a function of two variables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fastopt import plots, surfaces
from fastopt._core.typing import Array
from fastopt.cli import options, outputs, registry, training
from fastopt.cli.calls import Call
from fastopt.cli.parser import Parser
from fastopt.nn.history import print_line
from fastopt.optimizers.api import Optimizer

_OPTIONS = ("surface", "steps", "start")
_COMMON_OPTIONS = ("optimizers", "plot")    # with and without --surface
_ARRIVED = 0.1  # distance from a minimum
_ROW = "{:>13}{:>7}{:>10}{:>10}{:>10}{:>10}{:>9}"
_COLUMNS = ("Learning rate", "Steps", "x", "y", "Value", "Distance", "Arrived")


def add_options(command: Parser) -> None:
    """Declare the options."""
    add = command.add_argument_group(
        "paths",
        "minimize a function of two variables instead of training a network;\n"
        "--optimizers and --plot apply as well",
    ).add_argument
    add("--surface", choices=tuple(surfaces.SURFACES), metavar="NAME",
        help=f"one of {', '.join(surfaces.SURFACES)}")
    add("--steps", type=options.positive_int, metavar="N",
        help="steps per optimizer (default: depends on the surface)")
    add("--start", type=_parse_point, metavar="X,Y",
        help="starting point, for example --start=-1,0.5 (default: depends on the surface)")


def check_options(args: argparse.Namespace) -> None:
    """Raise if options for training and for surfaces are combined."""
    defaults = args.command.parse_args([])
    for name, action in args.command.options().items():
        if name in _COMMON_OPTIONS or getattr(args, action.dest) == getattr(defaults, action.dest):
            continue
        if name in _OPTIONS and args.surface is None:
            raise ValueError(f"--{name}: requires --surface")
        if name not in _OPTIONS and args.surface is not None:
            raise ValueError(f"--{name}: cannot be combined with --surface")


def run(args: argparse.Namespace) -> int:
    """Run each optimizer on the surface and print a row of results each; return the exit status."""
    surface = surfaces.SURFACES[args.surface]
    steps, start = args.steps or surface.steps, args.start or surface.start
    if not surface.holds(start):
        left, right, bottom, top = surface.window
        raise ValueError(
            f"--start: expected x from {left:g} to {right:g} and y from {bottom:g} to {top:g} for "
            f"{surface.name}, got {_format_point(start)}"
        )
    outputs.check_plot(args.plot, animated=True)
    factories = _make_factories(args.optimizers)
    minima = ", ".join(map(_format_point, surface.minima))
    print(f"Surface: {surface.name}\nMinima of {surface.least:g}: {minima}")
    print(f"Paths: {steps} steps from {_format_point(start)}\n")
    width = max(map(len, ("Optimizer", *factories)))
    print_line(f"{'Optimizer':<{width}}  " + _ROW.format(*_COLUMNS))
    paths = {}
    for label, (make, lr) in factories.items():
        if lr is None:
            lr = surfaces.find_rate(surface, make, steps, start)
        paths[label] = surfaces.descend(surface, partial(make, lr=lr), steps, start)
        print_line(f"{label:<{width}}  " + _ROW.format(f"{lr:g}", *_results(surface, paths[label])))
    print(f"\nDistance: to the nearest minimum. Arrived: steps after which it stays below {_ARRIVED}.")
    if args.plot is not None:
        plots.plot_paths(surface, paths, args.plot)
        print(f"Saved the plot in {args.plot}")
    return 0


def _make_factories(calls: Sequence[Call]) -> dict[str, tuple[partial[Optimizer], float | None]]:
    """Return ``make(point, lr)`` and the learning rate, or None if it is not given, for each label."""
    factories: dict[str, tuple[partial[Optimizer], float | None]] = {}
    for label, call in registry.label_calls(calls).items():
        cls, _, preset = registry.OPTIMIZERS[call.name]
        arguments = preset | call.arguments
        lr = arguments.pop("lr", None)
        make = partial(_make, call, cls, arguments)
        make(np.zeros(2), surfaces.RATES[0] if lr is None else lr)  # raises before anything is printed
        factories[label] = make, lr
    return factories


def _make(call: Call, cls: type[Optimizer], arguments: dict[str, Any], point: Array, lr: float) -> Optimizer:
    return registry.make("--optimizers", call, cls, params=point, lr=lr, **arguments)


def _results(surface: surfaces.Surface, path: Array) -> tuple[Any, ...]:
    distances = surface.distance(path)
    arrived = max(np.flatnonzero(distances >= _ARRIVED) + 1, default=0)
    x, y, distance = (training.format_float(value, 100.0, 1) for value in (*path[-1], distances[-1]))
    value = f"{surface.value(*path[-1]):.3g}"
    return len(path) - 1, x, y, value, distance, arrived if arrived < len(path) else "-"


def _parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
        if np.isfinite([x, y]).all():
            return x, y
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected two numbers, for example 1.5,-2; got {text!r}")


def _format_point(point: Sequence[float]) -> str:
    return "({:.4g}, {:.4g})".format(*point)
