"""Checks of a model's ONNX file before any library reads it, and the names of the formats that are not ONNX."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vision.config.model_spec import ClassifierSpec, ModelSpec
from vision.config.onnx_header import NotOnnx, OnnxHeader, Truncated, read_header
from vision.config.paths import exists, is_dir, is_file
from vision.errors import ModelError, from_os_error, is_passing

ONNX_SUFFIX: Final = ".onnx"

_log = logging.getLogger(__name__)

_START_BYTES: Final = 512
_TO_ONNX: Final = "export the model to ONNX"
_EXPORT: Final = f"vision runs ONNX files, so {_TO_ONNX}"

_ENGINE: Final = (
    "an engine works on one GPU and one TensorRT version only; use the ONNX file that it was built from, and "
    "`vision run` or `vision build` builds the engine"
)

_FORMATS: Final[Mapping[str, tuple[str, str]]] = {
    ".pt": ("a PyTorch file", f"{_EXPORT}, for example with `yolo export model=NAME format=onnx`"),
    ".engine": ("a TensorRT engine", _ENGINE),
    ".ort": ("a model in the format ORT of ONNX Runtime", "use the ONNX file that it was converted from"),
    ".zip": ("a zip file, such as a PyTorch file", f"unpack it, or, if it is a PyTorch file, {_TO_ONNX}"),
    ".gz": ("a gzip file", "unpack it"),
    ".tflite": (
        "a TensorFlow Lite model",
        f"{_EXPORT}, for example with `python -m tf2onnx.convert --tflite NAME --output STEM.onnx`",
    ),
    ".pb": ("a TensorFlow model", f"{_EXPORT}, for example with tf2onnx"),
    ".h5": ("a Keras or HDF5 file", f"{_EXPORT}, for example with tf2onnx"),
    ".safetensors": ("a file of weights in the format safetensors", f"{_EXPORT} with the library that it was made for"),
    ".pdparams": ("a PaddlePaddle model", f"{_EXPORT} with paddle2onnx"),
    ".xml": ("an OpenVINO model", f"{_EXPORT} from the framework in which it was trained"),
    ".param": ("an ncnn model", f"{_EXPORT} from the framework in which it was trained"),
    ".weights": ("a Darknet model", f"{_EXPORT} with a converter for Darknet"),
    ".caffemodel": ("a Caffe model", f"{_EXPORT} with a converter for Caffe"),
    ".mlmodel": ("a Core ML model", f"{_EXPORT} from the framework in which it was trained"),
}
"""Formats of files that are not ONNX, by suffix: what the file is, and what to do."""

_ALIASES: Final[Mapping[str, str]] = {
    ".pth": ".pt", ".ckpt": ".pt", ".torchscript": ".pt", ".ptl": ".pt", ".pt2": ".pt",
    ".plan": ".engine", ".trt": ".engine",
    ".keras": ".h5", ".hdf5": ".h5",
    ".pdmodel": ".pdparams", ".pdiparams": ".pdparams",
    ".mlpackage": ".mlmodel",
}  # fmt: skip
"""Key in `_FORMATS` of each further suffix."""

_FETCH: Final = "fetch the file again: the server sent a different document, such as a login page or an error message"
_AGAIN: Final = "fetch or export the model again"

_MAGIC: Final[tuple[tuple[int, bytes, str], ...]] = (
    (4, b"TFL3", ".tflite"),
    (4, b"ORTM", ".ort"),
    (0, b"ftrt", ".engine"),
    (0, b"ptrt", ".engine"),
    (0, b"\x89HDF", ".h5"),
    (0, b"PK\x03\x04", ".zip"),
    (0, b"\x80\x02", ".pt"),
    (0, b"7767517", ".param"),
    (0, b"\x1f\x8b", ".gz"),
)
"""Bytes that identify a format: their offset, the bytes, and the key in `_FORMATS`."""

_TEXTS: Final = (
    ((b"<!doctype html", b"<html", b"<head", b"<body"), "an HTML page"),
    ((b"<",), "an XML file"),
    ((b"{", b"["), "a JSON file"),
)
"""Start of a text, in lower case, and its format."""

_POINTERS: Final = (
    (b"version https://git-lfs", "Git LFS", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get"),
)
"""Start of a pointer file in a repository, the tool that wrote it, and the command that fetches the model."""


def folder_of_model(name: str, models: Path) -> Path:
    """Return the path of a model's folder or file: `name` itself if it is a path, otherwise the folder in `models`.

    `name` is a path if it contains a slash, is an existing folder, or has the suffix of a model file.
    """
    given = Path(name)
    return given if "/" in name or is_dir(given) or is_model_path(name) else models / name


def is_model_path(name: str) -> bool:
    """Return True if `name` has the suffix of a model file, such as ``.onnx`` or ``.pt``."""
    suffix = Path(name).suffix.lower()
    return suffix == ONNX_SUFFIX or suffix in _FORMATS or suffix in _ALIASES


def refuse_other_format(path: Path) -> None:
    """Raise `ModelError` if the suffix of a file shows that it is a model, but not in ONNX format."""
    suffix = path.suffix.lower()
    suffix = _ALIASES.get(suffix, suffix)
    if suffix in _FORMATS:
        raise _other_format(path, *_FORMATS[suffix])


def _other_format(path: Path, what: str, hint: str, label: str = "", code: str = "model-format") -> ModelError:
    text = f"{label}{path} is {what}, not an ONNX file"
    return ModelError(text, hint=hint.replace("NAME", path.name).replace("STEM", path.stem), code=code)


def read_model_header(path: Path, name: str = "") -> OnnxHeader:
    """Check that a file is a complete ONNX file with its weights, and return its header.

    Args:
        name: name of the model, for the start of error messages, or an empty string if the model has no name yet.

    Raises:
        ModelError: the file is missing, unreadable, empty, truncated, or in a different format, or a file with its
            weights is missing.
        Unavailable: the file cannot currently be read, for example because the disk fails.
    """
    label = f"{name}: " if name else ""
    if exists(path) and not (is_file(path) or is_dir(path)):  # reading /dev/zero or a FIFO would never end
        raise ModelError(f"{label}expected a file, got a device or a FIFO: {path}", code="model-unreadable")
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
        if not start:
            raise ModelError(f"{label}{path} is empty", hint="fetch the model again", code="damaged-model")
        header = read_header(path)
    except FileNotFoundError:
        text = f"{label}expected the model at {path}, but the file does not exist"
        hint = "`file` in model.yaml names the ONNX file in the same folder" if name else "check the path"
        raise ModelError(text, hint=hint, code="model-missing") from None
    except OSError as error:
        if is_passing(error):
            raise from_os_error(f"{label}cannot read {path}", error, code="model-unreadable") from error
        text = f"{label}cannot read {path}: {error.strerror}"
        raise ModelError(
            text, hint="check the path, and the owner and mode of the file", code="model-unreadable"
        ) from error
    except NotOnnx as error:
        raise _content_error(path, label, start, error) from None
    for weights in sorted(header.weight_files):
        if not is_file(path.parent / weights):
            raise ModelError(
                f"{label}{path} has its weights in {weights}, but this file is not in {path.parent}",
                hint="put all files of the export into one folder",
                code="external-weights",
            )
    return header


def _content_error(path: Path, label: str, start: bytes, error: NotOnnx) -> ModelError:
    """Return the error for a file whose content is not that of an ONNX file."""
    what, hint, code = _named_content(start) or ("", "", "")
    if what:
        return _other_format(path, what, hint, label, code)
    if isinstance(error, Truncated):
        size = path.stat().st_size
        text = f"{label}{path} is truncated or damaged: {error}; its size is {size} bytes"
        hint = "fetch the model again, and compare the size of the file with that of the original"
        return ModelError(text, hint=hint, code="damaged-model")
    return ModelError(f"{label}{path} is not an ONNX file: {error}", hint=_AGAIN, code="damaged-model")


def _named_content(start: bytes) -> tuple[str, str, str] | None:
    """Identify a file by its first bytes. Return its kind, a hint, and an error code, or None for an unknown kind."""
    for offset, magic, format_ in _MAGIC:
        if start.startswith(magic, offset):
            return (*_FORMATS[format_], "model-format")
    for magic, tool, command in _POINTERS:
        if start.startswith(magic):
            return f"a {tool} pointer", f"`{command}` fetches the model", "lfs-pointer"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for starts, what in _TEXTS:
        if text.startswith(starts):
            return what, _FETCH, "html-page" if what == "an HTML page" else "model-format"
    if start[8:10] == b'{"' or start[4:6] == b'{"':  # after the length of the JSON document
        return (*_FORMATS[".safetensors" if start[8:10] == b'{"' else ".engine"], "model-format")
    if start.isascii() and b"\0" not in start:
        return "a text file", _AGAIN, "model-format"
    return None


def checked_model_file(folder: Path, spec: ModelSpec | ClassifierSpec) -> Path:
    """Check the ONNX file of a model before any library reads it, and return its path.

    If the spec contains no SHA-256, log a warning.

    Raises:
        ModelError: as for `read_model_header`, or the SHA-256 of the file differs from that in the spec.
        Unavailable: as for `read_model_header`.
    """
    path = folder / spec.file
    read_model_header(path, spec.name)
    sha256 = sha256_of(path)
    if spec.sha256 is None:
        _log.warning("%s: model.yaml has no sha256, so the file is not verified; its sha256 is %s", spec.name, sha256)
    elif sha256 != spec.sha256:
        text = f"{spec.name}: expected {path} to have the sha256 {spec.sha256}, got {sha256}"
        hint = "the file is damaged or has a different version: fetch it again, or change `sha256` if you replaced it"
        raise ModelError(text, hint=hint, code="model-sha256")
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
