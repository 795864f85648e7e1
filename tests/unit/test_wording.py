"""Tests of the full texts of messages. All other tests check only the class of an error and its stable fields."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import pytest

from tests.unit import wording

Row = tuple[str, Callable[[], str], str]


def _rows() -> list[Row]:
    modules = (importlib.import_module(f"{wording.__name__}.{m.name}") for m in pkgutil.iter_modules(wording.__path__))
    return [row for module in modules for row in module.ROWS]


@pytest.mark.parametrize(("scenario", "text", "expected"), _rows(), ids=[row[0] for row in _rows()])
def test_text_is_as_specified(scenario: str, text: Callable[[], str], expected: str) -> None:
    """Each row consists of a scenario, a function that returns the text that a user sees, and the expected text."""
    assert text() == expected
