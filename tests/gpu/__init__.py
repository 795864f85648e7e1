"""What runs on a GPU. The emulator runs most of it where there is none: ``tests/unit/test_emulated_gpu.py``."""
