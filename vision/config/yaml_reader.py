"""Reader that parses YAML into a `Document`, with the position of each value, and replaces ``${NAME}``.

The loaders of PyYAML lose the positions of values, accept repeated keys, and read ``no``, ``012``, ``12:30``, and
``2026-01-01`` differently from what users mean. Therefore, PyYAML only composes the nodes here. Scalars follow the core
schema of YAML 1.2, as in editors. Repeated keys are faults. ``${NAME}`` is replaced after parsing, so that no secret
can change the structure. docs/decisions/010-yaml-positions.md compares this design with ruamel.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from vision.config.document import Document, Node, Place, Unreadable, faulty
from vision.config.secret_values import Span, register_values
from vision.config.user_files import TooLarge, read_input
from vision.config.wording import UNPRINTABLE, Loc, dotted, nearest, one_of, quoted
from vision.errors import ConfigError, Fault, from_os_error, is_passing

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 100_000
"""Maximum number of values with aliases expanded, because a few lines of nested aliases can exceed any memory."""

_MAX_DIGITS: Final = 40

_TAG: Final = "tag:yaml.org,2002:"
_STR, _SEQ, _MAP = f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map"
_NULL, _BOOL, _INT, _FLOAT = f"{_TAG}null", f"{_TAG}bool", f"{_TAG}int", f"{_TAG}float"

# The pattern of each type in YAML 1.2.2, section 10.3.2, and the characters with which it can start.
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

_REFERENCE: Final = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<broken>\$\{)")
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNPRINTABLE_TEXT: Final = "a character that cannot be printed"


def read_document(path: Path, environ: Mapping[str, str] | None = None) -> Document:
    """Read a file, and parse its text as `parse_document` does.

    Raises:
        ConfigError: the file cannot be read, is too large or not UTF-8, or `parse_document` refuses its text.
        Unavailable: the file cannot currently be read, for example because the disk fails.
    """
    return parse_document(_read(path), str(path), environ)


def parse_document(text: str, name: str, environ: Mapping[str, str] | None = None) -> Document:
    """Return the document in `text`, which messages call `name`. Without `environ`, ``${NAME}`` is plain text.

    Raises:
        ConfigError: the text is not YAML, is empty, exceeds `MAX_DEPTH` or `MAX_VALUES`, or has no mapping at the top
            level. Faults that leave the rest readable, such as repeated keys, are in `Document.faults` instead.
    """
    builder = _NodeBuilder(environ)
    root = builder.build(_compose(text, name), ())
    if builder.oversized:
        raise faulty(name, builder.faults, text)
    if not isinstance(root.value, dict):
        got = "a list" if isinstance(root.value, tuple) else "a single value"
        message = f"expected keys and values (key: value), got {got}"
        raise faulty(name, [Fault(*root.place, "", "no-mapping", message)], text)
    return Document(name, root, tuple(builder.faults), text)


# --- the file ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        raw = read_input(path, max_bytes=MAX_BYTES)
    except TooLarge:
        message = f"expected a configuration of at most {MAX_BYTES >> 10} KiB, got a larger file"
        raise faulty(str(path), [Fault(0, 0, "", "too-large", message)]) from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and is_passing(error):
            raise from_os_error(f"{path} cannot be read", error, code="unreadable") from None
        raise _cannot_read(path, error) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = Fault(raw.count(b"\n", 0, error.start) + 1, 1, "", "not-utf8", f"not valid UTF-8 at byte {error.start}")
        raise faulty(str(path), [fault], hint="save the file as UTF-8") from None


def _cannot_read(path: Path, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        code, message = "no-such-file", "no such file"
        files = {Path(name).stem: name for name in _yaml_files(path.parent)}  # equal suffixes are not a similarity
        near = nearest(path.stem, files)
        hint = f"did you mean {quoted(files[near])}?" if near else "`vision run demo` runs a shipped configuration"
    elif isinstance(error, IsADirectoryError):
        code, message = "folder", "expected a YAML file, got a folder"
        inside = [str(path / name) for name in _yaml_files(path)[:8]]
        hint = f"specify a file{f': {one_of(inside)}' if inside else ', such as camera.yaml'}"
    elif isinstance(error, PermissionError):
        code, message = "permission-denied", "permission denied"
        hint = "change the owner or mode of the file; a service may run as a different user"
    else:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
        code, message = "unreadable", f"cannot be read: {reason}"
        hint = "specify a YAML file, such as camera.yaml"
    return faulty(str(path), [Fault(0, 0, "", code, message)], hint=hint)


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return []


# --- syntax -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML loader that only composes nodes, and limits the depth of nesting."""

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

# Patterns of PyYAML's messages, and the text that replaces each. The first match is used.
SYNTAX: Final = (
    ("mapping values are not allowed", "a second ':' in this line: put quotes around text that contains ': '"),
    (r"found character '\\t'", "a tab: YAML is indented with spaces"),
    ("found character", "text that starts with this character needs quotes"),
    ("expected ',' or.*but got ':'", "quote text that ends with ':' or contains ': ' here, or close the bracket"),
    ("expected ',' or", "an open bracket, a missing comma, or text with , [ ] { } without quotes, such as ${NAME}"),
    ("could not find expected ':'", "a key without ': ' after it"),
    ("found unexpected end of stream", "a quote is opened but not closed"),
    ("expected <block end>.*but found '-'", "a '-' where a key is expected: check the indentation"),
    (r"expected <block end>.*but found '\?'", "a key where a '-' is expected: check the indentation"),
    ("but found '<block", "the indentation does not fit the lines above"),
    ("expected <block end>", "text after a closing quote: put quotes around the whole text"),
    ("but found '<stream end>'", "a bracket or quote is opened but not closed"),
    ("found undefined alias", "'*' needs a name that '&' has defined above; quote text that starts with '*'"),
    ("expected alphabetic or numeric", "'&' and '*' start a name; text that starts with them needs quotes"),
    ("found unknown escape", "an unknown '\\' sequence: put text with '\\' in single quotes"),
    ("expected escape sequence", "an incomplete '\\' sequence: put text with '\\' in single quotes"),
    ("special characters are not allowed", _UNPRINTABLE_TEXT),
    ("duplicate anchor", "a second '&' with the same name"),
    ("expected a single document", "a second document starts (---); expected one"),
)  # fmt: skip


def _compose(text: str, name: str) -> yaml.Node:
    place, problem = Place(1, 1), ""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            place = Place(loader.line + 1, 1)
            loader.dispose()
    except yaml.reader.ReaderError as error:
        place, problem = Place(text.count("\n", 0, error.position) + 1, 1), _UNPRINTABLE_TEXT
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else place
        problem = _explain(error, text.splitlines())
    except (ValueError, OverflowError):  # for '\U' escapes and %YAML versions out of range
        problem = "a number or character code out of range"
    if problem:
        raise faulty(name, [Fault(*place, "", "invalid-yaml", f"not valid YAML: {problem}")], text)
    if node is None:
        raise faulty(name, [Fault(0, 0, "", "empty", "empty; expected keys and values (key: value)")])
    return node


def _explain(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> str:
    problem = f"{error.context}, {error.problem}"
    words = next((words for pattern, words in SYNTAX if re.search(pattern, problem)), str(error.problem))
    opened, noticed = error.context_mark, error.problem_mark
    if "mapping values are not allowed" in problem and noticed is not None:
        line = lines[noticed.line] if noticed.line < len(lines) else ""
        if noticed.line and ":" not in line[: noticed.column]:
            return "the indentation does not fit the line above, or the line above lacks a ':'"
    if opened and noticed and opened.line < noticed.line:
        words += f" (in the block that starts on line {opened.line + 1})"
    return words


# --- values -----------------------------------------------------------------------------------------------------------


class _NodeBuilder:
    """Builder of `Node` objects from the nodes of PyYAML. It also collects faults.

    A node to which several aliases refer is built only once.
    """

    def __init__(self, environ: Mapping[str, str] | None) -> None:
        self.faults: list[Fault] = []
        self.oversized = False
        self._environ = environ
        self._built: dict[int, Node] = {}
        self._open: set[int] = set()

    def build(self, raw: yaml.Node, loc: Loc) -> Node:
        built = self._built.get(id(raw))
        if built is not None:
            return built
        if id(raw) in self._open:
            return self._unreadable(raw, loc, "alias-of-itself", "contains itself through a '*' alias")
        if len(loc) > MAX_DEPTH:  # possible through aliases in keys and merges
            return self._oversized(raw, loc, f"{MAX_DEPTH} levels")
        self._open.add(id(raw))
        node = self._build(raw, loc)
        self._open.remove(id(raw))
        if node.size > MAX_VALUES or node.depth > MAX_DEPTH:
            limit = f"{MAX_VALUES} values" if node.size > MAX_VALUES else f"{MAX_DEPTH} levels"
            node = self._oversized(raw, loc, limit)
        self._built[id(raw)] = node
        return node

    def _build(self, raw: yaml.Node, loc: Loc) -> Node:
        if isinstance(raw, yaml.ScalarNode):
            return self._scalar(raw, loc)
        if isinstance(raw, yaml.MappingNode) and raw.tag == _MAP:
            return self._mapping(raw, loc)
        if isinstance(raw, yaml.SequenceNode) and raw.tag == _SEQ:
            parts = [self.build(child, (*loc, index)) for index, child in enumerate(raw.value)]
            return Node(_place(raw), tuple(parts), size=_size(parts), depth=_depth(parts))
        return self._unknown_tag(raw, loc)

    def _mapping(self, raw: yaml.MappingNode, loc: Loc) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        parts = []
        merges: list[yaml.Node] = []
        for key, value in raw.value:
            if isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None:
                merges.append(value)
                continue
            name = self._key(key, loc)
            part = self.build(value, (*loc, "?" if name is None else name))
            parts.append(part)
            if name in entries:
                message = f"this key is repeated; it is first on line {keys[name].line}"
                self._fault(key, (*loc, name), "duplicate-key", message)
            elif name is not None:
                entries[name], keys[name] = part, _place(key)
        for merge in merges:
            for base in self._merged(merge, loc):
                parts.append(base)
                assert isinstance(base.value, dict)
                entries = {**base.value, **entries}
                keys = {**base.keys, **keys}
        return Node(_place(raw), entries, keys=keys, size=_size(parts), depth=_depth(parts))

    def _merged(self, raw: yaml.Node, loc: Loc) -> Iterator[Node]:
        """Yield the mappings that the merge key ``<<`` adds to a YAML mapping.

        Each mapping has precedence over the mappings after it.
        """
        for source in raw.value if isinstance(raw, yaml.SequenceNode) else [raw]:
            node = self.build(source, (*loc, "<<"))
            if isinstance(node.value, dict):
                yield node
            elif not isinstance(node.value, Unreadable):
                message = "expected an alias of keys and values, such as <<: *name"
                self._fault(source, (*loc, "<<"), "invalid-merge", message)

    def _key(self, raw: yaml.Node, loc: Loc) -> str | None:
        if not isinstance(raw, yaml.ScalarNode):
            message = "expected a name as key, got a list or a mapping (quote the key if { } is meant as text)"
        elif raw.tag != _STR:
            message = f"expected a name as key, got {quoted(raw.value)}, which is not text in YAML (add quotes)"
        elif _FORBIDDEN.search(raw.value):
            message = "the key contains a character that cannot be printed"
        else:
            return str(raw.value)
        self._fault(raw, loc, "invalid-key", message)
        return None

    def _scalar(self, raw: yaml.ScalarNode, loc: Loc) -> Node:
        text: str = raw.value
        if raw.tag == _STR:
            return self._text(raw, loc)
        if raw.tag not in _CORE_SCHEMA:
            return self._unknown_tag(raw, loc)
        if not _CORE_SCHEMA[raw.tag][0].match(text):
            message = f"{quoted(text)} does not fit its tag {raw.tag.replace(_TAG, '!!')}"
            return self._unreadable(raw, loc, "wrong-tag", message)
        if raw.tag == _INT and len(text) > _MAX_DIGITS:
            return self._unreadable(raw, loc, "too-many-digits", f"a number of more than {_MAX_DIGITS} digits")
        return Node(_place(raw), _number(raw.tag, text), text)

    def _text(self, raw: yaml.ScalarNode, loc: Loc) -> Node:
        text: str = raw.value
        if _FORBIDDEN.search(text):
            return self._unreadable(raw, loc, "unprintable", _UNPRINTABLE_TEXT)
        if self._environ is None:
            return Node(_place(raw), text, text)
        replaced, spans, problems = _substitute(text, self._environ)
        keys = [part for part in loc if isinstance(part, str)]
        register_values(keys[-1] if keys else "", replaced, spans)
        for code, message in problems:
            self._fault(raw, loc, code, message)
        return Node(_place(raw), Unreadable() if problems else replaced, text)

    def _unknown_tag(self, raw: yaml.Node, loc: Loc) -> Node:
        tag = quoted(raw.tag.replace(_TAG, "!!"))
        message = f"the tag {tag} is not supported (text that starts with '!' needs quotes)"
        return self._unreadable(raw, loc, "unknown-tag", message)

    def _oversized(self, raw: yaml.Node, loc: Loc, limit: str) -> Node:
        self.oversized = True
        return self._unreadable(raw, loc, "too-many-aliases", f"with its aliases expanded, this exceeds {limit}")

    def _unreadable(self, raw: yaml.Node, loc: Loc, code: str, message: str) -> Node:
        self._fault(raw, loc, code, message)
        return Node(_place(raw), Unreadable())

    def _fault(self, raw: yaml.Node, loc: Loc, code: str, message: str) -> None:
        self.faults.append(Fault(*_place(raw), dotted(loc), code, message))


def _place(raw: yaml.Node) -> Place:
    return Place(raw.start_mark.line + 1, raw.start_mark.column + 1)


def _size(parts: Sequence[Node]) -> int:
    return 1 + sum(part.size for part in parts)


def _depth(parts: Sequence[Node]) -> int:
    return 1 + max((part.depth for part in parts), default=0)


def _number(tag: str, text: str) -> int | float | bool | None:
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _substitute(text: str, environ: Mapping[str, str]) -> tuple[str, list[Span], list[tuple[str, str]]]:
    """Replace every ``${NAME}`` with the value from `environ`, and ``$${`` with ``${``.

    Return the text, the place of each value in it, and an error code and a message for each ``${...}`` that is invalid
    or has no usable value.
    """
    replaced, spans, problems = "", [], []
    copied = 0
    for match in _REFERENCE.finditer(text):
        replaced += text[copied : match.start()]
        copied = match.end()
        if match["escaped"]:
            replaced += "${"
            continue
        setting = environ.get(match["name"] or "") or ""
        problems += _problems(match, environ)
        spans.append((len(replaced), len(replaced) + len(setting)))
        replaced += setting
    return replaced + text[copied:], spans, problems


def _problems(match: re.Match[str], environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the error code and message if a ``${NAME}`` is invalid or has no usable value, else an empty list."""
    if match["broken"]:
        message = "'${' starts an environment variable: expected ${NAME}, or $${ for the two characters themselves"
        return [("invalid-variable", message)]
    variable, setting = f"the environment variable {match['name']}", environ.get(match["name"])
    if setting is None:
        return [("unset-variable", f"{variable} is not set (export it, or write $${{ for a plain ${{)")]
    if not setting:
        return [("empty-variable", f"{variable} is empty")]
    if UNPRINTABLE.search(setting):
        return [("unprintable-variable", f"{variable} contains a line break or a control character")]
    return []
