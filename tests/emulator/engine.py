"""Engine for the emulated GPU: ONNX Runtime computes the network on the emulated stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vision.engine.profiles import Profile, Range, choose_profile
from vision.engine.tensors import OutputSize, Tensor
from vision.errors import DeviceError

Compute = Callable[..., Mapping[str, NDArray[Any]]]
"""Function of the images, and of the constant inputs by name, that returns the outputs by name."""


def onnx_compute(path: str) -> Compute:
    """Return a function that computes the network in an ONNX file, and converts images to the type of its input."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # more threads would compete with those of the emulated streams
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (frames,) = (each for each in session.get_inputs() if len(each.shape) == 4)
    types = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

    def compute(images: NDArray[Any], **constants: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        images = images.astype(types.get(frames.type, np.float32))
        return dict(zip(names, session.run(names, {frames.name: images, **constants}), strict=True))

    return compute


class EmulatedContext:
    """Implementation of the part of `vision.engine.runtime.Context` that a detector uses."""

    def __init__(self, engine: EmulatedEngine, profile: int) -> None:
        self.profile = profile
        self._engine = engine
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._values: dict[str, NDArray[np.int64]] = {}
        self.scratch: tuple[int, int] | None = None
        engine.contexts += 1

    @property
    def raw(self) -> EmulatedContext:
        return self

    @property
    def memory_bytes(self) -> int:
        return 4096

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert shape in self._engine.profiles[self.profile].shapes[name]
        if name == self._engine.inputs[0].name:
            self._shape = shape

    def set_values(self, name: str, values: Sequence[int]) -> None:
        assert tuple(values) in self._engine.profiles[self.profile].values[name]
        self._values[name] = np.array(values, np.int64)

    def set_address(self, name: str, address: int) -> None:
        self._engine.tensor(name)
        self._addresses[name] = address

    def set_output_allocator(self, name: str, allocator: Any) -> None:
        self._allocators[name] = allocator

    def give_memory(self, address: int, size: int) -> None:
        assert size >= self.memory_bytes
        self.scratch = (address, size)

    def output_sizes(self) -> Mapping[str, OutputSize]:
        sizes = {}
        for output in self._engine.outputs:
            shape = self.get_tensor_shape(output.name)
            sizes[output.name] = OutputSize(None, None) if min(shape) < 0 else OutputSize(shape, output.bytes_of(shape))
        return sizes

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self._engine.tensor(name).shape
        return shape if name in self._engine.without_batch else (self._shape[0], *shape[1:])

    def enqueue(self, stream: int) -> None:
        from cuda.bindings import runtime

        assert self.scratch is not None
        if self._engine.waits and runtime.cudaStreamSynchronize(stream)[0]:
            raise DeviceError("the engine could not be started: the stream is captured")
        if not self._allocators:
            runtime.emulate(stream, self._run)
            return
        runtime.cudaStreamSynchronize(stream)
        self._run()

    def _run(self) -> None:
        engine = self._engine
        name = engine.inputs[0].name
        images = _array(self._addresses[name], self._shape, engine.inputs[0].dtype)
        if engine.inputs[0].interleaved:
            batch, channels, *sides = self._shape
            pixels = images.reshape(batch, *sides, channels)
            assert not pixels[..., 3:].any(), "the fourth channel is not zero"
            images = pixels[..., :3].transpose(0, 3, 1, 2)
        engine.runs += 1
        constants = {
            tensor.name: _array(self._addresses[tensor.name], (self._shape[0], *tensor.shape[1:]), tensor.dtype)
            for tensor in engine.inputs[1:]
            if not tensor.is_shape_io
        }
        assert self._values.keys() == engine.profiles[self.profile].values.keys()
        for output, computed in engine.compute(images.astype(np.float32), **constants, **self._values).items():
            value = np.ascontiguousarray(computed, engine.tensor(output).dtype)
            if output in self._allocators:
                allocator = self._allocators[output]
                self._addresses[output] = allocator.reallocate_output(output, 0, max(1, value.nbytes), 256)
                if not self._addresses[output]:
                    raise DeviceError(f"the engine could not be started: no memory for {output}")
                allocator.notify_shape(output, value.shape)
            ctypes.memmove(self._addresses[output], value.ctypes.data, value.nbytes)

    def __del__(self) -> None:
        self._engine.contexts -= 1


def _array(address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory: Any = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


class EmulatedEngine:
    """Implementation of the part of `vision.engine.runtime.Engine` that a detector uses."""

    def __init__(
        self,
        compute: Compute,
        input_hw: tuple[int, int],
        outputs: Mapping[str, tuple[int, ...]],
        *,
        batches: tuple[int, int] = (1, 64),
        dtypes: Mapping[str, str] | None = None,
        interleaved: bool = False,
        channels_last: bool = False,
        constants: Mapping[str, int] | None = None,
        without_batch: Sequence[str] = (),
        waits: bool = False,
        shape_values: Mapping[str, Range] | None = None,
    ) -> None:
        """Create an engine.

        Args:
            outputs: shapes without the batch axis. -1 marks a size that depends on the data.
            dtypes: types, by name, of the tensors that are not float32.
            interleaved: if True, the input is (B, H, W, 4), and the fourth channel is ignored.
            channels_last: if True, the input is (B, H, W, 3).
            constants: number of values of each additional input (B, values), by name.
            without_batch: names of the outputs whose first axis is not the batch axis.
            waits: if True, each run waits for the stream, so that a graph cannot capture the run.
            shape_values: ranges of the values of inputs that determine shapes, by name.
        """
        given = dtypes or {}
        self.label = "emulated"
        self.compute = compute
        self.waits = waits
        self.runs = 0
        self.contexts = 0
        self.closed = False
        self.saved = 0
        batch = -1 if batches[0] != batches[1] else batches[0]
        channels = 4 if interleaved else 3
        sides = (*input_hw, channels) if channels_last else (channels, *input_hw)
        frame = _tensor("images", "input", given, (batch, *sides))
        others = constants or {}
        of_shapes = shape_values or {}
        self.inputs = (
            replace(frame, interleaved=interleaved),
            *(_tensor(name, "input", given, (batch, values)) for name, values in others.items()),
            *(Tensor(name, "input", "int64", (len(values.min),), "host", True) for name, values in of_shapes.items()),
        )
        self.without_batch = without_batch
        self.outputs = tuple(
            _tensor(name, "output", given, shape if name in without_batch else (batch, *shape))
            for name, shape in outputs.items()
        )
        shapes = {"images": sides, **{name: (values,) for name, values in others.items()}}
        ranges = {
            name: Range((batches[0], *rest), (batches[1], *rest), (batches[1], *rest)) for name, rest in shapes.items()
        }
        self.profiles = (Profile(ranges, of_shapes),)

    @property
    def max_batch(self) -> int:
        return self.profiles[0].shapes["images"].max[0]

    weights_bytes = 1000

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in (*self.inputs, *self.outputs) if tensor.name == name)

    def choose(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return choose_profile(self.profiles, shapes)

    def create_context(self, profile: int, stream: int) -> EmulatedContext:
        return EmulatedContext(self, profile)

    def save_kernels(self) -> bool:
        self.saved += 1
        return True

    def close(self) -> None:
        assert self.contexts == 0, "contexts outlive the engine"
        self.closed = True

    def __enter__(self) -> EmulatedEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # else the traceback holds on to contexts
            self.close()
        self.closed = True


def _tensor(name: str, mode: Any, dtypes: Mapping[str, str], shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, mode, dtypes.get(name, "float32"), shape, "device", False)
