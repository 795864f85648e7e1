"""Simulated scenes with exact truth: what a camera sees, what a detector reports, and what truly happened."""
