"""Stand-in for cuda-python with the calls that `vision` uses. Memory is host memory, and streams are threads."""
