"""Evaluation of a language model that judges events, on labeled events: `vision llm eval`."""
