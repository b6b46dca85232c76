"""Schedules: learning rates and other hyperparameters as functions of the step.

A schedule is a callable. Its argument is the number of finished steps, 0 before the first one; it returns
the value for the next step::

    opt = fastopt.SGD(params, lr=schedules.Cosine(0.1, steps=10_000), momentum=0.9)

The optimizer calls it with ``opt.steps`` before every step, so there is no ``scheduler.step()``. To decay
per epoch, multiply by the number of minibatches per epoch. Any function of the step can replace a schedule.
The classes below check their arguments at construction, have a readable ``repr``, compare equal if their
fields are equal, and can be pickled. All except `ReduceOnPlateau` are immutable and depend on the step
alone, so a run that resumes at step ``n`` continues exactly.

The first field of most schedules is called ``lr``, but the value can also be a momentum or a weight decay.
If ``torch.optim.lr_scheduler`` has the same schedule, the values agree; one step here corresponds to one of
its "epochs".
"""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.schedules.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
