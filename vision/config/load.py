"""Loading of configurations and model specifications, with all faults of a file in one error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from vision.config.app import AppConfig, CameraConfig, ModelSpec
from vision.config.cascade import ClassifierSpec
from vision.config.checks import References, config_conflicts
from vision.config.document import Document, Fault, render
from vision.config.document_reader import parse_document, read_document
from vision.config.renamed import with_new_keys
from vision.config.schema import schema_of
from vision.config.section import ConfigSection
from vision.config.source_address import File, Folder
from vision.config.validation import validation_faults
from vision.config.wording import dotted
from vision.errors import ConfigError, ModelError

SPEC_NAME: Final = "model.yaml"

_S = TypeVar("_S", bound=ConfigSection)


def load_config(path: Path, environ: Mapping[str, str]) -> AppConfig:
    """Read and check camera.yaml, and make its paths absolute. `environ` holds the values of ``${NAME}``.

    Raises:
        ConfigError: every fault of the file, one a line.
    """
    config = validate_document(read_document(path, environ))
    return resolve_paths(config, Path(os.path.abspath(path)).parent)  # noqa: PTH100 - resolve() would follow links


def load_config_text(text: str, environ: Mapping[str, str], *, name: str = "camera.yaml") -> AppConfig:
    """Check the text of a camera.yaml, as `load_config` does. Its paths stay relative."""
    return validate_document(parse_document(text, name, environ))


def validate_document(document: Document) -> AppConfig:
    """Check a parsed camera.yaml.

    Raises:
        ConfigError: every fault of the document, one a line.
    """
    data = document.plain()
    faults = [*document.faults, *_written_passwords(document)]
    faults += [document.fault(loc, text) for loc, text in config_conflicts(with_new_keys(data), _references(document))]
    config = _validated(AppConfig, document, data, faults)
    if config is None:
        raise ConfigError(render(document.name, faults, document.text))
    return config


def load_model_spec(folder: Path) -> ModelSpec:
    """Read and check ``model.yaml`` of a model's folder. Does not read the ONNX file.

    Raises:
        ModelError: every fault of the file, one a line.
    """
    return _load_spec(ModelSpec, folder)


def load_classifier_spec(folder: Path) -> ClassifierSpec:
    """Read and check ``model.yaml`` of a classifier's folder, as `load_model_spec` does.

    Raises:
        ModelError: every fault of the file, one a line.
    """
    return _load_spec(ClassifierSpec, folder)


def _load_spec(kind: type[_S], folder: Path) -> _S:
    if folder.is_file():
        is_onnx = folder.suffix == ".onnx"
        raise ModelError(
            f"{folder} is {'an ONNX file' if is_onnx else 'a file'}; a model is a folder with it and a model.yaml",
            hint=f"write `model: {folder.parent}` and put a model.yaml there; `vision models` shows an example",
            code="model-is-a-file",
        )
    try:
        document = read_document(folder / SPEC_NAME)
    except ConfigError as error:
        hint = "a model is a folder with model.yaml and the ONNX file it names; `vision models` explains the keys"
        raise ModelError(str(error.args[0]), hint=hint) from None
    faults = list(document.faults)
    spec = _validated(kind, document, document.plain(), faults)
    if spec is None:
        raise ModelError(
            render(document.name, faults, document.text), hint="`vision models` explains the keys of model.yaml"
        )
    return spec


def _validated(model: type[_S], document: Document, data: object, faults: list[Fault]) -> _S | None:
    """Validate strictly (no text becomes a number). Return the model, or None and add to `faults`."""
    try:
        checked = model.model_validate(data, strict=True)
    except ValidationError as error:
        faults.extend(validation_faults(error, document, schema_of(model)))
        return None
    return None if faults else checked


def _references(document: Document) -> References:
    return References(
        place=lambda loc: f"{dotted(loc)} on line {document.place(loc).line}",
        written=document.shown,
        line=lambda loc: f"on line {document.place(loc).line}",
    )


# --- secrets ----------------------------------------------------------------------------------------------------------

_LITERAL_PASSWORD = re.compile(
    r"://[^/@\s:]*:(?!\$\{)[^/?#@\s]+@|[?&](?:pass|passwd|password|pwd|token|secret|api_?key)=(?!\$\{)[^&\s]+",
    re.IGNORECASE,
)
_FROM_ENVIRONMENT = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


def _written_passwords(document: Document) -> list[Fault]:
    """Return a fault for each password in the file: unlike the environment, files are copied, mailed and committed."""
    cameras = document.root.child("cameras")
    entries = cameras.value if cameras is not None and isinstance(cameras.value, tuple) else ()
    faults = []
    for index, camera in enumerate(entries):
        password = camera.child("password")
        if password is not None and not _FROM_ENVIRONMENT.fullmatch(password.written):
            text = "expected the password from the environment: write ${NAME}"
            faults.append(document.fault(("cameras", index, "password"), text))
        source = camera.child("source")
        if source is not None and _LITERAL_PASSWORD.search(source.written):
            text = "a password in the file; expected it from the environment: write ${NAME} instead"
            faults.append(document.fault(("cameras", index, "source"), text))
    return faults


# --- paths ------------------------------------------------------------------------------------------------------------


def resolve_paths(config: AppConfig, folder: Path) -> AppConfig:
    """Return `config` with its paths, which are relative to `folder`, made absolute.

    A model without a slash is a name (`folder_of_model`), and so is a pipeline that does not end in ``.py``.
    """
    changes: dict[str, object] = {"cameras": tuple(_resolve_source(camera, folder) for camera in config.cameras)}
    if "/" in config.model:
        changes["model"] = str(folder / config.model)
    if config.pipeline.endswith(".py"):
        changes["pipeline"] = str(folder / config.pipeline)
    if config.state_dir is not None:
        changes["state_dir"] = str(folder / config.state_dir)
    if config.snapshots is not None:
        changes["snapshots"] = config.snapshots.model_copy(update={"folder": str(folder / config.snapshots.folder)})
    if config.cascade is not None and "/" in config.cascade.model:
        changes["cascade"] = config.cascade.model_copy(update={"model": str(folder / config.cascade.model)})
    return config.model_copy(update=changes)


def _resolve_source(camera: CameraConfig, folder: Path) -> CameraConfig:
    if not isinstance(camera.address, (File, Folder)):
        return camera
    return camera.model_copy(update={"source": str(folder / camera.source)})
