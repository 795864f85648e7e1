"""Reading of a YAML file, or text, into a `Document`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vision.config.document import Document, render
from vision.config.wording import did_you_mean, one_of
from vision.config.yaml_nodes import compose
from vision.config.yaml_values import NodeBuilder
from vision.errors import ConfigError

MAX_BYTES: Final = 1 << 20


def read_document(path: Path, environ: Mapping[str, str] | None = None) -> Document:
    """Read and parse a file.

    Raises:
        ConfigError: it cannot be read, or `parse_document` refuses it.
    """
    return parse_document(_read(path), str(path), environ)


def parse_document(text: str, name: str, environ: Mapping[str, str] | None = None) -> Document:
    """Parse `text`. Messages use `name` for it. Without `environ`, ``${NAME}`` is plain text.

    Raises:
        ConfigError: not YAML, empty, no mapping at the top, or far too large. Faults that leave the rest readable
            (equal keys, unset variables, unknown tags) are in `Document.faults` instead.
    """
    raw = compose(text, name)
    builder = NodeBuilder(environ)
    root = builder.build(raw, ())
    if builder.oversized:
        raise ConfigError(render(name, builder.faults, text))
    if not isinstance(root.value, dict):
        text_found = "a list" if isinstance(root.value, tuple) else "a single value"
        raise ConfigError(f"{name}:{root.place.line}: expected keys and values (key: value), got {text_found}")
    return Document(name, root, tuple(builder.faults), text)


# --- the file ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES >> 10} KiB; expected a configuration in YAML")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} is not UTF-8 text", hint="save the file in the encoding UTF-8"
        ) from None


def _cannot_read(path: Path, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        siblings = _yaml_files(path.parent)
        return ConfigError(
            f"{path}: no such file",
            hint=did_you_mean(path.name, siblings) or "vision run demo runs a shipped configuration",
        )
    if isinstance(error, IsADirectoryError):
        inside = _yaml_files(path)
        return ConfigError(
            f"{path}: a folder; expected a YAML file",
            hint=f"name the file itself: {one_of([str(path / name) for name in inside[:8]])}"
            if inside
            else "name the file itself, such as camera.yaml",
        )
    if isinstance(error, PermissionError):
        return ConfigError(
            f"{path}: permission denied", hint="change its owner or mode; a service may run as another user"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
    return ConfigError(f"{path}: cannot be read: {reason}", hint="expected a YAML file, such as camera.yaml")


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return []
