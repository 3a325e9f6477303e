"""Experiments with `fsg`: planned, trained on a cluster or here, tracked, searched and reported. See docs/design.md."""
