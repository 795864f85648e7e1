"""The content of the editor of lines, zones, and masks, and the configuration file that contains it."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from vision.config import AppConfig, check_classes, load_config_text, shipped_configs
from vision.config.document import Document
from vision.config.yaml_edit import as_yaml, with_value
from vision.config.yaml_reader import parse_document, read_document
from vision.errors import ConfigError, Fault
from vision.state.private_files import write_whole

_DRAWN: Final = ("units", "lines", "zones", "ground")


class Masks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The areas of a camera that are hidden in all images. The fields are keys of `privacy` in camera.yaml."""

    units: str
    masks: list[Any]


class Draft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shapes that a person has drawn for one camera.

    The fields are keys of `analytics` and `privacy` in camera.yaml.
    """

    units: str
    lines: list[dict[str, Any]]
    zones: list[dict[str, Any]]
    ground: dict[str, Any] | None
    privacy: Masks


class DraftToApply(Draft, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A draft, with the versions of the file and of the running program on which the draft is based."""

    revision: str  # of the file: see `revision`
    version: str  # of the section in the running program


decode_draft: Final = msgspec.json.Decoder(Draft).decode
decode_draft_to_apply: Final = msgspec.json.Decoder(DraftToApply).decode


def with_drawn(section: Mapping[str, Any] | None, draft: Draft) -> dict[str, Any]:
    """Return a section of `analytics` with the units, lines, zones, and ground points of a draft. Omit empty keys."""
    drawn = {key: getattr(draft, key) for key in _DRAWN}
    is_empty = not (draft.lines or draft.zones or draft.ground)
    content = {**drawn, **(section or {})} | drawn
    return {
        key: value
        for key, value in content.items()
        if key not in _DRAWN or (value and not (key == "units" and is_empty and "units" not in (section or {})))
    }


def drawn_of(section: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the units, lines, zones, and ground points of a section of `analytics` for the editor.

    The default unit of coordinates is pixels. If the section is missing or empty, the unit is fractions of the frame.
    """
    content = section or {}
    return {
        "units": content.get("units", "pixels" if content else "fraction"),
        "lines": content.get("lines") or [],
        "zones": content.get("zones") or [],
        "ground": content.get("ground"),
    }


def with_masks(section: Mapping[str, Any] | None, draft: Draft) -> dict[str, Any] | None:
    """Return a section of `privacy` with the masks of a draft. Without any masks, return `section` unchanged."""
    if not draft.privacy.masks and not (section or {}).get("masks"):
        return None if section is None else dict(section)
    return {**(section or {}), "units": draft.privacy.units, "masks": draft.privacy.masks}


def masks_of(section: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the units and masks of a section of `privacy` for the editor.

    The default unit of coordinates is pixels. If the section is missing or empty, the unit is fractions of the frame.
    """
    content = section or {}
    return {"units": content.get("units", "pixels" if content else "fraction"), "masks": content.get("masks") or []}


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of validating a draft as a part of the whole configuration: the text of the file, and the faults."""

    text: str  # of the file with the draft
    config: AppConfig | None  # None if there are faults
    faults: tuple[Fault, ...]


class DraftFile:
    """The configuration file of the running program."""

    def __init__(self, path: Path, class_names: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
        self.path = path
        self._class_names = class_names
        self.environ = environ

    def read(self) -> Document:
        """Return the content of the file, in which ``${NAME}`` is not replaced.

        Raises:
            ConfigError: the file cannot be read, or is not a valid YAML mapping.
        """
        return read_document(self.path)

    def unsaved(self, document: Document, camera: str) -> str:
        """Return a code that says why changes of a camera's lines, zones, and masks cannot be saved in the file.

        Return "" if they can be saved.
        """
        if self.path in shipped_configs().values():
            return "shipped"
        if not has_camera(document, camera):
            return "camera-not-in-file"
        target = self.path.resolve()
        return "" if os.access(target, os.W_OK) and os.access(target.parent, os.W_OK) else "not-writable"

    def check(self, document: Document, camera: str, draft: Draft) -> Checked:
        """Validate the whole configuration, in which a draft replaces the lines, zones, and masks of a camera.

        Raises:
            ConfigError: the sections cannot be changed in the text of the file.
        """
        text = document.text
        if not has_camera(document, camera):  # `vision cameras` has added it to the running program only
            cameras = _thawed(document.plain().get("cameras") or ())
            text = with_value(text, ("cameras",), [*cameras, {"id": camera, "source": "synthetic:"}])
        text = with_value(text, ("analytics", camera), with_drawn(section(document, "analytics", camera), draft))
        earlier = section(document, "privacy", camera)
        if (privacy := with_masks(earlier, draft)) != earlier:
            text = with_value(text, ("privacy", camera), privacy)
        try:
            config = load_config_text(text, self.environ, name=str(self.path))
            check_classes(config, self._class_names, parse_document(text, str(self.path)))
        except ConfigError as error:
            if has_camera(document, camera):
                return Checked(text, None, error.faults)
            return Checked(text, None, tuple(replace(fault, line=0, column=0) for fault in error.faults))
        return Checked(text, config, ())

    def write(self, text: str) -> None:
        """Replace the content of the file. Keep the file's mode and, if possible, its owner. Follow symbolic links.

        Raises:
            OSError: the file no longer exists, or cannot be read.
            Unwritable: the file cannot be written.
        """
        target = self.path.resolve()
        mark = codecs.BOM_UTF8 if target.read_bytes().startswith(codecs.BOM_UTF8) else b""
        write_whole(target, mark + text.encode(), like=target.stat())


def revision(document: Document) -> str:
    """Return a string that identifies the content of a file."""
    return hashlib.sha256(document.text.encode()).hexdigest()


def section(document: Document, name: str, camera: str) -> dict[str, Any] | None:
    """Return a camera's section in `analytics` or `privacy`, as lists and dicts.

    Return None if the section is missing.
    """
    node = document.node((name, camera))
    content = None if node is None else node.plain()
    return _thawed(content) if isinstance(content, dict) else None


def has_camera(document: Document, camera: str) -> bool:
    """Return True if the list of cameras in a file has a camera with this id."""
    node = document.root.child("cameras")
    entries = node.value if node is not None and isinstance(node.value, tuple) else ()
    return any((id_ := entry.child("id")) is not None and id_.value == camera for entry in entries)


def yaml_of(document: Document, camera: str, draft: Draft) -> str:
    """Return the sections of a camera with a draft, as text for camera.yaml."""
    content: dict[str, Any] = {"analytics": {camera: with_drawn(section(document, "analytics", camera), draft)}}
    if draft.privacy.masks:
        content["privacy"] = {camera: with_masks(section(document, "privacy", camera), draft)}
    return as_yaml(content)


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _thawed(each) for key, each in value.items()}
    return [*map(_thawed, value)] if isinstance(value, tuple) else value
