"""Evaluation, on labeled events, of a language model that verifies events: `vision llm eval`."""
