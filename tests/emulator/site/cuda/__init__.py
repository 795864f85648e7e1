"""Stands in for cuda-python where a test wants a GPU and there is none: put this folder's parent first on the path."""
