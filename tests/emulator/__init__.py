"""Kernels on the CPU: the files under ``vision/detect/kernels`` built by a C++ compiler, a fiber per thread."""
