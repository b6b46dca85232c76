"""The gradients of a model, arranged like its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastopt.nn.typing import Net


_DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))


class GradientOrder:
    """Arranges what ``train_step`` returns like ``net.params``.

    Gradients may start with the last layer, as backpropagation computes it first. If the model has no
    attribute `grads_reversed`, the order is the one in which nesting and shapes are those of the parameters.

    Parameters
    ----------
    net : object
        A model as for `fastopt.Trainer`.
    strict : bool
        Raise a ValueError if the gradients fit in neither order. Otherwise they are taken to start with the
        last layer, and the optimizer raises an error or accepts them.
    """

    def __init__(self, net: Net, strict: bool = False) -> None:
        self._net, self._strict = net, strict
        is_reversed = getattr(net, "grads_reversed", None)
        self._is_reversed: bool | None = None if is_reversed is None else bool(is_reversed)

    def __call__(self, grads: Any) -> Any:
        """Return the gradients nested and ordered like the parameters, as floats of their shapes."""
        return self.convert(self.order(grads))

    def order(self, grads: Any) -> Any:
        """Return the gradients in the order of the parameters."""
        params = self._net.params
        if isinstance(params, (list, tuple)):
            if not isinstance(grads, (list, tuple)):
                raise TypeError(f"grads: expected a list like net.params, got {type(grads).__name__}")
            is_reversed = self._is_reversed
            if is_reversed is None:
                self._is_reversed = is_reversed = _find_order(params, grads)
            if is_reversed is not False:
                grads = grads[::-1]
        return grads

    def convert(self, grads: Any) -> Any:
        """Return gradients in the order of the parameters as floats of their shapes."""
        params = self._net.params
        if _fits(params, grads):
            return _like(params, grads)
        if self._strict:
            raise ValueError(
                f"grads: expected the nesting and the shapes {_shapes(params)} of net.params, in this order "
                f"or reversed, got {_shapes(grads)}"
            )
        return grads


def _find_order(params: Any, grads: Any) -> bool | None:
    """Return whether gradients start with the last entry of `params`; None if neither or any order fits."""
    backward = grads[::-1]
    if [*map(id, leaves(grads))] == [*map(id, leaves(backward))] and _fits(params, grads):
        return None
    for is_exact in (True, False):
        fits = _fits(params, grads, is_exact), _fits(params, backward, is_exact)
        if fits == (True, True):
            raise ValueError(
                "grads: they fit net.params in both orders; set net.grads_reversed to True if train_step "
                "returns those of the last layer first, and to False if they are in the order of net.params"
            )
        if any(fits):
            return fits[1]
    return None


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the arrays of a nesting in their order."""
    if isinstance(tree, (list, tuple, dict)):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(inner)
    else:
        yield tree


def _fits(params: Any, grads: Any, is_exact: bool = False) -> bool:
    """Whether each gradient can be broadcast to its parameter or, with `is_exact`, has its shape."""
    if isinstance(params, dict):
        return (
            isinstance(grads, dict) and grads.keys() == params.keys()
            and all(_fits(params[key], grads[key], is_exact) for key in params)
        )
    if isinstance(params, (list, tuple)):
        return (
            isinstance(grads, (list, tuple)) and len(grads) == len(params)
            and all(_fits(p, g, is_exact) for p, g in zip(params, grads, strict=True))
        )
    if grads is None:
        return True
    if isinstance(grads, (list, tuple, dict)):
        return False
    if isinstance(grads, Rows):
        return np.ndim(params) > 0
    shape: tuple[int, ...] = np.shape(grads)
    expected: tuple[int, ...] = np.shape(params)
    if is_exact or shape == expected:
        return shape == expected
    return len(shape) <= len(expected) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(expected), strict=False)
    )


def _like(params: Any, grads: Any) -> Any:
    if isinstance(params, dict):
        return {key: _like(p, grads[key]) for key, p in params.items()}
    if isinstance(params, (list, tuple)):
        return [_like(p, g) for p, g in zip(params, grads, strict=True)]
    if grads is None or isinstance(grads, Rows):
        return grads
    if type(grads) is np.ndarray and grads.shape == params.shape and grads.dtype in _DTYPES:
        return grads        # the optimizer converts it while it reads it
    like = np.empty_like(params, subok=False)
    try:
        np.copyto(like, grads, casting="same_kind")
    except TypeError as error:
        raise TypeError(f"grads: expected numbers for {like.dtype}, got {np.asarray(grads).dtype}") from error
    return like


def are_arrays_like(params: Any, grads: Any) -> bool:
    """Whether all gradients are arrays that an optimizer takes without conversion, or None."""
    return _fits(params, grads, True) and all(
        g is None or isinstance(g, Rows) or (type(g) is np.ndarray and g.dtype in _DTYPES)
        for g in leaves(grads)
    )


def _shapes(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _shapes(inner) for key, inner in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_shapes(inner) for inner in tree]
    return None if tree is None else np.shape(tree)
