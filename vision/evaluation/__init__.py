"""Measurement of the accuracy of a pipeline on a labeled video: `vision eval` (docs/evaluation.md)."""
