"""TensorRT plugins for layers of ONNX files that TensorRT itself does not have. NVRTC compiles their kernels."""
