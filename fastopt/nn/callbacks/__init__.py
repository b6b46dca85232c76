"""The callbacks of :mod:`fastopt.callbacks`, one module per family."""
