"""Stand-in for cuda-python, for GPU tests on machines without a GPU. Its parent folder must be first on the path."""
