"""``fastopt compare --surface``: paths of optimizers over a function of two variables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import plots, surfaces
from fastopt.cli import files, options, parts
from fastopt.cli.calls import parse_calls
from fastopt.optimizers import arguments_of

if TYPE_CHECKING:
    from fastopt._core.typing import Array
    from fastopt.cli.calls import Call
    from fastopt.cli.options import Parser
    from fastopt.optimizers import Optimizer

    Maker = Callable[[Array, float], Optimizer]

__all__ = ["add_options", "check_options", "run"]

_OPTIONS = ("surface", "optimizers", "steps", "start")     # and --plot, which is the command's
_ARRIVED = 0.1  # distance from a minimum
_LEFT_OUT = ("maximize", "ema", "skip_nonfinite", "accumulate", "sparse")

_ROW = "{:>13}{:>7}{:>10}{:>10}{:>10}{:>10}{:>9}"
_COLUMNS = ("Learning rate", "Steps", "x", "y", "Value", "Distance", "Arrived")


def add_options(command: Parser, compared: Iterable[str]) -> None:
    """Declare the options; `compared` are the names of the default optimizers."""
    add = command.add_argument_group(
        "paths", "over a surface instead of trainings; of the other options they take --plot alone"
    ).add_argument
    add("--surface", choices=tuple(surfaces.SURFACES), metavar="NAME", help=", ".join(surfaces.SURFACES))
    add("--optimizers", type=_calls, default=", ".join(compared), metavar="LIST",
        help="as in 'adam, sgd(lr=0.001, momentum=0.9)'; without lr, the best of some is taken (default: "
             "%(default)s)")
    add("--steps", type=options.positive, metavar="N", help="(default: by the surface)")
    add("--start", type=_point, metavar="X,Y", help="as in --start=-1,0.5 (default: by the surface)")


def check_options(args: argparse.Namespace) -> None:
    """Raise if options of paths and of trainings are mixed."""
    without = args.command.parse_args([])
    for name, action in args.command.options().items():
        is_ours = name in _OPTIONS
        if name == "plot" or getattr(args, action.dest) == getattr(without, action.dest):
            continue
        if is_ours and args.surface is None:
            raise ValueError(f"--{name}: only with --surface")
        if not is_ours and args.surface is not None:
            raise ValueError(f"--{name}: not with --surface")


def run(args: argparse.Namespace) -> int:
    """Follow each optimizer's path and print a row about it; return the exit status."""
    surface = surfaces.SURFACES[args.surface]
    steps, start = args.steps or surface.steps, args.start or surface.start
    if not surface.holds(start):
        left, right, bottom, top = surface.window
        raise ValueError(
            f"--start: expected x from {left:g} to {right:g} and y from {bottom:g} to {top:g} for "
            f"{surface.name}, got {_text(start)}"
        )
    files.check_plot(args.plot, moving=True)
    makers = _makers(args.optimizers)
    minima = ", ".join(map(_text, surface.minima))
    print(f"Surface: {surface.name}\nMinima of {surface.least:g}: {minima}")
    print(f"Paths: {steps} steps from {_text(start)}\n")
    width = max(map(len, ("Optimizer", *makers)))
    print(f"{'Optimizer':<{width}}  " + _ROW.format(*_COLUMNS), flush=True)
    paths = {}
    for label, (make, lr) in makers.items():
        if lr is None:
            lr = surfaces.find_rate(surface, make, steps, start)
        paths[label] = surfaces.descend(surface, _with_rate(make, lr), steps, start)
        print(f"{label:<{width}}  " + _ROW.format(f"{lr:g}", *_results(surface, paths[label])), flush=True)
    print(f"\nDistance: to the nearest minimum. Arrived: steps after which it stays below {_ARRIVED}.")
    if args.plot is not None:
        plots.plot_paths(surface, paths, args.plot)
        print(f"Drew the paths in {args.plot}")
    return 0


def _calls(text: str) -> tuple[Call, ...]:
    table = {
        name: [argument for argument in arguments_of(rule) if argument not in _LEFT_OUT]
        for name, (rule, _, _) in parts.OPTIMIZERS.items()
    }
    calls = parse_calls(text, table)
    if not calls:
        raise argparse.ArgumentTypeError("expected at least one")
    return calls


def _makers(calls: Sequence[Call]) -> dict[str, tuple[Maker, float | None]]:
    """Return a function ``make(point, lr)`` and a learning rate, or None, for each optimizer by its label."""
    names = [call.name for call in calls]
    makers: dict[str, tuple[Maker, float | None]] = {}
    for call in calls:
        label = call.name if names.count(call.name) == 1 else call.text
        rule, _, others = parts.OPTIMIZERS[call.name]
        arguments = others | call.arguments
        lr = arguments.pop("lr", None)

        def make(
            point: Array, lr: float, call: Call = call, rule: type[Optimizer] = rule,
            arguments: dict[str, Any] = arguments,
        ) -> Optimizer:
            return parts.make("--optimizers", call, rule, params=point, lr=lr, **arguments)

        make(np.zeros(2), surfaces.RATES[0] if lr is None else lr)  # refuses what is wrong before any work
        makers[label] = make, lr
    return makers


def _with_rate(make: Maker, lr: float) -> Callable[[Array], Optimizer]:
    return lambda point: make(point, lr)


def _results(surface: surfaces.Surface, path: Array) -> tuple[Any, ...]:
    x, y = path[-1]
    distances = surface.distance(path)
    away = np.flatnonzero(distances >= _ARRIVED)
    arrived = away[-1] + 1 if len(away) else 0
    return (
        len(path) - 1, _decimals(x), _decimals(y), f"{surface.value(x, y):.3g}", _decimals(distances[-1]),
        arrived if arrived < len(path) else "-",
    )


def _decimals(number: float) -> str:
    return f"{number:.4f}" if abs(number) < 100.0 else f"{number:.1e}"


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
        if np.isfinite([x, y]).all():
            return x, y
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected two numbers, as in 1.5,-2; got {text!r}")


def _text(point: Sequence[float]) -> str:
    return "({:.4g}, {:.4g})".format(*point)
