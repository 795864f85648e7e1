"""Functions that load configurations and model specifications. One error lists all faults of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from itertools import islice, starmap
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from vision.config.app import AppConfig, CameraConfig
from vision.config.checks import References, class_lists, config_conflicts
from vision.config.document import Document, faulty
from vision.config.fields import ACCEPT_ANY, VERIFY, ConfigSection
from vision.config.model_file import ONNX_SUFFIX, is_model_path, refuse_other_format
from vision.config.model_spec import ClassifierSpec, ModelSpec
from vision.config.paths import exists, is_file
from vision.config.schema import schema_of
from vision.config.source_address import File, Folder
from vision.config.validation import validation_faults
from vision.config.wording import Loc, did_you_mean, did_you_mean_class, dotted, nearest, one_of, quoted
from vision.config.yaml_reader import parse_document, read_document
from vision.errors import ConfigError, Fault, ModelError

SPEC_NAME: Final = "model.yaml"

_MAX_FAULTS: Final = 200  # a longer list helps nobody, and each fault of a large file takes time
_CLEARLY_MEANT: Final = 0.8  # similarity of a file name to a shipped configuration's name

_S = TypeVar("_S", bound=ConfigSection)


def load_config(path: Path, environ: Mapping[str, str]) -> AppConfig:
    """Read and check a camera.yaml, and make its paths absolute.

    Args:
        path: the file. Its folder is the base of relative paths in it.
        environ: the values of ``${NAME}``.

    Raises:
        ConfigError: the file cannot be read, or has faults. The error lists every fault.
        Unavailable: the file cannot currently be read, for example because the disk fails.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    config = _validate_config(read_document(path, environ))
    try:
        str(whole).encode()
    except UnicodeEncodeError:  # relative paths in the file become parts of messages, which are in UTF-8
        text = f"expected a file whose path is valid UTF-8, got {os.fsencode(whole)!r}"
        raise ConfigError(text, hint="rename the file or its folder", code="path-encoding") from None
    return _resolve_paths(config, whole.parent)


def load_config_text(text: str, environ: Mapping[str, str], *, name: str = "camera.yaml") -> AppConfig:
    """Create a configuration from the text of a camera.yaml, as `load_config` does from a file.

    Relative paths in the text stay relative. Errors use `name` as the name of the file.
    """
    return _validate_config(parse_document(text, name, environ))


def _validate_config(document: Document) -> AppConfig:
    references = References(written=document.shown, line=lambda loc: f"on line {document.place(loc).line}")
    conflicts = config_conflicts(document.plain(), references)
    return _validated(AppConfig, document, [*_written_passwords(document), *starmap(document.fault, conflicts)])


def load_model_spec(folder: Path) -> ModelSpec:
    """Read and check the model.yaml in `folder`. Raise a `ModelError` that lists every fault."""
    return _load_spec(ModelSpec, folder)


def load_model_spec_text(text: str, name: str) -> ModelSpec:
    """Create a specification from the text of a model.yaml. Errors use `name` as the name of the file.

    Raises:
        ModelError: the text has faults. The error lists every fault.
    """
    try:
        return _validated(ModelSpec, parse_document(text, name, {}))
    except ConfigError as error:
        raise ModelError(error.args[0], code=error.code, faults=error.faults) from None


def load_classifier_spec(folder: Path) -> ClassifierSpec:
    """Read and check the model.yaml of a classifier, as `load_model_spec` does for a detection model."""
    return _load_spec(ClassifierSpec, folder)


def _load_spec(kind: type[_S], folder: Path) -> _S:
    if is_file(folder):
        refuse_other_format(folder)
        is_onnx = folder.suffix == ONNX_SUFFIX
        raise ModelError(
            f"{folder} is {'an ONNX file' if is_onnx else 'a file'}; expected a folder with it and a model.yaml",
            hint=f"write `model: {folder.parent}`, and add a model.yaml there; `vision models` shows an example",
            code="model-is-a-file",
        )
    try:
        return _validated(kind, read_document(folder / SPEC_NAME))
    except ConfigError as error:
        hint = "a model is a folder with a model.yaml and an ONNX file; `vision models` explains the keys"
        raise ModelError(error.args[0], hint=hint, code=error.code, faults=error.faults) from None


def _validated(model: type[_S], document: Document, other_faults: Iterable[Fault] = ()) -> _S:
    """Create a section from a document, without type conversions.

    Raise a `ConfigError` that lists the faults of the document and `other_faults`, if there are any.
    """
    faults = [*document.faults, *other_faults]
    try:
        section = model.model_validate(document.plain(), strict=True)
    except ValidationError as error:
        faults += islice(validation_faults(error, document, schema_of(model)), _MAX_FAULTS)
    if faults:
        raise document.error(faults)
    return section


def validated_part(kind: type[_S], text: str, name: str, environ: Mapping[str, str]) -> _S:
    """Create one section of a configuration, of the class `kind`, from its text. Errors call the text `name`.

    `environ` contains the values of ``${NAME}``. Paths must be absolute. Errors contain no lines, because the text is
    not a file of the operator.

    Raises:
        ConfigError: the text has faults. The error lists every fault.
    """
    try:
        document = parse_document(text, name, environ)
        return _validated(kind, document, _written_password(document, ()))
    except ConfigError as error:
        faults = [replace(fault, line=0, column=0) for fault in error.faults]
        raise faulty(name, faults) if faults else error from None


# --- secrets ----------------------------------------------------------------------------------------------------------

_LITERAL_PASSWORD = re.compile(
    r"://[^/@\s:]*:(?!\$\{)[^/?#@\s]+@"
    r"|[?&;/_][a-z-]*(?:pass|passwd|password|pwd|pas|psw|token|secret|session|api_?key)=(?!\$\{)[^&;\s]+",
    re.IGNORECASE,
)
_FROM_ENVIRONMENT_ONLY: Final = (
    "expected the password to come from the environment: write ${NAME} instead of the password"
)
_SECRETS: Final[Mapping[Loc, str]] = {
    ("http", "token"): "token",
    ("page", "token"): "token",
    ("onvif", "password"): "password",
    ("language", "api_key"): "key",
}
"""Location of each secret outside of lists, and the word for it."""

_FROM_ENVIRONMENT = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


def _written_passwords(document: Document) -> list[Fault]:
    """Return a fault for each password that is literally in the file, because files are copied and committed."""
    cameras = document.root.child("cameras")
    entries = cameras.value if cameras is not None and isinstance(cameras.value, tuple) else ()
    faults = [fault for index in range(len(entries)) for fault in _written_password(document, ("cameras", index))]
    sinks = document.root.child("sinks")
    for index, sink in enumerate(sinks.value if sinks is not None and isinstance(sinks.value, tuple) else ()):
        address = sink.child("address")
        values = [(key, sink.child(key)) for key in ("password", "secret")]
        keys = [key for key, value in values if value is not None and not _FROM_ENVIRONMENT.fullmatch(value.written)]
        if address is not None and _LITERAL_PASSWORD.search(address.written):
            keys.append("address")
        faults += [document.fault(("sinks", index, key), "written-password", _FROM_ENVIRONMENT_ONLY) for key in keys]
    for loc, word in _SECRETS.items():
        secret = document.node(loc)
        if secret is not None and secret.value is not None and not _FROM_ENVIRONMENT.fullmatch(secret.written):
            message = _FROM_ENVIRONMENT_ONLY.replace("password", word)
            faults.append(document.fault(loc, "written-password", message))
    return faults


def _written_password(document: Document, camera: Loc) -> list[Fault]:
    faults = []
    password, source = document.node((*camera, "password")), document.node((*camera, "source"))
    if password is not None and not _FROM_ENVIRONMENT.fullmatch(password.written):
        faults.append(document.fault((*camera, "password"), "written-password", _FROM_ENVIRONMENT_ONLY))
    if source is not None and _LITERAL_PASSWORD.search(source.written):
        faults.append(document.fault((*camera, "source"), "written-password", _FROM_ENVIRONMENT_ONLY))
    return faults


# --- paths ------------------------------------------------------------------------------------------------------------


def _resolve_paths(config: AppConfig, folder: Path) -> AppConfig:
    """Return a copy of `config` in which all paths are absolute. Relative paths are joined to `folder`.

    Names stay unchanged. A model is a name if it contains no slash and does not have the suffix of a model file. A
    pipeline is a name if it does not end in ``.py``.
    """
    changes: dict[str, object] = {"cameras": tuple(_resolve_source(camera, folder) for camera in config.cameras)}
    if "/" in config.model or is_model_path(config.model):
        changes["model"] = str(folder / config.model)
    if config.pipeline.endswith(".py"):
        changes["pipeline"] = str(folder / config.pipeline)
    if config.state_dir is not None:
        changes["state_dir"] = str(folder / config.state_dir)
    changes["analytics"] = {
        camera: section.model_copy(update={"accuracy": str(folder / section.accuracy)}) if section.accuracy else section
        for camera, section in config.analytics.items()
    }
    if config.publish.curve is not None:
        changes["publish"] = config.publish.model_copy(update={"curve": str(folder / config.publish.curve)})
    if config.snapshots is not None:
        changes["snapshots"] = config.snapshots.model_copy(update={"folder": str(folder / config.snapshots.folder)})
    if config.recording is not None:
        changes["recording"] = config.recording.model_copy(update={"folder": str(folder / config.recording.folder)})
    changes["sinks"] = tuple(
        sink if sink.tls == VERIFY else sink.model_copy(update={"tls": str(folder / sink.tls)}) for sink in config.sinks
    )
    if config.archive is not None:
        changes["archive"] = config.archive.model_copy(update={"folder": str(folder / config.archive.folder)})
    if config.language is not None and config.language.ledger is not None:
        changes["language"] = config.language.model_copy(update={"ledger": str(folder / config.language.ledger)})
    if config.cascade is not None and ("/" in config.cascade.model or is_model_path(config.cascade.model)):
        changes["cascade"] = config.cascade.model_copy(update={"model": str(folder / config.cascade.model)})
    return config.model_copy(update=changes)


def _resolve_source(camera: CameraConfig, folder: Path) -> CameraConfig:
    changes: dict[str, object] = {}
    if isinstance(camera.address, (File, Folder)):
        changes["source"] = str(folder / camera.source)
    if camera.tls not in (VERIFY, ACCEPT_ANY):
        changes["tls"] = str(folder / camera.tls)
    return camera.model_copy(update=changes) if changes else camera


# --- classes of the model ---------------------------------------------------------------------------------------------


def check_classes(config: AppConfig, class_names: Sequence[str], source: Path | Document | None = None) -> None:
    """Check that the model has all classes that a configuration names. Errors show the lines of `source`.

    Raises:
        ConfigError: a name is unknown. The error lists every unknown name, with a similar name or all valid names.
    """
    unknown: dict[Loc, str] = {}
    for loc, names in class_lists(config.model_dump()):
        for index, name in enumerate(map(str, names)):
            if name not in class_names:
                advice = did_you_mean_class(name, class_names) or f"it has {one_of(class_names)}"
                place: Loc = (*loc, index)
                unknown[place] = f"the model {config.model} has no class {quoted(name)} ({advice})"
    if not unknown:
        return
    try:
        document = read_document(source) if isinstance(source, Path) else source
    except ConfigError:  # the file has changed since it was loaded
        document = None
    if document is not None:
        raise document.error(document.fault(loc, "unknown-class", message) for loc, message in unknown.items())
    raise faulty("", [Fault(0, 0, dotted(loc), "unknown-class", message) for loc, message in unknown.items()])


# --- shipped configurations and models --------------------------------------------------------------------------------


def shipped_configs() -> dict[str, Path]:
    """Return the path of each shipped configuration by its name, such as ``demo``."""
    folder = Path(str(resources.files("vision.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_models() -> Path:
    """Return the folder that contains the folders of the shipped models."""
    return Path(str(resources.files("vision.models")))


def resolve_config(name: str) -> Path:
    """Return the path of a configuration, given by a shipped name or a path. ``./demo`` is a file named demo.

    Raises:
        ConfigError: `name` is neither a shipped name nor an existing file. No error is raised for a missing file if
            `name` contains a slash, or ends in .yaml or .yml and does not resemble a shipped name.
    """
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if "/" in name or (name and exists(path)):
        return path
    if path.suffix in (".yaml", ".yml") and nearest(path.stem, shipped, cutoff=_CLEARLY_MEANT) is None:
        return path
    advice = did_you_mean(path.stem, shipped)
    raise ConfigError(
        f"no configuration is called {name!r}: expected a file, such as camera.yaml, or one of {one_of(list(shipped))}",
        hint=advice or "`vision run demo` runs a shipped configuration",
        code="no-such-file",
    )
