"""Tools that make a model faster by int8 quantization or 2:4 sparsity, and that measure the loss of accuracy."""
