"""TensorRT itself: find the library, build engines, keep them, open them. Imports without TensorRT and without a GPU.

Written against what TensorRT 10.3 to 11 and TensorRT-RTX have in common; everything else is probed by name
(`hasattr`), because flags changed their numbers and names disappeared between versions.
"""
