"""TensorRT: finds the library, builds engines, caches and opens them. Imports without TensorRT and without a GPU.

Written against the API that TensorRT 10.3 to 11 and TensorRT-RTX share; everything else is looked up by name
(`hasattr`), because flags changed their numbers and names disappeared between versions.
"""
