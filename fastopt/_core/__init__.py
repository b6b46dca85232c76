"""The compiled part of an optimizer step and what binds it to NumPy. Imports NumPy and itself only."""
