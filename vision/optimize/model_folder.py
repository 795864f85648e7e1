"""Folder of a changed model, with the ONNX file, model.yaml, and a report. It is written completely or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import yaml

from vision.config import ModelSpec
from vision.config.load import SPEC_NAME
from vision.errors import ConfigError, from_os_error
from vision.state.private_files import sha256_of

REPORT_NAME: Final = "optimization.json"
REJECTED: Final = ".rejected"
"""Ending of the folder name of a model that lost too much accuracy."""


def require_free(folder: Path, *, force: bool) -> None:
    """Check that `folder` does not exist or can be replaced.

    Call this function before the optimization, which can take minutes.

    Raises:
        ConfigError: `folder` exists but does not contain a model, or it contains a model and `force` is False.
    """
    if not folder.exists():
        return
    if not (folder / SPEC_NAME).is_file():
        raise ConfigError(
            f"{folder} exists, but is not the folder of a model", hint="choose a different --output", code="not-a-model"
        )
    if not force:
        raise ConfigError(
            f"{folder} already contains a model",
            hint="replace it with --force, or choose a different --output",
            code="model-exists",
        )


def derived_spec(parent: ModelSpec, name: str, contents: bytes, change: str) -> ModelSpec:
    """Return the spec of a changed model. `change` is a sentence about the change, for its key `provenance`."""
    return parent.model_copy(
        update={
            "name": name,
            "file": f"{name}.onnx",
            "sha256": sha256_of(contents),
            "provenance": f"{parent.provenance.rstrip()} {change}".strip(),
        }
    )


def install(folder: Path, spec: ModelSpec, contents: bytes, report: Mapping[str, object]) -> None:
    """Write the folder of a model. Replace the folder if it exists.

    Raises:
        ConfigError: the folder cannot be written.
        Unavailable: the folder cannot be written at present, for example because the disk is full.
    """
    try:
        with _staged(folder) as staged:
            (staged / spec.file).write_bytes(contents)
            data = spec.model_dump(mode="json", exclude_defaults=True)
            text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
            (staged / SPEC_NAME).write_text(text, encoding="utf-8")
            (staged / REPORT_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    except OSError as error:
        raise from_os_error(f"cannot write {folder}", error, code="not-writable") from error


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `folder` after the `with` block, unless an error occurred."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged.chmod(0o755)
        new = staged / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(staged / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
