"""StarReLU as a plugin that TensorRT compiles into the engine (*ahead of time*), so that runs need no Python.

TensorRT has had this form of plugins (`tensorrt.plugin`) since 10.9. Such a plugin launches one kernel, and its tensors
have no padding. In an ONNX file, its node is `StarRelu` with the attribute ``plugin_namespace: vision``.
"""

# The annotations of the functions that TensorRT inspects must be types, so they cannot be postponed.
import functools
import warnings
from typing import Final

from vision.detect.tensorrt.kernels import KERNELS
from vision.detect.tensorrt.plugins.star_relu import Padding, StarReluSettings, definitions_of
from vision.engine.library import trt

PLUGIN: Final = "vision::StarRelu"
_THREADS: Final = 256
_DTYPES: Final = {"FLOAT": "float32", "HALF": "float16"}


def kernel_of(dtype: str, settings: StarReluSettings, arch: str) -> bytes:
    """Compile the kernel of StarReLU to PTX for an architecture such as ``sm_87``. `dtype` is float32 or float16.

    Raises:
        DeviceMissing: NVRTC is not installed.
        DeviceError: the kernel does not compile.
    """
    from vision.gpu.nvrtc import Source, compile_ptx

    definitions = definitions_of(settings, dtype, Padding.of((), "LINEAR"))
    return compile_ptx(Source.read(KERNELS / "star_relu.cu", definitions), arch)


@functools.cache
def register_star_relu() -> None:
    """Register the plugin for StarReLU in TensorRT. Do nothing if the installed version lacks `tensorrt.plugin`."""
    if not hasattr(trt, "QuickPluginCreationRequest"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorRT calls these plugins experimental
        import tensorrt.plugin as trtp

    def describe(inp: trtp.TensorDesc, scale: float, bias: float) -> trtp.TensorDesc:  # noqa: ARG001
        return inp.like()

    def formats(
        inp: trtp.TensorDesc,  # noqa: ARG001
        scale: float,  # noqa: ARG001
        bias: float,  # noqa: ARG001
        outputs: tuple[trtp.TensorDesc],  # noqa: ARG001
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP32, FP32", "LINEAR"), trtp.AutoTuneCombination("FP16, FP16", "LINEAR")]

    def implement(
        inp: trtp.TensorDesc,
        scale: float,
        bias: float,
        outputs: tuple[trtp.TensorDesc],  # noqa: ARG001
        tactic: int,  # noqa: ARG001
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
        from vision.gpu.cuda import open_device

        count = inp.shape_expr.numel()
        launch = trtp.KernelLaunchParams()
        launch.grid_x = trtp.cdiv(count, _THREADS)
        launch.block_x = _THREADS
        arguments = trtp.SymIntExprs(1)
        arguments[0] = trtp.SymInt32(count)
        settings = StarReluSettings(scale, bias)
        return "star_relu", kernel_of(_DTYPES[inp.dtype.name], settings, open_device().arch), launch, arguments

    trtp.register(PLUGIN)(describe)
    trtp.autotune(PLUGIN)(formats)
    trtp.aot_impl(PLUGIN)(implement)
