"""The measurements of fastopt: ``python -m benchmarks --help``."""
