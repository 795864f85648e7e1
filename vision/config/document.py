"""A YAML file as plain data with the place of each value and its text in the file.

PyYAML's loaders forget lines, let the last of two equal keys win, and read ``no``, ``012``, ``12:30`` and
``2026-01-01`` as other values than users mean. Here scalars follow YAML 1.2's core schema, as editors do;
equal keys are errors; and ``${NAME}`` is replaced after parsing, so that no secret can change the structure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from vision.config.wording import Loc, dotted, quoted

_EXCERPT_CHARACTERS: Final = 100
_MAY_HOLD_SECRET: Final = re.compile(r"@|pass|pwd|token|secret|key=", re.IGNORECASE)


class Unreadable:
    """Placeholder for a value that already has a fault, so that it is reported once."""


Scalar: TypeAlias = "str | int | float | bool | Unreadable | None"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Line and column, counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One error in a file."""

    place: Place
    where: str  # path of the key, "" at the top
    text: str


@dataclass(frozen=True, slots=True)
class Node:
    """One value and its place."""

    place: Place
    value: Scalar | tuple[Node, ...] | dict[str, Node]
    written: str = ""  # a scalar as written in the file, before ${NAME} is replaced
    keys: dict[str, Place] = field(default_factory=dict)  # of a mapping: the place of each key

    def plain(self) -> object:
        """Return the value as strings, numbers, tuples and dicts."""
        if isinstance(self.value, tuple):
            return tuple(node.plain() for node in self.value)
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return self.value

    def child(self, part: int | str) -> Node | None:
        """Return an entry of a list or mapping, or None."""
        if isinstance(self.value, dict):
            return self.value.get(part) if isinstance(part, str) else None
        if isinstance(self.value, tuple) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file. `faults` are those of the syntax; the schema's are added later."""

    name: str  # name in messages
    root: Node
    faults: tuple[Fault, ...] = ()
    text: str = field(default="", repr=False)

    def plain(self) -> dict[str, object]:
        """Return the document's keys and values."""
        data = self.root.plain()
        assert isinstance(data, dict)
        return data

    def node(self, loc: Loc) -> Node | None:
        """Return the value at `loc`, or None."""
        node: Node | None = self.root
        for part in loc:
            node = node.child(part) if node is not None else None
        return node

    def place(self, loc: Loc) -> Place:
        """Return the place of the key at `loc`, of the value in a list, or of the parent if it is missing."""
        parent = self.node(loc[:-1]) if loc else None
        if parent is None:
            return self.place(loc[:-1]) if loc else self.root.place
        last = loc[-1]
        if isinstance(last, str) and last in parent.keys:
            return parent.keys[last]
        node = parent.child(last)
        return node.place if node is not None else self.place(loc[:-1])

    def shown(self, loc: Loc) -> str:
        """Return the value as written in the file, for a message: without secrets of the environment or a URL."""
        node = self.node(loc)
        if node is None or node.value is None:
            return "nothing"
        if loc[-1] == "password":
            return "a value that is not shown"
        if isinstance(node.value, tuple):
            return f"a list of {len(node.value)}" if node.value else "an empty list"
        if isinstance(node.value, dict):
            return "keys and values"
        return quoted(node.written) if isinstance(node.value, str) else node.written

    def fault(self, loc: Loc, text: str) -> Fault:
        """Return a fault of the value at `loc`."""
        return Fault(self.place(loc), dotted(loc), text)


def render(name: str, faults: Sequence[Fault], text: str) -> str:
    """Return one line for each fault, in the file's order: ``camera.yaml:12: cameras[1].transport: expected ...``.

    A single fault is followed by its line of `text`, with a caret below the column.
    """
    lines = text.splitlines()
    unique = sorted(set(faults))
    rendered = [
        f"{name}:{position(fault.place, lines)}: {fault.where}{': ' if fault.where else ''}{fault.text}"
        for fault in unique
    ]
    return "\n".join([*rendered, *(excerpt(unique[0].place, lines) if len(unique) == 1 else ())])


def position(place: Place, lines: Sequence[str]) -> str:
    """Return the line, and the column unless it is that of the first key on the line."""
    before = lines[place.line - 1][: place.column - 1] if place.line <= len(lines) else ""
    return f"{place.line}" if not before.strip(" -") else f"{place.line}:{place.column}"


def excerpt(place: Place, lines: Sequence[str]) -> tuple[str, ...]:
    """Return the line of the file and a line with a caret, or nothing if the line may hold a secret."""
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    if not line.strip() or _MAY_HOLD_SECRET.search(line):
        return ()
    start = max(0, place.column - _EXCERPT_CHARACTERS // 2) if len(line) > _EXCERPT_CHARACTERS else 0
    shown = "".join(c if c.isprintable() else " " for c in line[start : start + _EXCERPT_CHARACTERS])
    return f"    {shown}".rstrip(), " " * (4 + place.column - 1 - start) + "^"
