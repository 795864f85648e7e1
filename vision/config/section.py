"""What every mapping of camera.yaml and model.yaml has in common, and the words that it speaks of its limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from vision.config.wording import InvalidValue, Loc, dotted

IDENTIFIER_TITLE = "a name of at most 64 letters, digits, '-' and '_', first a letter or digit"

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", title=IDENTIFIER_TITLE)]
"""Names of cameras, lines and zones: they become parts of topics and file names."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

INCONSISTENT = "inconsistent"
"""Type of the error for values that are each right and do not fit together (`vision.config.checks`)."""


class ConfigSection(BaseModel):
    """A mapping of the file: unknown keys are refused, values do not change once read.

    Validation reads no file, opens no device and looks up no host. Errors never show a value: it may be a secret.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=()
    )


def raise_conflicts(conflicts: Iterable[tuple[Loc, str]]) -> None:
    """Raise what `vision.config.checks` found in a model that was made in Python.

    Raises:
        PydanticCustomError: of type `INCONSISTENT`, where there is any finding.
    """
    text = "; ".join(f"{dotted(loc)}: {words}" for loc, words in conflicts)
    if text:
        raise PydanticCustomError(INCONSISTENT, "{text}", {"text": text})


def unique_names(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Validator of lists of class names.

    Raises:
        InvalidValue: empty, an empty name, or one name twice.
    """
    if names is not None and (not names or not all(names) or len(set(names)) < len(names)):
        raise InvalidValue("a list of at least 1 name, none of them empty, none twice")
    return names
