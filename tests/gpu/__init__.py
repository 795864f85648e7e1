"""Tests that need a GPU. ``tests/unit/gpu/test_emulated_gpu.py`` runs most of these tests on the emulated GPU."""
