"""The calls that `vision` makes, on memory of the host: streams are threads, kernels run in the emulator."""
