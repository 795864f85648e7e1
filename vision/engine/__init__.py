"""Find TensorRT, and build, cache, and open its engines. The import needs neither TensorRT nor a GPU.

The code uses the API that TensorRT 10.3 to 11 and TensorRT-RTX share. Everything else is looked up by name
(`hasattr`), because flags changed their numbers and names disappeared between versions.
"""
