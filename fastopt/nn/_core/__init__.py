"""The compiled part of the trainer: layer kernels, matrix products, and a pass over a batch as one call."""
