"""Options common to all optimizers with arrays of fewer bits: equal to float32 and rounding, bit for bit."""

import numpy as np
import pytest
from formats import Twin
from rules import MATRIX_RULES, RULES

from fastopt._core.formats import BFLOAT16, FLOAT16, FLOAT32, encode

SHAPES = [(70, 61), (5,), ()]
OPTIONS = {
    "units": ({"centralize": True, "unit_clip": 0.1}, {}),
    "averages": ({"ema": 0.9, "lookahead": (2, 0.5)}, {"zero_grad": True}),
    "clipping": ({"independent_weight_decay": 0.01}, {"max_norm": 1.0, "clip_value": 0.1, "grad_scale": 0.5}),
    "accumulation": ({"accumulate": 2, "skip_nonfinite": True}, {"zero_grad": True}),
}
FORMATS = [(BFLOAT16, "float32"), (FLOAT16, "float32"), (FLOAT32, "int8"), (BFLOAT16, "bfloat16")]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", [*RULES, *MATRIX_RULES], ids=str)
def test_every_option_with_every_format(rule, options):
    options, step_options = OPTIONS[options]
    refused = rule.optimizer.RULE.REFUSED_OPTIONS
    options = {name: value for name, value in options.items() if name not in refused}
    for seed, (dtype, state_dtype) in enumerate(FORMATS):
        if state_dtype != "float32" and "state_dtype" in refused:
            continue
        rng = np.random.default_rng(seed)
        twin = Twin(
            lambda p, **more: rule.make(p, **options, **more),
            [rng.standard_normal(s) for s in SHAPES], dtype, seed=seed,
            **({} if state_dtype == "float32" else {"state_dtype": state_dtype}),
        )
        for step in range(4):
            grads = [encode(rng.standard_normal(s), BFLOAT16) for s in SHAPES]
            if step == 2:
                grads[1] = None
            if step == 3 and "skip_nonfinite" in options:
                grads[0][0, 0] = encode(np.inf, BFLOAT16)
            twin.step(grads, **step_options)
