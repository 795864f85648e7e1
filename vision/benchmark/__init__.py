"""Measurements of models, deployments, and language models, and `vision chaos`."""
