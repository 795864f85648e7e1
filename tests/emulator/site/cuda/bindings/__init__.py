"""Stand-in for cuda-python with the calls that `vision` uses. Memory is host memory, streams are threads."""
