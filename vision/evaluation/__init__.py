"""Accuracy of a pipeline on a labelled video: `vision eval` (docs/evaluation.md)."""
