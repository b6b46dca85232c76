"""Options common to all optimizers, one file per option."""
