"""Measurements of models, deployments, and language models, and implementation of `vision chaos`."""
