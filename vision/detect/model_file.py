"""The file of a model, checked before any library reads it: a damaged or exchanged model is found here, and named."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from vision.config import ClassifierSpec, ModelSpec
from vision.errors import ModelError

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def checked_model_file(folder: Path, spec: ModelSpec | ClassifierSpec) -> Path:
    """The model's ONNX file: there, readable, and the one that the card means.

    Raises:
        ModelError: it is missing, cannot be read, or has another SHA-256.
    """
    path = folder / spec.file
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        raise ModelError(
            f"{spec.name}: expected the model at {path}; there is no such file",
            hint="`file` in model.yaml names the ONNX file beside it",
        ) from None
    except OSError as error:
        raise ModelError(f"{spec.name}: cannot read {path}: {error.strerror}", hint="check the file's owner") from error
    if spec.sha256 is None:
        log.warning("%s: model.yaml has no sha256, so the file is not checked; it would be %s", spec.name, found)
    elif found != spec.sha256:
        raise ModelError(
            f"{spec.name}: {path} should have the sha256 {spec.sha256}, it has {found}",
            hint="the file is damaged, or another version: fetch it again, or change `sha256` in model.yaml "
            "if you exchanged the model on purpose",
        )
    return path
