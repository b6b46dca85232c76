"""Documentation of the parameters that many optimizers share, written once.

The docstring of an optimizer describes only what is particular to it. `complete` adds the other parameters of
its signature, in order, and the errors.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastopt.optimizers.rule import Rule

# Type and description by name.
OPTIMIZER = {
    "params": (
        "ndarray, nesting of ndarrays, list of dict, or GroupedParams",
        "float32 or float64 arrays, updated in place, or groups of such arrays; see `Optimizer`.",
    ),
    "lr": ("float or schedule", r"Learning rate :math:`\gamma \ge 0`."),
    "betas": (
        "pair of float or schedule",
        r"Decay rates :math:`\beta_1, \beta_2` of the moving averages, in [0, 1).",
    ),
    "momentum": ("float or schedule", r"Momentum :math:`\mu \ge 0`; 0 disables it."),
    "eps": ("float or schedule", r":math:`\epsilon \ge 0`."),
    "weight_decay": ("float or schedule", "L2 penalty: ``weight_decay * p`` is added to the gradient."),
    "decoupled_weight_decay": (
        "bool",
        r"Use decoupled weight decay instead: :math:`p \leftarrow (1 - \gamma \lambda) p` before the step.",
    ),
    "bias_correction": (
        "bool",
        "If False, leave out the bias corrections: the moving averages are used as they are, which makes the "
        "first steps smaller or larger than later ones.",
    ),
    "cautious": (
        "bool",
        "Update only the elements whose step has the sign of the gradient, and multiply their steps by the "
        "ratio of the size of the array to the number of these elements (at most 1000).",
    ),
    "maximize": ("bool", "Maximize the objective instead of minimizing it."),
    "options": ("", "Options common to all optimizers, see `Optimizer`."),
}
FUNCTION = {
    "p": ("ndarray of float32 or float64", "Parameters, updated in place."),
    "g": ("ndarray like `p`", "Gradient, which is only read."),
    "exp_avg": (
        "ndarray like `p`",
        "Exponential moving average of the gradient, updated in place; zeros before the first step.",
    ),
    "exp_avg_sq": (
        "ndarray like `p`",
        "Exponential moving average of the squared gradient, updated in place; zeros before the first step.",
    ),
    "max_exp_avg_sq": (
        "ndarray like `p`, optional",
        "Maximum of `exp_avg_sq` so far, updated in place. If given, it replaces `exp_avg_sq` in the "
        "denominator (AMSGrad).",
    ),
    "z": (
        "ndarray like `p`",
        "Iterates of the base optimizer, updated in place; zeros before the first step.",
    ),
    "numbers": ("dict of str to float", "Scalar state, updated in place; empty before the first step."),
    "lr": ("float", "Learning rate."),
    "betas": ("pair of float", "Decay rates of the two averages, in [0, 1)."),
    "eps": ("float", "Added to the denominator."),
    "step": ("int", "Number of this step; the first is 1."),
    "weight_decay": ("float", "L2 penalty: ``weight_decay * p`` is added to the gradient."),
    "decoupled_weight_decay": (
        "bool", "Use decoupled weight decay instead: ``p *= 1 - lr * weight_decay`` before the step."
    ),
    "warmup_steps": (
        "float", "Number of steps in which the learning rate increases linearly; 0 for no warmup."
    ),
    "r": ("float", "Exponent of the step in the weight of an iterate in the average."),
    "weight_lr_power": ("float", "Exponent of the learning rate in the weight of an iterate in the average."),
    "maximize": ("bool", "Maximize the objective: use the negative gradient."),
    "bias_correction": ("bool", "If False, leave out the bias corrections of the averages."),
}
DECOUPLED = (
    "float or schedule",
    r"Decoupled weight decay :math:`\lambda`: :math:`p \leftarrow (1 - \gamma \lambda) p` before the step.",
)
CONVENTION = "Framework convention: it selects the formula and the defaults of arguments that are not given."
RAISES = """Raises
------
ValueError, TypeError
    If a hyperparameter is out of its range or a parameter cannot be updated in place."""

_ENTRY = re.compile(
    r"^(?P<names>[*\w]+(?:, [*\w]+)*)(?: : (?P<kind>.*))?\n(?P<text>(?: {4}.*\n?|\n(?= ))+)", re.M
)
_SECTION = re.compile(r"(?:^|(?<=\n))Parameters\n-{10}\n(.*?)(?=\n\n\S[^\n]*\n-{3,}\n|\Z)", re.S)


def document(doc: str, init: Callable[..., object], rule: type[Rule]) -> str:
    """Return the complete docstring of an optimizer."""
    choices = ", ".join(f'"{name}"' for name in rule.CONVENTIONS)
    shared = OPTIMIZER | {"convention": (f"{{{choices}}}", CONVENTION)}
    if rule.DECAY == "decoupled":
        shared["weight_decay"] = DECOUPLED
    return complete(doc, init, shared, RAISES)


def complete(
    doc: str, function: Callable[..., object], shared: Mapping[str, tuple[str, str]], sections: str
) -> str:
    """Return a numpydoc docstring with an entry for every parameter of a signature.

    Parameters
    ----------
    doc : str
        Summary, further text, and a section "Parameters" with the particular entries; an entry without a type
        continues the shared description of its name.
    function : callable
        The entries have the order of its parameters, without ``self``.
    shared : dict
        Type and description of the other parameters.
    sections : str
        Text that is inserted after the parameters.
    """
    doc = inspect.cleandoc(doc)
    section = _SECTION.search(doc)
    own: dict[str, str] = {}
    for entry in _ENTRY.finditer(section[1] + "\n" if section else ""):
        names = [name.strip("* ") for name in entry["names"].split(",")]
        kind, text = entry["kind"], entry["text"].rstrip()
        if kind is None and names[0] in shared:
            kind, start = shared[names[0]]
            text = _wrap(f"{start} {text}")
        head = entry["names"] + (f" : {kind}" if kind else "")
        own |= dict.fromkeys(names, f"{head}\n{text}")
    entries = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in own:
            entries.append(own[name])
        elif name in shared:
            kind, text = shared[name]
            head = "**" * (parameter.kind == parameter.VAR_KEYWORD) + name + (f" : {kind}" if kind else "")
            entries.append(f"{head}\n{_wrap(text)}")
    entries = list(dict.fromkeys(entries))
    parameters = "\n".join(["Parameters", "----------", *entries, "", sections])
    if section:
        return doc[: section.start()] + parameters + doc[section.end() :]
    summary, _, rest = doc.partition("\n\nReferences\n")
    return f"{summary}\n\n{parameters}" + (f"\n\nReferences\n{rest}" if rest else "")


def _wrap(text: str) -> str:
    lines = textwrap.wrap(" ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "    ")
