"""`Document`, which contains the values of a YAML file and their positions, and creates errors with positions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vision.config.secret_values import SECRET_KEYS
from vision.config.wording import Loc, dotted, quoted
from vision.errors import ConfigError, Fault

_EXCERPT_CHARACTERS: Final = 100
_SHOWN_FAULTS: Final = 50
_MAY_HOLD_SECRET: Final = re.compile(r"@|pass|pwd|token|secret|key=|api_?key", re.IGNORECASE)


class Unreadable:
    """Placeholder for a value whose error is already reported, so that no second error is reported for it."""


class Place(NamedTuple):
    """Position in a file: line and column, counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a YAML file, with its position in the file."""

    place: Place
    value: str | int | float | bool | Unreadable | tuple[Node, ...] | dict[str, Node] | None
    written: str = ""  # text of a scalar in the file, in which ${NAME} is not replaced
    keys: dict[str, Place] = field(default_factory=dict)  # place of each key of a mapping
    size: int = 1  # number of values, with aliases expanded
    depth: int = 1  # number of nested levels

    def plain(self) -> object:
        """Return the value without positions, as strings, numbers, tuples, and dicts."""
        if isinstance(self.value, tuple):
            return tuple(node.plain() for node in self.value)
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return self.value

    def child(self, part: int | str) -> Node | None:
        """Return the entry of a list or mapping at index or key `part`, or None if there is none."""
        if isinstance(self.value, dict):
            return self.value.get(part) if isinstance(part, str) else None
        if isinstance(self.value, tuple) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file. `faults` contains the errors that the parser found, but not errors of the schema validation."""

    name: str  # name of the file in messages
    root: Node
    faults: tuple[Fault, ...] = ()
    text: str = field(default="", repr=False)

    def plain(self) -> dict[str, object]:
        """Return the keys and values of the file, without positions."""
        data = self.root.plain()
        assert isinstance(data, dict)
        return data

    def node(self, loc: Loc) -> Node | None:
        """Return the node at the location `loc` (keys and list indices from the top), or None if there is none."""
        node: Node | None = self.root
        for part in loc:
            node = node.child(part) if node is not None else None
        return node

    def place(self, loc: Loc) -> Place:
        """Return the place of the key or list entry at `loc` or, if it is missing, of its nearest existing parent."""
        if not loc:
            return self.root.place
        *above, last = loc
        parent = self.node(tuple(above))
        if parent is not None and isinstance(last, str) and last in parent.keys:
            return parent.keys[last]
        node = parent.child(last) if parent is not None else None
        return node.place if node is not None else self.place(tuple(above))

    def shown(self, loc: Loc) -> str:
        """Return the value at `loc` as text for a message: a scalar as written in the file, otherwise a summary.

        The text does not contain the values of `SECRET_KEYS`.
        """
        node = self.node(loc)
        if node is None or node.value is None:
            return "nothing"
        if loc[-1] in SECRET_KEYS:
            return "a value that is not shown"
        if isinstance(node.value, tuple):
            return f"a list of {len(node.value)}" if node.value else "an empty list"
        if isinstance(node.value, dict):
            return "keys and values"
        return quoted(node.written) if isinstance(node.value, str) else node.written

    def fault(self, loc: Loc, code: str, message: str) -> Fault:
        """Return a fault of the value at `loc`, with the position of the value."""
        return Fault(*self.place(loc), dotted(loc), code, message)

    def error(self, faults: Iterable[Fault]) -> ConfigError:
        """Return the error that lists `faults`."""
        return faulty(self.name, faults, self.text)


def faulty(name: str, faults: Iterable[Fault], text: str = "", *, hint: str = "") -> ConfigError:
    """Return the error that lists the faults of a file, such as ``camera.yaml:12: cameras[1].fps: expected ...``.

    If there is only one fault, its line of `text` follows, with a caret below the column, unless the line is blank or
    may contain a secret.
    """
    unique = tuple(sorted(set(faults)))
    lines = text.splitlines()
    message = [
        ": ".join(filter(None, (name + _position(fault, lines), fault.key, fault.message)))
        for fault in unique[:_SHOWN_FAULTS]
    ]
    if len(unique) > _SHOWN_FAULTS:
        message.append(f"and {len(unique) - _SHOWN_FAULTS} or more further errors")
    if len(unique) == 1:
        message += _excerpt(unique[0], lines)
    return ConfigError("\n".join(message), hint=hint, code=unique[0].code, faults=unique)


def _line(fault: Fault, lines: Sequence[str]) -> str:
    return lines[fault.line - 1] if 0 < fault.line <= len(lines) else ""


def _position(fault: Fault, lines: Sequence[str]) -> str:
    """Return ``:LINE`` or ``:LINE:COLUMN`` of a fault; the column is omitted at the first key of a line.

    Return an empty string if the line is not known.
    """
    if not fault.line:
        return ""
    is_first = not _line(fault, lines)[: fault.column - 1].strip(" -")
    return f":{fault.line}" if is_first else f":{fault.line}:{fault.column}"


def _excerpt(fault: Fault, lines: Sequence[str]) -> tuple[str, ...]:
    """Return the line of a fault and a line with a caret, or an empty string if the line is blank or may be secret."""
    line = _line(fault, lines)
    start = max(0, fault.column - _EXCERPT_CHARACTERS // 2) if len(line) > _EXCERPT_CHARACTERS else 0
    shown = "".join(c if c.isprintable() else " " for c in line[start : start + _EXCERPT_CHARACTERS])
    if not shown.strip() or _MAY_HOLD_SECRET.search(line):
        return ()
    return f"    {shown}".rstrip(), " " * (4 + fault.column - 1 - start) + "^"
