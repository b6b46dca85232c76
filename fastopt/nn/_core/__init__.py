"""The compiled part of the network: layers, and a pass over a batch as one call."""
