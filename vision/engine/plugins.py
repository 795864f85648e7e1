"""Access to TensorRT's plugin registry, and loading of the plugin libraries that a model.yaml lists.

A plugin library is code that runs with the rights of this process. Therefore, model.yaml must contain the SHA-256 of
each library, and the bytes that were verified are the bytes that are loaded. Other users must not be able to change
model.yaml.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vision.config.user_files import read_input
from vision.engine.library import collect_log, find_library, trt
from vision.errors import ModelError
from vision.state.private_files import require_private_file, require_private_folder, sha256_of

if TYPE_CHECKING:
    from vision.config import AnySpec, PluginSpec

_SPEC_NAME: Final = "model.yaml"
_NEEDED: Final = re.compile(rb"\0libnvinfer(?:_plugin)?\.so\.(\d+)")
"""Pattern of the name of TensorRT's library, with the major version, in a table of an ELF file."""


def plugin_registry() -> Any:
    """Return the plugin registry of TensorRT.

    Raises:
        ModelError: the installed library is TensorRT-RTX, whose networks cannot contain plugins.
    """
    library = find_library()
    if library.flavour == "tensorrt-rtx":
        raise ModelError(
            f"{library} does not support plugins", hint="install TensorRT instead", code="plugins-unsupported"
        )
    return trt.get_plugin_registry()


def register(creator: Any) -> None:
    """Register a creator of plugins in TensorRT's plugin registry, and keep the creator alive.

    Do nothing if a creator with the same namespace, name, and version is already registered. Raise `ModelError` as
    `plugin_registry` does.
    """
    registry = plugin_registry()
    if registry.get_creator(creator.name, creator.plugin_version, creator.plugin_namespace) is None:
        registry.register_creator(creator, creator.plugin_namespace)
        _registered.append(creator)


_registered: list[object] = []


def check_plugins(folder: Path, spec: AnySpec) -> None:
    """Check the plugin libraries of a model in `folder`. This check needs neither TensorRT nor a GPU.

    Raises:
        ModelError: a plugin library is missing, unreadable, or damaged.
        Untrusted: other users can write to model.yaml, to its folder, or to a folder above it.
    """
    for plugin in spec.plugin_libraries:
        _verified(folder, spec, plugin)


def load_plugins(folder: Path, spec: AnySpec) -> None:
    """Check the plugin libraries of a model, and load those that are not loaded yet. `folder` contains the libraries.

    Raises:
        DeviceMissing: TensorRT is missing.
        ModelError: a plugin library is missing, unreadable, or damaged, is for a different TensorRT version or
            processor, or adds no plugins; or the installed TensorRT does not support plugin libraries.
        Untrusted: other users can write to model.yaml, to its folder, or to a folder above it.
    """
    for plugin in spec.plugin_libraries:
        contents = _verified(folder, spec, plugin)
        if plugin.sha256 not in _loaded:
            _load(contents, spec.name, plugin)
            _loaded.add(plugin.sha256)


_loaded: Final[set[str]] = set()
"""SHA-256 of each plugin library that this process has loaded. Several models can use the same library."""


def _verified(folder: Path, spec: AnySpec, plugin: PluginSpec) -> bytes:
    """Read the plugin library `plugin` in `folder`, check its SHA-256, and return its contents. See `check_plugins`."""
    path = folder / plugin.file
    try:
        contents = read_input(path)
    except OSError as error:
        raise ModelError(
            f"{spec.name}: cannot read the plugin library {path}: {error.strerror}",
            hint="`plugins` in model.yaml lists files in the same folder",
            code="plugin-missing",
        ) from error
    sha256 = sha256_of(contents)
    if sha256 != plugin.sha256:
        raise ModelError(
            f"{spec.name}: expected {path} to have the sha256 {plugin.sha256}, got {sha256}",
            hint="the library was replaced or damaged: fetch it again, or change `sha256` if you built it again",
            code="plugin-sha256",
        )
    require_private_folder(folder, content="plugin libraries", shared=True)
    require_private_file(folder / _SPEC_NAME, shared=True)
    return contents


def _load(contents: bytes, model: str, plugin: PluginSpec) -> None:
    registry, library = plugin_registry(), find_library()
    label = f"{model}: the plugin library {plugin.file}"
    major = library.version.split(".", maxsplit=1)[0]
    needed = {version.decode() for version in _NEEDED.findall(contents)}
    if needed - {major}:
        raise ModelError(
            f"{label} is for TensorRT {', '.join(sorted(needed))}, but TensorRT {library.version} is installed",
            hint="build the library on this machine",
            code="plugin-other-tensorrt",
        )
    before = _names(registry)
    with collect_log() as log:
        try:
            # A file in memory, because the file in the folder can change after the check of its SHA-256. The descriptor
            # stays open, so that each library has a different path. The loader compares only paths, and would not load
            # a later library with the same path.
            descriptor = os.memfd_create(plugin.file)
            os.write(descriptor, contents)
            path = f"/proc/self/fd/{descriptor}"
            found = ctypes.CDLL(path)
        except OSError as error:
            raise ModelError(
                f"{label} cannot be loaded: {error}", hint="build the library on this machine", code="plugin-not-loaded"
            ) from error
        if hasattr(found, "getCreators") or hasattr(found, "getPluginCreators"):
            registry.load_library(path)
    if _names(registry) == before:
        reason = "; ".join(log.errors()) or "it exports no `getCreators`, and registers nothing when it is loaded"
        raise ModelError(
            f"{label} adds no plugins to {library}: {reason}",
            hint="a plugin whose name is already registered cannot be added a second time",
            code="plugin-not-registered",
        )


def _names(registry: Any) -> set[tuple[str, str, str]]:
    """Return the namespace, name, and version of each plugin in the registry."""
    return {(each.plugin_namespace, each.name, each.plugin_version) for each in registry.all_creators}
