"""`detect: {engine: ...}`: how a TensorRT engine is built, beyond precision and batch. Nobody has to write it."""

from __future__ import annotations

from pydantic import Field

from vision.config.section import ConfigSection


class EngineConfig(ConfigSection):
    """How a TensorRT engine is built."""

    optimization_level: int | None = Field(
        default=None, ge=0, le=5, description="0 quick to build .. 5 quick to run; TensorRT's own choice where absent"
    )
    workspace_mib: int | None = Field(
        default=None, ge=1, le=1_000_000, description="most scratch memory of one layer, MiB; all there is where absent"
    )
    dla_core: int | None = Field(
        default=None, ge=0, le=15, description="accelerator of a Jetson to run on; the GPU where absent or not there"
    )
