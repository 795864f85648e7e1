"""Stand-in for cuda-python, for tests of the GPU on machines without one. Put the parent folder first on the path."""
