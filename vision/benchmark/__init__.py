"""Measurements of models, deployments, and language models, and the implementation of `vision chaos`."""
