"""Registration of the plugins of this package, so that networks and engines can contain them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision.engine.plugins import plugin_registry

if TYPE_CHECKING:
    from vision.config import ModelSpec


def register_plugins(spec: ModelSpec) -> None:
    """Register the plugins of this package in TensorRT's registry if the model needs plugins.

    Raises:
        DeviceMissing: TensorRT is missing.
        ModelError: the model needs plugins, but the installed library is TensorRT-RTX, which does not support them.
    """
    if not spec.plugins:
        return
    plugin_registry()
    from vision.detect.tensorrt.plugins.base import Creator
    from vision.detect.tensorrt.plugins.nms import VisionNms
    from vision.detect.tensorrt.plugins.quick import register_star_relu
    from vision.detect.tensorrt.plugins.star_relu import StarRelu
    from vision.engine.plugins import register

    for plugin in (StarRelu, VisionNms):
        register(Creator(plugin))
    register_star_relu()
