"""What runs on a GPU. The emulator runs most of it where there is none: ``tests/unit/gpu/test_emulated_gpu.py``."""
