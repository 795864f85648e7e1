"""Modules that find TensorRT, and that build, store, load, and profile its engines.

The modules can be imported without TensorRT and without a GPU. Their code uses the API that TensorRT 10.3 to 11 and
TensorRT-RTX share. The code looks up everything else by name (`hasattr`), because names and numbers of flags differ
between versions.
"""
