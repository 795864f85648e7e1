"""Emulator: builds the CUDA files of ``vision/detect/tensorrt/cuda`` for the CPU, with one fiber per GPU thread."""
