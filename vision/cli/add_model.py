"""The command `vision models add`, which copies an ONNX file, writes a model.yaml, and tries the model on a frame."""

from __future__ import annotations

import json as json_module
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from vision.config import CameraConfig, DetectConfig, ModelSpec, shipped_configs
from vision.config.fields import IDENTIFIER, IDENTIFIER_TITLE
from vision.config.load import SPEC_NAME
from vision.config.model_file import ONNX_SUFFIX, read_model_header
from vision.detect.open import open_detector
from vision.detect.proposal import Proposal, propose
from vision.errors import EXIT_OK, ConfigError, VisionError, from_os_error
from vision.types import Detections, Frame, FrameMeta
from vision.version import install_hint

_IMAGE: Final = "sample.png"  # file name of the image with the found objects
_WAIT_S: Final = 60.0  # timeout of the detector


@dataclass(frozen=True, slots=True)
class AddOptions:
    """Options of `vision models add`."""

    into: Path = Path("models")  # folder in which the folder of the model is created
    name: str | None = None  # name of the model; None means the name that the file suggests
    licence: str | None = None  # license of the weights; None means unknown
    sample: str | None = None  # a source of frames; None means the shipped video


@dataclass(frozen=True, slots=True)
class Added:
    """The result of adding a model: its folder, its proposed model.yaml, and the objects in the sample frame."""

    folder: Path  # folder of the model
    proposal: Proposal
    objects: tuple[str, ...]  # class and score of each object on the sample frame
    image: Path | None  # the sample frame with the objects; None if it could not be drawn
    no_image: str  # command that installs the missing package if `image` is None; otherwise empty


def add_model(file: Path, options: AddOptions, *, json: bool = False) -> int:
    """Add a model, and print which keys of model.yaml were determined and which were not. Return the exit code.

    Args:
        file: the ONNX file.
        options: options of the command.
        json: True to print JSON.

    Raises:
        VisionError: the file is not a detector that can be run, the name is invalid, the sample cannot be read, or the
            folder of the model cannot be written or already contains a model.yaml.
    """
    added = _add(file, options)
    if json:
        print(json_module.dumps(_document(added), indent=2))
    else:
        _print(added, Console())
    return EXIT_OK


def _add(file: Path, options: AddOptions) -> Added:
    proposal = propose(file, options.licence)
    name = options.name or proposal.spec.name
    if not IDENTIFIER.fullmatch(name):
        raise ConfigError(f"--name: expected {IDENTIFIER_TITLE}, got {name!r}", code="invalid-value")
    spec = proposal.spec.model_copy(update={"name": name, "file": f"{name}{ONNX_SUFFIX}"})
    proposal = Proposal(spec, proposal.found, proposal.missing)
    frame = _sample_frame(options.sample)
    folder = options.into / name
    _write(file, folder, proposal)
    objects = _detect(folder, spec, frame)
    labels = _labels(spec, objects)
    image, no_image = _draw(folder / _IMAGE, frame, objects, labels)
    return Added(folder, proposal, tuple(labels), image, no_image)


def _write(file: Path, folder: Path, proposal: Proposal) -> None:
    """Copy the ONNX file and its weight files to `folder`, and write model.yaml.

    Raises:
        ConfigError: the folder contains a model.yaml, or cannot be written.
        Unavailable: the folder cannot currently be written, for example because the disk is full.
    """
    if (folder / SPEC_NAME).exists():
        raise ConfigError(
            f"{folder} already contains a {SPEC_NAME}",
            hint="choose a different name with --name, or remove the folder",
            code="model-exists",
        )
    copies = {file: folder / proposal.spec.file}
    copies |= {file.parent / name: folder / name for name in read_model_header(file).weight_files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in copies.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
        (folder / SPEC_NAME).write_text(proposal.yaml(), encoding="utf-8")
    except OSError as error:
        raise from_os_error(f"cannot write {folder}", error, code="not-writable") from error


def _sample_frame(source: str | None) -> NDArray[np.uint8]:
    """Return the frame that `current_frame` reads from `source`, or from the shipped video if `source` is None.

    Raises:
        SourceError: the source cannot be opened, or delivers no intact frame.
    """
    from vision.cli.draw import current_frame

    video = shipped_configs()["demo"].with_name("vtest.mp4")
    return current_frame(CameraConfig(id="sample", source=source or str(video)))


def _detect(folder: Path, spec: ModelSpec, frame: NDArray[np.uint8]) -> Detections:
    """Return the objects in a frame, detected on the CPU."""
    height_px, width_px = frame.shape[:2]
    with closing(open_detector(folder, spec, DetectConfig(backend="onnxruntime"))) as detector:
        meta = FrameMeta("sample", 0, 0, 0, 0, width_px, height_px)
        detector.submit(0, [Frame.wrap(meta, frame, "bgr")])
        return detector.wait(0, _WAIT_S)[0]


def _labels(spec: ModelSpec, objects: Detections) -> list[str]:
    from vision.detect.classes import class_names

    names = class_names(spec)
    pairs = zip(objects.class_ids.tolist(), objects.scores.tolist(), strict=True)
    return [f"{names[class_id]} {score:.2f}" for class_id, score in pairs]


def _draw(path: Path, frame: NDArray[np.uint8], objects: Detections, labels: Sequence[str]) -> tuple[Path | None, str]:
    """Draw the objects on the frame, and write the image to `path`. Return the path and an empty string.

    If OpenCV is missing, return None and the command that installs OpenCV.

    Raises:
        VisionError: the file cannot be written.
    """
    try:
        import cv2

        from vision.drawing.overlay import Overlay, class_color
    except ImportError:
        return None, install_hint("opencv")
    overlay = Overlay(frame)
    overlay.objects(objects.boxes_xyxy, labels, [class_color(class_id) for class_id in objects.class_ids.tolist()])
    _, data = cv2.imencode(".png", frame)
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise VisionError(f"cannot write {path}: {error.strerror}") from error
    return path, ""


def _print(added: Added, console: Console) -> None:
    def show(text: str, style: str = "") -> None:
        console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)

    spec = added.proposal.spec
    show(f"{added.folder / SPEC_NAME}: written; in camera.yaml, write `model: {_as_path(added.folder)}`")
    show(f"{spec.input.width}x{spec.input.height} {spec.input.color}, head {spec.head.kind}")
    for key, origin in added.proposal.found.items():
        show(f"  {key}: {origin}")
    if added.proposal.missing:
        show("Check these keys in model.yaml, or fill them in:", "yellow")
    for key, reason in added.proposal.missing.items():
        show(f"  {key}: {reason}", "yellow")
    found = ", ".join(added.objects) or "no objects, which is possible if the frame shows none of the model's classes"
    show(f"on the sample frame: {found}")
    show(f"image: {added.image}" if added.image else f"no image, because OpenCV is missing: {added.no_image}")


def _as_path(folder: Path) -> str:
    """Return the path of a folder for camera.yaml: with a slash, so that the path is not read as a name."""
    text = str(folder)
    return text if "/" in text else f"./{text}"


def _document(added: Added) -> dict[str, object]:
    return {
        "schema": "vision.model-added/1",
        "folder": str(added.folder),
        "found": dict(added.proposal.found),
        "missing": dict(added.proposal.missing),
        "objects": list(added.objects),
        "image": None if added.image is None else str(added.image),
    }
