"""Tests that need a GPU. ``tests/unit/gpu/test_emulated_gpu.py`` runs most of them on the emulated GPU."""
