"""Evaluation of language models that judge events, on labeled events."""
