"""Tools that make a model faster by int8 quantization or 2:4 sparsity, and measure what this costs in accuracy."""
