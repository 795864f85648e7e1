"""Emulated GPU: the CUDA files in ``vision/detect/tensorrt/cuda`` run on the CPU, with one fiber per GPU thread."""
