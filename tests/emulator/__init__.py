"""Kernels on the CPU: the files under ``vision/detect/tensorrt/cuda`` built by a C++ compiler, a fiber per thread."""
