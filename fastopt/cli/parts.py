"""What options name: optimizers, schedules, losses and callbacks, and how each is made from its call."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastopt import schedules
from fastopt.cli.calls import Call, parse_call, parse_calls
from fastopt.cli.run_folder import OWN_FILES
from fastopt.nn import callbacks
from fastopt.optimizers import BY_NAME, SGD, Adam, SignSGD, arguments_of

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray, FloatOrSchedule, Params, Schedule
    from fastopt.nn import Callback
    from fastopt.optimizers import Optimizer

_T = TypeVar("_T")

# Learning rates that suit a small net and its batches.
_RATES = {
    "adabelief": 0.002, "adadelta": 1.0, "adafactor": 0.01, "adagrad": 0.02, "adam": 0.001, "adamax": 0.005,
    "adamw": 0.001, "adamwschedulefree": 0.005, "adan": 0.002, "ademamix": 0.001, "adopt": 0.002, "asgd": 0.1,
    "ftrl": 0.5, "lamb": 0.002, "lars": 0.5, "lion": 0.0005, "muon": 0.005, "nadam": 0.002, "prodigy": 1.0,
    "radam": 0.002, "rmsprop": 0.001, "rprop": 0.01, "sgd": 0.1, "sgdschedulefree": 0.5, "signsgd": 0.001,
    "yogi": 0.005,
}
# Class, learning rate and what else makes it that rule.
OPTIMIZERS: dict[str, tuple[type[Optimizer], float, dict[str, Any]]] = {
    **{name: (rule, _RATES[name], {}) for name, rule in BY_NAME.items()},
    "momentum": (SGD, 0.02, {"momentum": 0.9}),
    "nesterov": (SGD, 0.02, {"momentum": 0.9, "nesterov": True}),
    "amsgrad": (Adam, 0.001, {"amsgrad": True}),
    "signum": (SignSGD, 0.0005, {"momentum": 0.9}),
}
OPTIMIZERS = dict(sorted(OPTIMIZERS.items()))
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": schedules.Constant,     # held as a plain number, which callbacks may change
    "step": schedules.Step,
    "multi_step": schedules.MultiStep,
    "exponential": schedules.Exponential,
    "inverse_time": schedules.InverseTime,
    "polynomial": schedules.Polynomial,
    "cosine": schedules.Cosine,
    "cosine_restarts": schedules.CosineRestarts,
    "linear_warmup": schedules.LinearWarmup,
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
# By the task, with the names of their arguments; the first is the default.
LOSSES: dict[Literal["classification", "regression"], dict[str, tuple[str, ...]]] = {
    "classification": {"cross_entropy": (), "binary_cross_entropy": ()},
    "regression": {
        "mse": (), "squared_error": (), "huber": ("delta",), "quantile": ("quantile",), "poisson": (),
    },
}
_CONSTANT = Call("constant", {}, "constant")

# What has an option of its own, or would turn the training around.
_OPTIMIZER_OPTIONS = ("lr", "weight_decay", "maximize", "ema")
_PEAKS = ("lr", "max_lr")  # fields of a schedule that --lr gives
_ERRORS = ("raise_error",)  # of a callback: an error is not what a diverged training ends with


def _arguments(kind: Callable[..., Any], without: Collection[str] = ()) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in without]


def loss_call(text: str) -> Call:
    """Parse ``--loss``."""
    return parse_call(text, {"auto": ()} | LOSSES["classification"] | LOSSES["regression"])


def optimizer_call(text: str) -> Call:
    """Parse ``--optimizer``."""
    table = {
        name: [argument for argument in arguments_of(rule) if argument not in _OPTIMIZER_OPTIONS]
        for name, (rule, _, _) in OPTIMIZERS.items()
    }
    return parse_call(text, table)


def schedule_call(text: str) -> Call:
    """Parse ``--lr-schedule``."""
    table = {name: _arguments(schedule, _PEAKS) for name, schedule in SCHEDULES.items()}
    return parse_call(text, table, nested=["then"])


def callback_calls(text: str) -> tuple[Call, ...]:
    """Parse ``--callbacks``."""
    table = {name: _arguments(callback, _ERRORS) for name, callback in CALLBACKS.items()}
    return parse_calls(text, table)


def make_optimizer(call: Call, params: Params, lr: FloatOrSchedule, **options: Any) -> Optimizer:
    """Return the optimizer that ``--optimizer`` names; None among the `options` is its own default."""
    rule, _, others = OPTIMIZERS[call.name]
    given = {name: value for name, value in options.items() if value is not None}
    if "weight_decay" not in arguments_of(rule) and given.pop("weight_decay", 0.0):
        raise ValueError(f"--weight-decay: {call.name} has none")
    return make("--optimizer", call, rule, params=params, lr=lr, **others | call.arguments | given)


def averages(call: Call) -> bool:
    """Whether the optimizer that ``--optimizer`` names is to be judged by its averages."""
    return hasattr(OPTIMIZERS[call.name][0], "averaged")


def make_schedule(call: Call, lr: float, steps: int) -> FloatOrSchedule:
    """Return the schedule that ``--lr-schedule`` names; a number where it is constant.

    Parameters
    ----------
    call : Call
    lr : float
        Its first, or its largest, value.
    steps : int
        Of the whole training: the length of a schedule that is given none. What follows a warmup
        has the rest.
    """
    if call.name == "constant":
        return lr
    schedule = SCHEDULES[call.name]
    arguments = dict(call.arguments)
    if call.name == "linear_warmup":
        left = steps - arguments["steps"] if isinstance(arguments.get("steps"), int) else steps
        then = arguments.get("then", _CONSTANT)
        if not isinstance(then, Call):
            raise ValueError(f"--lr-schedule: linear_warmup: then must be a schedule, got {then!r}")
        arguments["then"] = make_schedule(then, lr, max(left, 1))
        return make("--lr-schedule", call, schedule, **arguments)
    fields = _arguments(schedule)
    if "steps" in fields:
        arguments.setdefault("steps", steps)
    return make("--lr-schedule", call, schedule, **{fields[0]: lr}, **arguments)


def make_callbacks(calls: Sequence[Call], folder: str) -> list[Callback]:
    """Return the callbacks that ``--callbacks`` names; relative paths lead into `folder`."""
    return [make("--callbacks", call, CALLBACKS[call.name], **_in_folder(call, folder)) for call in calls]


def check_callbacks(calls: Sequence[Call], schedule: Call, classes: AnyArray | None) -> None:
    """Raise if callbacks could not be made, or would fail in the training.

    Parameters
    ----------
    calls : sequence of Call
    schedule : Call
        That of the learning rate.
    classes : ndarray or None
        Without them there is no accuracy to monitor.
    """
    numbers = ["loss", "val_loss", "lr", "seconds"]
    numbers += [] if classes is None else ["accuracy", "val_accuracy"]
    for call, callback in zip(calls, make_callbacks(calls, ""), strict=True):
        if call.name == "reduce_lr_on_plateau" and schedule.name != "constant":
            raise ValueError(f"--callbacks: {call.name} and --lr-schedule {schedule.name} both set the rate")
        by_batch = call.arguments.get("save_freq", "epoch") != "epoch"
        try:
            _check_monitor(callback, ["loss"] if by_batch else numbers)
            fields = {"batch": 1, "loss": 0.5} if by_batch else dict.fromkeys(numbers, 0.5)
            _check_path(call, {"epoch": 1} | fields)
        except ValueError as error:
            raise ValueError(f"--callbacks: {call.name}: {error}") from None


def _check_monitor(callback: Callback, numbers: Collection[str]) -> None:
    monitor = getattr(callback, "monitor", "loss")
    if monitor not in numbers and getattr(callback, "save_best_only", True):
        raise ValueError(f"there is no {monitor!r} to monitor, expected {', '.join(numbers)}")


def _check_path(call: Call, fields: Mapping[str, float]) -> None:
    """Raise if a callback's file could not be one of the run's folder, or is one already.

    `fields` are those that a name may have, with an example of each.
    """
    for name in call.arguments.keys() & {"filename", "filepath"}:
        path = call.arguments[name]
        try:
            written = path.format(**fields) if name == "filepath" else path
        except (LookupError, AttributeError, ValueError):
            raise ValueError(f"{name}: expected in braces {', '.join(fields)}; got {path!r}") from None
        if not os.path.basename(written) or "\0" in written:
            raise ValueError(f"{name}: expected a file's name, got {path!r}")
        if os.path.normpath(written) in OWN_FILES:
            raise ValueError(f"{name}: {path} is a file of the run's own")
        if name == "filename" and os.path.dirname(path) and not os.path.isabs(path):
            raise ValueError(f"{name}: expected a name without folders, or an absolute path; got {path!r}")


def _in_folder(call: Call, folder: str) -> dict[str, Any]:
    """Return the arguments, paths among them with the folder before them."""
    escaped = folder.replace("{", "{{").replace("}", "}}")
    arguments = dict(call.arguments)
    for name, before in (("filename", folder), ("filepath", escaped)):  # braces of a filepath are fields
        path = arguments.get(name, "")
        if not isinstance(path, str):
            raise ValueError(f"--callbacks: {call.name}: {name}: expected a string, got {path!r}")
        if name in arguments:
            arguments[name] = os.path.join(before, path)
    return arguments


def make(option: str, call: Call, kind: Callable[..., _T], **arguments: Any) -> _T:
    """Return ``kind(**arguments)``; what it refuses is said with the names of the option and the call."""
    try:
        inspect.signature(kind).bind(**arguments)  # says what is missing better than a call does
        return kind(**arguments)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{option}: {call.name}: {error}") from None
