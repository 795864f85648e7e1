"""Values of YAML nodes with their places: ``${NAME}``, merges, duplicate keys, and limits of aliases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import yaml

from vision.config.document import Fault, Node, Place, Unreadable
from vision.config.wording import Loc, dotted, quoted
from vision.config.yaml_nodes import BOOL, CORE_SCHEMA, FLOAT, INT, MAP, MAX_DEPTH, NULL, SEQ, STR

MAX_VALUES: Final = 100_000
"""Maximum number of values with aliases expanded: a few lines of nested aliases can exceed any memory."""

_MAX_DIGITS: Final = 40

_REFERENCE: Final = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<broken>\$\{)")
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FORBIDDEN_IN_SECRET: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class NodeBuilder:
    """Builder of `Node` objects that collects the faults of YAML nodes. An aliased node is built once."""

    def __init__(self, environ: Mapping[str, str] | None) -> None:
        self.faults: list[Fault] = []
        self.oversized = False
        self._environ = environ
        self._built: dict[int, tuple[Node, int, int]] = {}  # with its number of values, and its depth
        self._open: set[int] = set()

    def build(self, raw: yaml.Node, loc: Loc) -> Node:
        return self._sized(raw, loc)[0]

    def _sized(self, raw: yaml.Node, loc: Loc) -> tuple[Node, int, int]:
        built = self._built.get(id(raw))
        if built is not None:
            return built
        place = _place(raw)
        if id(raw) in self._open:
            return self._unreadable(place, loc, "contains itself, by a '*' alias"), 1, 1
        if len(loc) > MAX_DEPTH:  # aliases of what stands in keys and merges, which is built late
            return self._oversized(place, loc, f"more than {MAX_DEPTH} levels"), 1, 1
        self._open.add(id(raw))
        sized = self._build_sized(raw, place, loc)
        self._open.remove(id(raw))
        self._built[id(raw)] = sized
        return sized

    def _build_sized(self, raw: yaml.Node, place: Place, loc: Loc) -> tuple[Node, int, int]:
        if isinstance(raw, yaml.ScalarNode):
            return self._scalar(raw, place, loc), 1, 1
        parts: list[tuple[Node, int, int]]
        if isinstance(raw, yaml.SequenceNode) and raw.tag == SEQ:
            parts = [self._sized(child, (*loc, index)) for index, child in enumerate(raw.value)]
            node = Node(place, tuple(part[0] for part in parts))
        elif isinstance(raw, yaml.MappingNode) and raw.tag == MAP:
            node, parts = self._mapping(raw, place, loc)
        else:
            return self._unreadable(place, loc, _unknown_tag(raw.tag)), 1, 1
        size = 1 + sum(part[1] for part in parts)
        depth = 1 + max((part[2] for part in parts), default=0)
        if size > MAX_VALUES or depth > MAX_DEPTH:
            limit = f"more than {MAX_VALUES} values" if size > MAX_VALUES else f"more than {MAX_DEPTH} levels"
            return self._oversized(place, loc, limit), 1, 1
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
        """Yield the mappings that ``<<`` adds. The first one has precedence."""
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
        if raw.tag != STR:
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
        if raw.tag == STR:
            return self._text(text, place, loc)
        if raw.tag not in CORE_SCHEMA:
            return self._unreadable(place, loc, _unknown_tag(raw.tag))
        if not CORE_SCHEMA[raw.tag][0].match(text):
            return self._unreadable(place, loc, f"{quoted(text)} does not fit its tag !!{raw.tag.rpartition(':')[2]}")
        if raw.tag == INT and len(text) > _MAX_DIGITS:
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

    def _oversized(self, place: Place, loc: Loc, limit: str) -> Node:
        self.oversized = True
        return self._unreadable(place, loc, f"aliases make {limit} of this")

    def _fault(self, place: Place, loc: Loc, text: str) -> None:
        self.faults.append(Fault(place, dotted(loc), text))


def _place(raw: yaml.Node) -> Place:
    return Place(raw.start_mark.line + 1, raw.start_mark.column + 1)


def _unknown_tag(tag: str) -> str:
    short = quoted(tag.replace("tag:yaml.org,2002:", "!!"))
    return f"the tag {short} means nothing here (text that begins with '!' needs quotes)"


def _number(tag: str, text: str) -> int | float | bool | None:
    if tag == NULL:
        return None
    if tag == BOOL:
        return text.lower() == "true"
    if tag == FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _substitute(text: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """Replace every ``${NAME}`` once. Return the text, and the faults of the variables without their values."""
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
        setting = environ.get(name)
        if setting is None:
            problems.append(f"the environment variable {name} is not set (export it, or write $${{ for a plain ${{)")
        elif not setting:
            problems.append(f"the environment variable {name} is empty")
        elif _FORBIDDEN_IN_SECRET.search(setting):
            problems.append(
                f"the environment variable {name} holds a line break or another character that cannot be printed"
            )
        return setting or ""

    return _REFERENCE.sub(value, text), problems
