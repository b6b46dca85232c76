"""Callbacks made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastopt.nn.callbacks.base import Callback

if TYPE_CHECKING:
    from fastopt.nn.typing import Logs

__all__ = ["LambdaCallback"]


class LambdaCallback(Callback):
    """Call a function at each of the given hooks.

    Parameters
    ----------
    on_epoch_begin, on_epoch_end : callable, optional
        Function of ``(epoch, logs)``.
    on_train_begin, on_train_end : callable, optional
        Function of ``(logs)``.
    on_train_batch_begin, on_train_batch_end : callable, optional
        Function of ``(batch, logs)``.
    **hooks : callable
        Any other method of `Callback`, such as ``on_test_end``.

    Examples
    --------
    >>> def f1(logs):
    ...     logs["val_f1"] = f1_score(y_val, net.predict(X_val))
    >>> measure = fastopt.callbacks.LambdaCallback(on_test_end=f1)
    """

    def __init__(
        self,
        on_epoch_begin: Callable[[int, Logs], object] | None = None,
        on_epoch_end: Callable[[int, Logs], object] | None = None,
        on_train_begin: Callable[[Logs], object] | None = None,
        on_train_end: Callable[[Logs], object] | None = None,
        on_train_batch_begin: Callable[[int, Logs], object] | None = None,
        on_train_batch_end: Callable[[int, Logs], object] | None = None,
        **hooks: Callable[..., object] | None,
    ) -> None:
        hooks |= {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
        }
        for name, function in hooks.items():
            if function is None:
                continue
            if name.startswith("_") or not callable(getattr(Callback, name, None)):
                raise TypeError(f"LambdaCallback: {name!r} is not a method of Callback")
            if not callable(function):
                raise TypeError(f"{name}: expected a function, got {function!r}")
            setattr(self, name, function)
