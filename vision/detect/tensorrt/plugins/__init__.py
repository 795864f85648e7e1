"""TensorRT plugins, whose kernels NVRTC compiles: layers of an ONNX file that TensorRT itself does not have."""
