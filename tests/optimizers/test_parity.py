"""Every rule walks the path of every library that has it: the one table, 200 steps, float64, within 1e-10.

Where a step depends on a sign alone, no rounding error is amplified as long as no sign is decided by it: with
gradients drawn from a continuous distribution, of which the parameters are a part, some number comes within
1e-14 of a flip once in about 1e10 such runs. So these rules get the same gradients as all others.
"""

import numpy as np
import pytest
from libraries import KERAS, LIBRARIES, OPTAX, SHAPES, SKLEARN, assert_same, gradients, make_optimizer, start
from rules import RULES

import fastopt

# Of keras, which has not yet met NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 200
CELLS = [(name, rule) for name, library in LIBRARIES.items() for rule in library.rows]


def walk(theirs, opt, rule, params, noise):
    """Both take all steps, each with the gradients at its own place."""
    for step in noise:
        opt.step(gradients(params, step, rule))
        theirs.step(gradients(theirs.values(), step, rule, theirs))


@pytest.mark.parametrize(("library", "rule"), CELLS, ids=str)
def test_parity(library, rule, request):
    kind = LIBRARIES[library]
    module = request.getfixturevalue(library)
    params, noise = start(SHAPES, STEPS)
    theirs, opt = kind(module, rule, params), make_optimizer(rule, kind.convention, params)
    walk(theirs, opt, rule, params, noise)
    assert_same(params, theirs.values())


def test_every_counterpart_is_of_a_row():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert (KERAS.keys() | OPTAX.keys() | SKLEARN.keys()) <= set(names)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_dialect_is_walked(library):
    """Every optimizer with a library's convention has a row there."""
    kind = LIBRARIES[library]
    paper_only = (fastopt.FTRL, fastopt.Lion, fastopt.LAMB) if library == "torch" else ()
    speakers = {
        cls
        for name in fastopt.optimizers.__all__
        if len(own := (cls := getattr(fastopt, name)).RULE.CONVENTIONS) > 1 and kind.convention in own
    }
    assert speakers - set(paper_only) <= {rule.optimizer for rule in kind.rows}


def test_the_average_of_a_schedule_free_run_is_theirs(optax):
    from optax import contrib

    rule = next(rule for rule in RULES if rule.name == "sgd, schedule-free")
    params, noise = start(SHAPES, STEPS)
    theirs, opt = LIBRARIES["optax"](optax, rule, params), rule.make(params)
    walk(theirs, opt, rule, params, noise)
    averages = contrib.schedule_free_eval_params(theirs.state, theirs.params)
    with opt.averaged():
        assert_same(params, [np.asarray(average) for average in averages])
    assert_same(params, theirs.values())
