"""`detect: {engine: ...}`: build options of a TensorRT engine beyond precision and batch. Optional."""

from __future__ import annotations

from pydantic import Field

from vision.config.section import ConfigSection


class EngineConfig(ConfigSection):
    """Build options of a TensorRT engine."""

    optimization_level: int | None = Field(
        default=None, ge=0, le=5, description="0: builds fast, to 5: runs fast; TensorRT's default if absent"
    )
    workspace_mib: int | None = Field(
        default=None, ge=1, le=1_000_000, description="maximum scratch memory of a layer, MiB; no limit if absent"
    )
    dla_core: int | None = Field(
        default=None,
        ge=0,
        le=15,
        description="deep-learning accelerator (DLA) of a Jetson; the GPU if absent or not available",
    )
