# mypy: allow-subclassing-any
"""Base class of plugins (`IPluginV3`) whose kernels NVRTC compiles, and the creator that TensorRT calls to make them.

TensorRT calls a plugin in three phases:

1. While TensorRT builds an engine, it asks the plugin for types, shapes, and formats.
2. When TensorRT creates a context, or the shapes of a context change, it calls `on_shape_change`, which compiles
   kernels and allocates memory.
3. In each run, TensorRT calls `enqueue`, which only queues work, so that a CUDA graph can capture the run.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from vision.detect.tensorrt.kernels import KERNELS
from vision.detect.tensorrt.plugins.fields import FieldCollection, read_fields
from vision.engine.library import trt
from vision.errors import DeviceError

if TYPE_CHECKING:
    from typing_extensions import Self

    from vision.gpu.cuda import BorrowedStream
    from vision.gpu.nvrtc import Module

Step: TypeAlias = "Callable[[Sequence[int], Sequence[int], int, BorrowedStream], None]"
"""Function that queues the work of a run.

The arguments are the device addresses of the inputs, of the outputs, and of the workspace, and the stream.
"""

VERSION = "1"
_never_freed: list[object] = []  # plugins of TensorRT 10.3, which crashes if a plugin written in Python is freed
_DTYPES: Mapping[str, str] = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32"}


def dtype_of(desc: Any) -> str:
    """Return the NumPy name of the type of a tensor."""
    return _DTYPES[desc.type.name]


class KernelPlugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """Base class of plugins. An instance belongs to a network, an engine, or a context, and is not thread-safe."""

    name: ClassVar[str]  # type of the node in the ONNX file
    settings_type: ClassVar[type[Any]]
    outputs: ClassVar[int] = 1

    def __init__(self, settings: Any) -> None:
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuild.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        self.plugin_name = self.name
        self.plugin_version = VERSION
        self.plugin_namespace = ""
        self.num_outputs = self.outputs
        self.settings = settings
        self._fields = FieldCollection(settings)
        self._shapes: object = None
        self._step: Step | None = None
        self._resources = contextlib.ExitStack()
        weakref.finalize(self, self._resources.close).atexit = False
        if not hasattr(trt, "IPluginV3QuickCore"):
            _never_freed.append(self)

    @abstractmethod
    def prepare(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Step:
        """Compile the kernels and allocate the memory for tensors with these descriptions.

        Return the function that queues the work of a run.
        """

    # ----------------------------------------------------------------------------------- calls of TensorRT: always

    def get_capability_interface(self, _kind: Any) -> Self:
        return self

    def clone(self) -> Self:
        """Return a plugin with the same settings, but without memory on the GPU."""
        return type(self)(self.settings)

    # ------------------------------------------------------------------------------ calls of TensorRT: during a build

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Do nothing: a plugin depends only on the shapes that `on_shape_change` receives."""

    # ------------------------------------------------------------------------------- calls of TensorRT: during a run

    def get_fields_to_serialize(self) -> Any:
        return self._fields.serialized

    def attach_to_context(self, _context: Any) -> Self:
        return self.clone()

    def set_tactic(self, tactic: int) -> None:
        """Do nothing: a plugin has one implementation."""

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Prepare runs for tensors with these descriptions.

        If the descriptions did not change, keep kernels and memory, because a captured graph may use them.
        """
        shapes = tuple((tuple(desc.dims), desc.type, desc.format) for desc in (*inputs, *outputs))
        if shapes == self._shapes:
            return
        self._shapes = self._step = None
        self._resources.close()  # waits for earlier work that uses the memory
        self._step = self.prepare(inputs, outputs)
        self._shapes = shapes

    def enqueue(
        self,
        _input_desc: Sequence[Any],
        _output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Queue the work of a run on `stream`, without waiting or allocating. Raise `DeviceError` if queueing fails."""
        from vision.gpu.cuda import BorrowedStream

        if self._step is None:
            raise DeviceError(f"{self.name} was started before its shapes were set")
        self._step(inputs, outputs, workspace, BorrowedStream(stream))

    # --------------------------------------------------------------------------------------------------- for prepare

    def load(self, file: str, definitions: Mapping[str, int | float | str]) -> Module:
        """Load the kernels in a file of ``cuda/``. If they are not in the cache, compile them with `definitions`."""
        from vision.detect.tensorrt.loaded_engine import kernel_cache
        from vision.gpu.cuda import open_device
        from vision.gpu.nvrtc import Module, Source

        source = Source.read(KERNELS / file, definitions)
        return self._resources.enter_context(Module.build(source, open_device().arch, kernel_cache()))

    def keep(self, resource: Any) -> Any:
        """Keep `resource` open until the shapes change or the plugin is freed. Return `resource`."""
        return self._resources.enter_context(resource)


class Creator(trt.IPluginCreatorV3One):
    """Creator of the plugins of one class. TensorRT calls it to parse a network and to load an engine."""

    def __init__(self, plugin: type[KernelPlugin]) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self._plugin = plugin
        self._fields = FieldCollection(plugin.settings_type)
        self.name = plugin.name
        self.plugin_version = VERSION
        self.plugin_namespace = ""
        self.field_names = self._fields.raw

    def create_plugin(self, _name: str, fields: Any, _phase: Any) -> KernelPlugin:
        """Create a plugin from the attributes of a node, or from the fields in an engine.

        Raises:
            ModelError: a field is unknown, missing, or invalid.
        """
        return self._plugin(read_fields(self._plugin.settings_type, fields, self._plugin.name))
