"""Check of a model's ONNX file before any library reads it."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Final

from vision.config import ClassifierSpec, ModelSpec
from vision.errors import ModelError

log = logging.getLogger(__name__)

_CHUNK: Final = 1 << 20
_LFS_POINTER: Final = b"version https://git-lfs"


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def checked_model_file(folder: Path, spec: ModelSpec | ClassifierSpec) -> Path:
    """Return the path of the model's ONNX file after checking it.

    Raises:
        ModelError: the file is missing, cannot be read, is empty, a Git LFS pointer, or not the one in the spec.
    """
    path = folder / spec.file
    try:
        sha256 = sha256_of(path)
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except FileNotFoundError:
        raise ModelError(
            f"{spec.name}: expected the model at {path}; there is no such file",
            hint="`file` in model.yaml names the ONNX file in the same folder",
            code="model-missing",
        ) from None
    except OSError as error:
        raise ModelError(
            f"{spec.name}: cannot read {path}: {error.strerror}", hint="check the file's owner", code="model-unreadable"
        ) from error
    if not start:
        raise ModelError(f"{spec.name}: {path} is empty", hint="fetch the model again", code="damaged-model")
    if start == _LFS_POINTER:
        raise ModelError(
            f"{spec.name}: {path} is a Git LFS pointer, not the model",
            hint="`git lfs pull` fetches the model",
            code="lfs-pointer",
        )
    if spec.sha256 is None:
        log.warning("%s: model.yaml has no sha256, so the file is not checked; it would be %s", spec.name, sha256)
    elif sha256 != spec.sha256:
        raise ModelError(
            f"{spec.name}: {path} should have the sha256 {spec.sha256}, it has {sha256}",
            hint="the file is damaged, or another version: fetch it again, or change `sha256` in model.yaml "
            "if you exchanged the model on purpose",
            code="model-sha256",
        )
    return path
