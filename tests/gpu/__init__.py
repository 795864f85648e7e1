"""Tests that need a GPU. The emulator runs most of them without one: ``tests/unit/gpu/test_emulated_gpu.py``."""
