"""Labeled events: the ground truth for a language model that separates true events from false alarms.

The file has one JSON object per line: an event message with the additional field `true`. An error in a label silently
distorts the result, so `read_labels` checks the whole file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from vision.config.paths import is_file
from vision.config.user_files import TooLarge, read_input
from vision.errors import ConfigError, Fault, from_os_error

_HINT: Final = "docs/language-models.md describes labeled events"
_MOST_FAULTS: Final = 50  # maximum number of faults in an error message
_MOST_BYTES: Final = 256 << 20  # maximum size of a file of labels


class _Label(msgspec.Struct, kw_only=True):
    """One line of a file of labeled events. Fields that this class does not define are ignored."""

    is_true: bool = msgspec.field(name="true")
    camera: str
    kind: str
    name: str
    at: str = ""
    data: dict[str, Any] = msgspec.field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None
    snapshot: str | None = None
    frames: list[str] | None = None


@dataclass(frozen=True, slots=True)
class LabeledEvent:
    """Event with its images and its label (true event or false alarm)."""

    line: int  # line number in the file, from 1
    camera: str
    kind: str
    name: str
    at: str
    data: dict[str, Any]
    box: tuple[float, float, float, float] | None  # box of the object in the first image, in pixels of the frame
    images: tuple[Path, ...]
    is_true: bool


def read_labels(path: Path) -> list[LabeledEvent]:
    """Read a file of labeled events. Paths of images are relative to the file.

    Raises:
        ConfigError: the file cannot be read, is too large, lacks true events or false alarms, or has invalid lines.
            `faults` of the error lists every invalid line.
        Unavailable: the file cannot currently be read.
    """
    try:
        lines = read_input(path, max_bytes=_MOST_BYTES).splitlines()
    except TooLarge as error:
        text = f"{path}: expected at most {_MOST_BYTES >> 20} MiB of labels; images are separate files"
        raise ConfigError(text, hint=_HINT, code="labels-too-large") from error
    except OSError as error:
        raise from_os_error(f"cannot read {path}", error, code="labels-not-readable") from error
    events: list[LabeledEvent] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            events.append(_parse(line, number, path.parent))
        except ValueError as error:
            faults.append(Fault(number, 1, "", "label", str(error)))
    if faults:
        shown = "\n".join(f"{path}:{fault.line}: {fault.message}" for fault in faults[:_MOST_FAULTS])
        raise ConfigError(shown, hint=_HINT, code="labels", faults=tuple(faults))
    numbers = sum(event.is_true for event in events), sum(not event.is_true for event in events)
    if 0 in numbers:
        found = f"true events: {numbers[0]}, false alarms: {numbers[1]}"
        text = f"{path}: expected true events and false alarms, got {found}"
        raise ConfigError(text, hint=_HINT, code="labels-one-sided")
    return events


def _parse(line: bytes, number: int, folder: Path) -> LabeledEvent:
    """Return the event on a line. Raise `ValueError` if the line is invalid, or if an image does not exist."""
    try:
        label = msgspec.json.decode(line, type=_Label)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not a labeled event: {error}") from error
    images = tuple(folder / name for name in _image_names(label))
    for image in images:
        if not is_file(image):
            raise ValueError(f"the image {image} does not exist")
    return LabeledEvent(
        number, label.camera, label.kind, label.name, label.at, label.data, label.box, images, label.is_true
    )


def _image_names(label: _Label) -> list[str]:
    """Return the file names of the images of an event. Raise `ValueError` if the label names no image."""
    names = label.frames if label.frames is not None else [label.snapshot] if label.snapshot is not None else []
    if not names:
        raise ValueError("expected `frames`, a list of image files, or `snapshot`")
    return names
