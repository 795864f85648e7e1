"""Find TensorRT, and build, cache, and open its engines. This package can be imported without TensorRT or a GPU.

The code uses the API that TensorRT 10.3 to 11 and TensorRT-RTX share. It looks up everything else by name
(`hasattr`), because the numbers of flags and the names differ between versions.
"""
