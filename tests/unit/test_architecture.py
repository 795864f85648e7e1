"""Tests that docs/architecture.md names every part of the package, and that the code meets its size limits."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "vision"
MOST_PARTS = 24
MOST_MODULE_LINES = 500
MOST_FUNCTION_LINES = 50
MOST_ATTRIBUTES = 15


DATA = {"configs", "models"}


def parts() -> list[str]:
    """Return the names of the top-level folders and modules of the package."""
    names = [
        path.name
        for path in PACKAGE.iterdir()
        if (path.is_dir() or path.suffix == ".py") and path.name not in {"__init__.py", "__pycache__"}
    ]
    return sorted(names)


def modules() -> list[Path]:
    """Return the Python files of the package. For files in linked folders, return the real paths."""
    linked = (path for folder in ("pipelines",) for path in (ROOT / folder).rglob("*.py"))
    own = (path for path in PACKAGE.rglob("*.py") if not any(parent.is_symlink() for parent in path.parents))
    return sorted({*own, *linked})


@pytest.mark.parametrize("part", [name for name in parts() if name != "__main__.py"])
def test_page_names_every_part(part: str) -> None:
    name = part if part.endswith(".py") else f"{part}/"
    assert f"`{name}`" in PAGE


def test_page_names_only_existing_parts() -> None:
    folders = {line.split("**")[1].strip("`").rstrip("/") for line in PAGE.splitlines() if line.startswith("**`")}
    assert all((PACKAGE / name).exists() for name in folders), folders


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`(?:\w+/)*(\w+\.(?:py|cuh))`", PAGE))))
def test_page_names_no_module_that_does_not_exist(module: str) -> None:
    assert any(PACKAGE.rglob(module)), module


def test_package_has_few_parts() -> None:
    assert len(set(parts()) - DATA) <= MOST_PARTS


def _mutable_attributes(node: ast.ClassDef) -> set[str]:
    """Return the names of all attributes that methods assign, and of the fields of a dataclass that is not frozen."""
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    names = set()
    if "dataclass" in decorators and "frozen=True" not in decorators:
        names |= {ast.unparse(line.target) for line in node.body if isinstance(line, ast.AnnAssign)}
    for target in ast.walk(node):
        if not isinstance(target, ast.Attribute) or not isinstance(target.ctx, ast.Store):
            continue
        if isinstance(target.value, ast.Name) and target.value.id == "self":
            names.add(target.attr)
    return names


def _length(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def _too_large(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    place = path.relative_to(ROOT)
    if (lines := text.count("\n")) > MOST_MODULE_LINES:
        yield f"{place}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = _length(node) - (_length(node.body[0]) if ast.get_docstring(node) else 0)
            if lines > MOST_FUNCTION_LINES:
                yield f"{place}: {node.name}: {lines} lines"
        elif isinstance(node, ast.ClassDef) and len(names := _mutable_attributes(node)) > MOST_ATTRIBUTES:
            yield f"{place}: {node.name}: {len(names)} attributes"


def test_modules_functions_and_classes_are_small() -> None:
    large = [line for path in modules() for line in _too_large(path)]
    assert not large, "\n".join(large)
