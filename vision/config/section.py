"""The base of every mapping in camera.yaml and model.yaml, and types that several of them use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from vision.config.wording import InvalidValue, Loc, dotted

IDENTIFIER_TITLE = "a name of at most 64 letters, digits, '-' and '_', first a letter or digit"

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", title=IDENTIFIER_TITLE)]
"""A name of a camera, line or zone: it becomes part of topics and file names."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

INCONSISTENT = "inconsistent"
"""Type of the error for values that conflict with each other (`vision.config.checks`)."""


class ConfigSection(BaseModel):
    """A mapping of the file: frozen, without unknown keys.

    Validation reads no file, opens no device and looks up no host. Errors never show a value: it may be a secret.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=()
    )


def raise_conflicts(conflicts: Iterable[tuple[Loc, str]]) -> None:
    """Raise the conflicts of a configuration that was built in Python.

    Raises:
        PydanticCustomError: Of type `INCONSISTENT`, if there is a conflict.
    """
    text = "; ".join(f"{dotted(loc)}: {words}" for loc, words in conflicts)
    if text:
        raise PydanticCustomError(INCONSISTENT, "{text}", {"text": text})


def unique_names(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return `names` if it is a list of different names.

    Raises:
        InvalidValue: empty, an empty name, or one name twice.
    """
    if names is not None and (not names or not all(names) or len(set(names)) < len(names)):
        raise InvalidValue("a list of at least 1 name, none of them empty, none twice")
    return names
