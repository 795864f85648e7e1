"""A YAML file as plain data that remembers where each value stands and how it was written.

PyYAML's loaders forget lines, let the last of two equal keys win, and read ``no``, ``012``, ``12:30`` and
``2026-01-01`` as something other than what people write. Here scalars follow YAML 1.2's core schema, as editors do;
equal keys are refused; and ``${NAME}`` is replaced after parsing, so that no secret can change the document's shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from vision.config.wording import Loc, did_you_mean, dotted, one_of, quoted
from vision.errors import ConfigError

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 100_000
"""Values after aliases are followed: a few lines of nested aliases can stand for more than any memory holds."""

_MAX_DIGITS: Final = 40
_EXCERPT_CHARACTERS: Final = 100
_MAY_HOLD_SECRET: Final = re.compile(r"@|pass|pwd|token|secret|key=", re.IGNORECASE)


class Unreadable:
    """Stands for a value that already has a fault of its own, so that nobody complains about it twice."""


Scalar: TypeAlias = "str | int | float | bool | Unreadable | None"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Counted from 1, as editors do."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong."""

    place: Place
    where: str  # key path, "" at the top
    text: str


@dataclass(frozen=True, slots=True)
class Node:
    """One value and where it stands."""

    place: Place
    value: Scalar | tuple[Node, ...] | dict[str, Node]
    written: str = ""  # a scalar as it stands in the file, before ${NAME} is replaced
    keys: dict[str, Place] = field(default_factory=dict)  # of a mapping: where each key stands

    def plain(self) -> object:
        """Strings, numbers, tuples and dicts."""
        if isinstance(self.value, tuple):
            return tuple(node.plain() for node in self.value)
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return self.value

    def child(self, part: int | str) -> Node | None:
        """The entry of a list or mapping; None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(part) if isinstance(part, str) else None
        if isinstance(self.value, tuple) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file. `faults` are those found while reading; the schema's come on top."""

    name: str  # as printed in messages
    root: Node
    faults: tuple[Fault, ...] = ()
    text: str = field(default="", repr=False)

    def plain(self) -> dict[str, object]:
        """The document's keys and values."""
        data = self.root.plain()
        assert isinstance(data, dict)
        return data

    def node(self, loc: Loc) -> Node | None:
        """The value at `loc`; None where there is none."""
        found: Node | None = self.root
        for part in loc:
            found = found.child(part) if found is not None else None
        return found

    def place(self, loc: Loc) -> Place:
        """Where the key of `loc` stands, or its value in a list; its parent where it is missing."""
        parent = self.node(loc[:-1]) if loc else None
        if parent is None:
            return self.place(loc[:-1]) if loc else self.root.place
        last = loc[-1]
        if isinstance(last, str) and last in parent.keys:
            return parent.keys[last]
        node = parent.child(last)
        return node.place if node is not None else self.place(loc[:-1])

    def shown(self, loc: Loc) -> str:
        """The value as it was written, for a message: without secrets of the environment or a URL."""
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
        """A fault of the value at `loc`."""
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
    """Return the line, and the column too where it is not that of the first key on the line."""
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


def read_document(path: Path, environ: Mapping[str, str] | None = None) -> Document:
    """Read and parse a file.

    Raises:
        ConfigError: it cannot be read, or `parse_document` refuses it.
    """
    return parse_document(_read(path), str(path), environ)


def parse_document(text: str, name: str, environ: Mapping[str, str] | None = None) -> Document:
    """Parse `text`, whose messages call it `name`. Without `environ`, ``${NAME}`` is text like any other.

    Raises:
        ConfigError: not YAML, empty, no mapping at the top, or far too large. Faults that leave the rest readable
            (equal keys, unset variables, unknown tags) are in `Document.faults` instead.
    """
    raw = _compose(text, name)
    builder = _Builder(environ)
    root = builder.build(raw, ())
    if builder.oversized:
        raise ConfigError(render(name, builder.faults, text))
    if not isinstance(root.value, dict):
        text_found = "a list" if isinstance(root.value, tuple) else "a single value"
        raise ConfigError(f"{name}:{root.place.line}: expected keys and values (key: value), got {text_found}")
    return Document(name, root, tuple(builder.faults), text)


# --- the file ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES >> 10} KiB; expected a configuration in YAML")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} is not UTF-8 text", hint="save the file in the encoding UTF-8"
        ) from None


def _cannot_read(path: Path, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        siblings = _yaml_files(path.parent)
        return ConfigError(
            f"{path}: no such file",
            hint=did_you_mean(path.name, siblings) or "vision run demo runs the configuration that is shipped",
        )
    if isinstance(error, IsADirectoryError):
        inside = _yaml_files(path)
        return ConfigError(
            f"{path}: a folder; expected a YAML file",
            hint=f"name the file itself: {one_of([str(path / name) for name in inside[:8]])}"
            if inside
            else "name the file itself, such as camera.yaml",
        )
    if isinstance(error, PermissionError):
        return ConfigError(
            f"{path}: this user may not read it", hint="change its owner or mode; the service runs as a user of its own"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
    return ConfigError(f"{path}: cannot be read: {reason}", hint="expected a YAML file, such as camera.yaml")


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return []


# --- YAML -------------------------------------------------------------------------------------------------------------

_NULL: Final = "tag:yaml.org,2002:null"
_BOOL: Final = "tag:yaml.org,2002:bool"
_INT: Final = "tag:yaml.org,2002:int"
_FLOAT: Final = "tag:yaml.org,2002:float"
_STR: Final = "tag:yaml.org,2002:str"
_SEQ: Final = "tag:yaml.org,2002:seq"
_MAP: Final = "tag:yaml.org,2002:map"

# YAML 1.2.2, section 10.3.2.
_CORE_SCHEMA: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    _NULL: (re.compile(r"(?:~|null|Null|NULL|)\Z"), "~nN"),
    _BOOL: (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    _INT: (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), "-+0123456789"),
    _FLOAT: (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Composes nodes and leaves their values to `_Builder`."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as its base class has it
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, (_pattern, _first) in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(_tag, _pattern, [*_first, *([""] if _tag == _NULL else [])])

# PyYAML's words, and what an operator would say; the first that is found counts.
_SYNTAX: Final = (
    ("mapping values are not allowed", "a second ':' in this line: put quotes around text that contains ': '"),
    (r"found character '\\t'", "a tab: YAML is indented with spaces"),
    ("found character", "text that begins with this character needs quotes"),
    ("expected ',' or", "an open bracket, a missing comma, or text with , [ ] { } without quotes, such as ${NAME}"),
    ("could not find expected ':'", "a key without ': ' after it"),
    ("found unexpected end of stream", "a quote is opened and not closed"),
    ("expected <block end>.*but found '-'", "a '-' where a key is expected: check the indentation"),
    (r"expected <block end>.*but found '\?'", "a key where a '-' is expected: check the indentation"),
    ("but found '<block", "the indentation does not fit the lines above"),
    ("expected <block end>", "text after a closing quote: put quotes around the whole text"),
    ("but found '<stream end>'", "a bracket or quote is opened and not closed"),
    ("found undefined alias", "'*' needs a name that '&' has given above; quote text that begins with '*'"),
    ("expected alphabetic or numeric", "'&' and '*' begin a name; text that begins with them needs quotes"),
    ("found unknown escape", "an unknown '\\' sequence: text with '\\' goes in single quotes"),
    ("expected escape sequence", "a '\\' sequence is cut short: text with '\\' goes in single quotes"),
    ("special characters are not allowed", "a character that cannot be printed"),
    ("duplicate anchor", "a second '&' with the same name"),
    ("expected a single document", "a second document begins (---); expected one"),
    ("nested more than", f"nested more than {MAX_DEPTH} levels deep"),
)  # fmt: skip


def _compose(text: str, name: str) -> yaml.Node:
    line = 1
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            line = loader.line + 1
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: a character that cannot be printed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(line, 1)
        fault = Fault(place, "", f"not valid YAML: {_explain(error, text.splitlines())}")
        raise ConfigError(render(name, [fault], text)) from None
    except (ValueError, OverflowError):  # PyYAML: '\U' escapes and %YAML versions out of range
        raise ConfigError(f"{name}:{line}: not valid YAML: a number or character code out of range") from None
    if node is None:
        raise ConfigError(f"{name}: empty; expected keys and values (key: value)")
    return node


def _explain(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> str:
    problem = f"{error.context}, {error.problem}"
    words = next((words for pattern, words in _SYNTAX if re.search(pattern, problem)), problem)
    opened, noticed = error.context_mark, error.problem_mark
    if "mapping values are not allowed" in problem and noticed is not None:
        line = lines[noticed.line] if noticed.line < len(lines) else ""
        if noticed.line and ":" not in line[: noticed.column]:
            return "the indentation does not fit the line above, or the line above lacks a ':'"
    if opened and noticed and opened.line < noticed.line:
        words += f" (in the block that begins on line {opened.line + 1})"
    return words


# --- from YAML nodes to values ----------------------------------------------------------------------------------------

_REFERENCE: Final = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<broken>\$\{)")
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FORBIDDEN_IN_SECRET: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class _Builder:
    """Turns YAML nodes into `Node` and collects what is wrong with them. An aliased node is built once."""

    def __init__(self, environ: Mapping[str, str] | None) -> None:
        self.faults: list[Fault] = []
        self.oversized = False
        self._environ = environ
        self._built: dict[int, tuple[Node, int, int]] = {}  # with its number of values, and its depth
        self._open: set[int] = set()

    def build(self, raw: yaml.Node, loc: Loc) -> Node:
        return self._sized(raw, loc)[0]

    def _sized(self, raw: yaml.Node, loc: Loc) -> tuple[Node, int, int]:
        known = self._built.get(id(raw))
        if known is not None:
            return known
        place = _place(raw)
        if id(raw) in self._open:
            return self._unreadable(place, loc, "contains itself, by a '*' alias"), 1, 1
        if len(loc) > MAX_DEPTH:  # aliases of what stands in keys and merges, which is built late
            return self._oversized(place, loc, f"more than {MAX_DEPTH} levels"), 1, 1
        self._open.add(id(raw))
        made = self._sized_anew(raw, place, loc)
        self._open.remove(id(raw))
        self._built[id(raw)] = made
        return made

    def _sized_anew(self, raw: yaml.Node, place: Place, loc: Loc) -> tuple[Node, int, int]:
        if isinstance(raw, yaml.ScalarNode):
            return self._scalar(raw, place, loc), 1, 1
        parts: list[tuple[Node, int, int]]
        if isinstance(raw, yaml.SequenceNode) and raw.tag == _SEQ:
            parts = [self._sized(child, (*loc, at)) for at, child in enumerate(raw.value)]
            node = Node(place, tuple(part[0] for part in parts))
        elif isinstance(raw, yaml.MappingNode) and raw.tag == _MAP:
            node, parts = self._mapping(raw, place, loc)
        else:
            return self._unreadable(place, loc, _unknown_tag(raw.tag)), 1, 1
        size = 1 + sum(part[1] for part in parts)
        depth = 1 + max((part[2] for part in parts), default=0)
        if size > MAX_VALUES or depth > MAX_DEPTH:
            what = f"more than {MAX_VALUES} values" if size > MAX_VALUES else f"more than {MAX_DEPTH} levels"
            return self._oversized(place, loc, what), 1, 1
        return node, size, depth

    def _mapping(self, raw: yaml.MappingNode, place: Place, loc: Loc) -> tuple[Node, list[tuple[Node, int, int]]]:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        parts = []
        merges: list[yaml.Node] = []
        for key, value in raw.value:
            if isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None:
                merges.append(value)
                continue
            name = self._key(key, loc)
            part = self._sized(value, (*loc, "?" if name is None else name))
            parts.append(part)
            if name in entries:
                self._fault(_place(key), (*loc, name), f"a second time; the first is on line {keys[name].line}")
            elif name is not None:
                entries[name], keys[name] = part[0], _place(key)
        for merge in merges:
            for base, size, depth in self._merged(merge, loc):
                parts.append((base, size, depth))
                assert isinstance(base.value, dict)
                entries = {**base.value, **entries}
                keys = {**base.keys, **keys}
        return Node(place, entries, keys=keys), parts

    def _merged(self, raw: yaml.Node, loc: Loc) -> Iterator[tuple[Node, int, int]]:
        """What ``<<`` adds: one mapping, or a list of them, of which the first counts most."""
        for source in raw.value if isinstance(raw, yaml.SequenceNode) else [raw]:
            part = self._sized(source, (*loc, "<<"))
            if isinstance(part[0].value, dict):
                yield part
            elif not isinstance(part[0].value, Unreadable):
                self._fault(_place(source), (*loc, "<<"), "expected an alias of keys and values, such as <<: *name")

    def _key(self, raw: yaml.Node, loc: Loc) -> str | None:
        if not isinstance(raw, yaml.ScalarNode):
            self._fault(_place(raw), loc, "expected a name as key, got a list or a mapping (is { } meant as text?)")
            return None
        if raw.tag != _STR:
            got = quoted(raw.value)
            self._fault(
                _place(raw), loc, f"expected a name as key, got {got}, which YAML does not read as text (add quotes)"
            )
            return None
        if _FORBIDDEN.search(raw.value):
            self._fault(_place(raw), loc, "a key with a character that cannot be printed")
            return None
        return str(raw.value)

    def _scalar(self, raw: yaml.ScalarNode, place: Place, loc: Loc) -> Node:
        text: str = raw.value
        if raw.tag == _STR:
            return self._text(text, place, loc)
        if raw.tag not in _CORE_SCHEMA:
            return self._unreadable(place, loc, _unknown_tag(raw.tag))
        if not _CORE_SCHEMA[raw.tag][0].match(text):
            return self._unreadable(place, loc, f"{quoted(text)} does not fit its tag !!{raw.tag.rpartition(':')[2]}")
        if raw.tag == _INT and len(text) > _MAX_DIGITS:
            return self._unreadable(place, loc, f"a number of more than {_MAX_DIGITS} digits")
        return Node(place, _number(raw.tag, text), text)

    def _text(self, text: str, place: Place, loc: Loc) -> Node:
        if _FORBIDDEN.search(text):
            return self._unreadable(place, loc, "a character that cannot be printed")
        if self._environ is None:
            return Node(place, text, text)
        replaced, problems = _substitute(text, self._environ)
        for problem in problems:
            self._fault(place, loc, problem)
        return Node(place, Unreadable() if problems else replaced, text)

    def _unreadable(self, place: Place, loc: Loc, text: str) -> Node:
        self._fault(place, loc, text)
        return Node(place, Unreadable())

    def _oversized(self, place: Place, loc: Loc, what: str) -> Node:
        self.oversized = True
        return self._unreadable(place, loc, f"aliases make {what} of this")

    def _fault(self, place: Place, loc: Loc, text: str) -> None:
        self.faults.append(Fault(place, dotted(loc), text))


def _place(raw: yaml.Node) -> Place:
    return Place(raw.start_mark.line + 1, raw.start_mark.column + 1)


def _unknown_tag(tag: str) -> str:
    short = quoted(tag.replace("tag:yaml.org,2002:", "!!"))
    return f"the tag {short} means nothing here (text that begins with '!' needs quotes)"


def _number(tag: str, text: str) -> int | float | bool | None:
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _substitute(text: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """`text` with every ``${NAME}`` replaced once, and what is wrong with the variables. Values are never spoken of."""
    problems: list[str] = []

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        if match["broken"]:
            problems.append(
                "'${' begins an environment variable: expected ${NAME}, or $${ for the two characters themselves"
            )
            return ""
        name = match["name"]
        found = environ.get(name)
        if found is None:
            problems.append(f"the environment variable {name} is not set (export it, or write $${{ for a plain ${{)")
        elif not found:
            problems.append(f"the environment variable {name} is empty")
        elif _FORBIDDEN_IN_SECRET.search(found):
            problems.append(
                f"the environment variable {name} holds a line break or another character that cannot be printed"
            )
        return found or ""

    return _REFERENCE.sub(value, text), problems
