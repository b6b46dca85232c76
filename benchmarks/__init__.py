"""Measurements: `step.py` beside other libraries, `bench_steps.py` along the history (asv)."""
