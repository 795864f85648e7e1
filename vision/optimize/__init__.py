"""Tools that make a model faster, and measure what this costs in accuracy: int8 and 2:4 sparsity."""
