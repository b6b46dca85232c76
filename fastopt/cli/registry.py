"""Optimizers, schedules, losses and callbacks by their names on the command line."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

from fastopt import callbacks, schedules
from fastopt._core.typing import FloatOrSchedule, Params, Schedule
from fastopt._core.validation import suggest
from fastopt.cli.calls import Call, parse_call, parse_calls
from fastopt.cli.outputs import is_run_file
from fastopt.nn import Callback
from fastopt.nn.data import Dataset
from fastopt.optimizers.api import (
    BY_NAME,
    SGD,
    TRAINING_OPTIONS,
    Adam,
    Optimizer,
    SignSGD,
    arguments_of,
)

_T = TypeVar("_T")

# Default learning rates, for small networks and minibatches.
_RATES = {
    "adabelief": 0.002, "adadelta": 1.0, "adafactor": 0.01, "adagrad": 0.02, "adam": 0.001, "adamax": 0.005,
    "adamw": 0.001, "adamwschedulefree": 0.005, "adan": 0.002, "ademamix": 0.001, "adopt": 0.002, "asgd": 0.1,
    "ftrl": 0.5, "lamb": 0.002, "lars": 0.5, "lion": 0.0005, "muon": 0.005, "nadam": 0.002, "prodigy": 1.0,
    "radam": 0.002, "rmsprop": 0.001, "rprop": 0.01, "sgd": 0.1, "sgdschedulefree": 0.5, "signsgd": 0.001,
    "yogi": 0.005,
}
# Class, default learning rate, and preset hyperparameters.
OPTIMIZERS: dict[str, tuple[type[Optimizer], float, dict[str, Any]]] = {
    **{name: (cls, _RATES[name], {}) for name, cls in BY_NAME.items()},
    "momentum": (SGD, 0.02, {"momentum": 0.9}),
    "nesterov": (SGD, 0.02, {"momentum": 0.9, "nesterov": True}),
    "amsgrad": (Adam, 0.001, {"amsgrad": True}),
    "signum": (SignSGD, 0.0005, {"momentum": 0.9}),
}
OPTIMIZERS = dict(sorted(OPTIMIZERS.items()))
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": schedules.Constant,     # passed on as a float, which callbacks can change
    "step": schedules.Step,
    "multi_step": schedules.MultiStep,
    "exponential": schedules.Exponential,
    "inverse_time": schedules.InverseTime,
    "polynomial": schedules.Polynomial,
    "cosine": schedules.Cosine,
    "cosine_restarts": schedules.CosineRestarts,
    "linear_warmup": schedules.LinearWarmup,
    "wsd": schedules.WSD,
    "join": schedules.Join,
    "one_cycle": schedules.OneCycle,
    "reduce_on_plateau": schedules.ReduceOnPlateau,
}
CALLBACKS: dict[str, Callable[..., Callback]] = {
    "csv_logger": callbacks.CSVLogger,
    "early_stopping": callbacks.EarlyStopping,
    "model_checkpoint": callbacks.ModelCheckpoint,
    "reduce_lr_on_plateau": callbacks.ReduceLROnPlateau,
    "terminate_on_nan": callbacks.TerminateOnNaN,
}
# Losses with their arguments, by task. The first loss is the default.
LOSSES: dict[Literal["classification", "regression"], dict[str, tuple[str, ...]]] = {
    "classification": {"cross_entropy": (), "binary_cross_entropy": ()},
    "regression": {
        "mse": (), "squared_error": (), "huber": ("delta",), "quantile": ("quantile",), "poisson": (),
    },
}
# Arguments that have an option of their own, or are not for training.
_OPTIMIZER_OPTIONS = ("lr", "weight_decay", "maximize", "ema")


def _arguments(function: Callable[..., Any], without: Collection[str] = ()) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in without]


def parse_loss(text: str) -> Call:
    """Parse ``--loss``."""
    return parse_call(text, {"auto": ()} | LOSSES["classification"] | LOSSES["regression"])


def parse_optimizer(text: str) -> Call:
    """Parse ``--optimizer``."""
    return parse_call(text, optimizer_arguments(without=_OPTIMIZER_OPTIONS))


def parse_schedule(text: str) -> Call:
    """Parse ``--lr-schedule``."""
    table = {name: _arguments(schedule, without=("lr", "max_lr")) for name, schedule in SCHEDULES.items()}
    return parse_call(text, table, nested=["then", "schedules"])


def parse_callbacks(text: str) -> tuple[Call, ...]:
    """Parse ``--callbacks``."""
    table = {name: _arguments(callback, without=("raise_error",)) for name, callback in CALLBACKS.items()}
    return parse_calls(text, table)


def optimizer_arguments(without: Collection[str]) -> dict[str, list[str]]:
    """Return the arguments of each optimizer, except those in `without`."""
    return {
        name: [argument for argument in arguments_of(cls) if argument not in without]
        for name, (cls, _, _) in OPTIMIZERS.items()
    }


def parse_optimizers(text: str) -> tuple[Call, ...]:
    """Parse ``--optimizers``, whose hyperparameters include the learning rate."""
    calls = parse_calls(text, optimizer_arguments(without=TRAINING_OPTIONS))
    if not calls:
        raise argparse.ArgumentTypeError("expected at least one optimizer")
    return calls


def label_calls(calls: Sequence[Call]) -> dict[str, Call]:
    """Return the calls by name, or by their text if several have the same name."""
    names = [call.name for call in calls]
    return {call.name if names.count(call.name) == 1 else call.text: call for call in calls}


def make_optimizer(call: Call, params: Params, lr: FloatOrSchedule, **options: Any) -> Optimizer:
    """Return the optimizer of a call, whose arguments take precedence over `lr`.

    `options` that are None keep their defaults.
    """
    cls, _, preset = OPTIMIZERS[call.name]
    given = {name: value for name, value in options.items() if value is not None}
    if "weight_decay" not in arguments_of(cls) and given.pop("weight_decay", 0.0):
        raise ValueError(f"--weight-decay: {call.name} does not support weight decay")
    return make("--optimizer", call, cls, params=params, **{"lr": lr, **preset, **call.arguments, **given})


def make_schedule(call: Call, lr: float, steps: int) -> FloatOrSchedule:
    """Return the schedule of ``--lr-schedule``, or a float if it is constant.

    `lr` is the initial value, or the peak of a one-cycle schedule. `steps` is the default length of a
    schedule; a schedule after a warmup, and the last one of a join, get the remaining steps.
    """
    if call.name == "constant":
        return lr
    schedule = SCHEDULES[call.name]
    arguments = dict(call.arguments)
    if call.name == "linear_warmup":
        remaining = steps - arguments["steps"] if isinstance(arguments.get("steps"), int) else steps
        then = arguments.get("then", Call("constant", {}, "constant"))
        if not isinstance(then, Call):
            raise ValueError(f"--lr-schedule: linear_warmup: then: expected a schedule, got {then!r}")
        arguments["then"] = make_schedule(then, lr, max(remaining, 1))
        return make("--lr-schedule", call, schedule, **arguments)
    if call.name == "join":
        parts, lengths = arguments.get("schedules"), arguments.get("lengths")
        if not isinstance(parts, list) or not all(isinstance(part, Call) for part in parts):
            raise ValueError(f"--lr-schedule: join: schedules: expected a list of schedules, got {parts!r}")
        known = lengths if isinstance(lengths, list) and all(type(n) is int for n in lengths) else []
        ends = [*known, steps - sum(known)]
        arguments["schedules"] = [
            make_schedule(part, lr, max(ends[min(i, len(known))], 1)) for i, part in enumerate(parts)
        ]
        return make("--lr-schedule", call, schedule, **arguments)
    fields = _arguments(schedule)
    if "steps" in fields:
        arguments.setdefault("steps", steps)
    return make("--lr-schedule", call, schedule, **{fields[0]: lr}, **arguments)


def make_callbacks(calls: Sequence[Call], folder: str) -> list[Callback]:
    """Return the callbacks of ``--callbacks``; relative paths are relative to `folder`."""
    return [make("--callbacks", call, CALLBACKS[call.name], **_resolve_paths(call, folder)) for call in calls]


def check_callbacks(calls: Sequence[Call], schedule: Call, dataset: Dataset) -> None:
    """Raise if a callback cannot be constructed or would fail during training.

    `schedule` is that of the learning rate. Without classes there is no accuracy to monitor, and without
    validation data no metric of it.
    """
    measured = ["loss"] if dataset.classes is None else ["loss", "accuracy"]
    metrics = [*measured, "lr", "seconds"]
    if dataset.validation_data is not None:
        metrics += [f"val_{name}" for name in measured]
    for call, callback in zip(calls, make_callbacks(calls, ""), strict=True):
        if call.name == "reduce_lr_on_plateau" and schedule.name != "constant":
            raise ValueError(
                f"--callbacks: {call.name} and --lr-schedule {schedule.name} both set the learning rate"
            )
        by_batch = call.arguments.get("save_freq", "epoch") != "epoch"
        try:
            _check_monitor(callback, ["loss"] if by_batch else metrics)
            fields = {"batch": 1, "loss": 0.5} if by_batch else dict.fromkeys(metrics, 0.5)
            _check_path(call, {"epoch": 1} | fields)
        except ValueError as error:
            raise ValueError(f"--callbacks: {call.name}: {error}") from None


def _check_monitor(callback: Callback, metrics: Collection[str]) -> None:
    monitor = getattr(callback, "monitor", "loss")
    if monitor not in metrics and getattr(callback, "save_best_only", True):
        raise ValueError(f"monitor: unknown metric {monitor!r}; {suggest(str(monitor), metrics)}")


def _check_path(call: Call, fields: Mapping[str, float]) -> None:
    """Raise if a callback's path is invalid or would overwrite a file of the run.

    `fields` maps the fields that a path may contain to example values.
    """
    for name in call.arguments.keys() & {"filename", "filepath"}:
        path = call.arguments[name]
        try:
            formatted = path.format(**fields) if name == "filepath" else path
        except (LookupError, AttributeError, ValueError):
            raise ValueError(f"{name}: expected only {', '.join(fields)} in braces, got {path!r}") from None
        if not os.path.basename(formatted) or "\0" in formatted:
            raise ValueError(f"{name}: expected a file name, got {path!r}")
        if is_run_file(os.path.normpath(formatted)):
            raise ValueError(f"{name}: {path} would overwrite a file of the run")
        if name == "filename" and os.path.dirname(path) and not os.path.isabs(path):
            raise ValueError(f"{name}: expected a name without folders, or an absolute path; got {path!r}")


def _resolve_paths(call: Call, folder: str) -> dict[str, Any]:
    """Return the arguments of a call, with relative paths joined to `folder`."""
    escaped = folder.replace("{", "{{").replace("}", "}}")  # braces in a filepath are format fields
    arguments = dict(call.arguments)
    for name, parent in (("filename", folder), ("filepath", escaped)):
        path = arguments.get(name, "")
        if not isinstance(path, str):
            raise ValueError(f"--callbacks: {call.name}: {name}: expected a string, got {path!r}")
        if name in arguments:
            arguments[name] = os.path.join(parent, path)
    return arguments


def make(option: str, call: Call, function: Callable[..., _T], **arguments: Any) -> _T:
    """Return ``function(**arguments)``; errors are prefixed with the names of the option and the call."""
    try:
        inspect.signature(function).bind(**arguments)  # its error for a missing argument is clearer
        return function(**arguments)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{option}: {call.name}: {error}") from None
