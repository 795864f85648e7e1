"""`with_value`, which changes one value in the text of a YAML file, and keeps the comments, order, and spelling.

PyYAML reports the place of each value, so the module replaces only the text of the parts that differ. If this is not
possible, it replaces the whole value, whose comments are lost. In both cases, it parses the new text again. It refuses
the change if no text has exactly the requested content, for example because a value is an alias.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from vision.config.wording import Loc, dotted
from vision.config.yaml_reader import parse_document
from vision.errors import ConfigError

_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_NOT_TEXT: Final = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # also for readers of YAML 1.1
_ONLY_KEY: Final = re.compile(r" *[A-Za-z_]\w*: *")
_INDENT: Final = 2


def with_value(text: str, loc: Sequence[str], value: Any) -> str:
    """Return `text`, the text of a YAML file, with `value` at the place `loc`. Missing parents are added.

    Raises:
        ConfigError: the text is not valid, or the place cannot be changed without a change elsewhere.
    """
    document = parse_document(text, "")
    if document.faults:
        raise document.error(document.faults)
    before = document.plain()
    wanted = _replaced(before, loc, value)
    if before == wanted:
        return text
    for whole in (False, True):
        try:
            changed = _Edits(text).changed(before, wanted, tuple(loc) if whole else ())
            if parse_document(changed, "").plain() == wanted:
                return changed
        except (ConfigError, yaml.YAMLError):
            continue
    text = f"{dotted(tuple(loc))} cannot be changed automatically, for example because it uses an alias (*)"
    raise ConfigError(text, hint="change it with an editor of text", code="not-editable")


def as_yaml(value: Mapping[str, Any]) -> str:
    """Return keys and values as the text of a YAML file."""
    return "\n".join(_lines(_frozen(value), 0)) + "\n"


def _frozen(value: Any) -> Any:
    """Return a copy of a value with tuples instead of lists, as in the result of `Document.plain`."""
    if isinstance(value, Mapping):
        return {key: _frozen(each) for key, each in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _replaced(content: Any, loc: Sequence[str], value: Any) -> Any:
    if not loc:
        return _frozen(value)
    below = content if isinstance(content, dict) else {}
    return {**below, loc[0]: _replaced(below.get(loc[0]), loc[1:], value)}


class _Edits:
    """Replacements in a text, from which the new text is built."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._edits: list[tuple[int, int, str]] = []  # start, end, and replacement

    def changed(self, before: Any, wanted: Any, whole: Loc = ()) -> str:
        """Return the text, changed so that its content is `wanted`. Its current content is `before`.

        If `whole` is not empty, replace the value at this place as a whole. Comments in it are lost.
        """
        root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        assert root is not None
        if not whole:
            self._change(root, before, wanted)
        else:
            node: yaml.Node = root
            for key in whole:
                entries = node.value if isinstance(node, yaml.MappingNode) else []
                node = next((value for name, value in entries if name.value == key), node)
                wanted = wanted[key]
            self._replace(node, wanted)
        parts, copied = [], 0
        for start, end, replacement in sorted(self._edits, key=lambda edit: edit[0]):
            parts += [self._text[copied:start], replacement.replace("\n", self._newline)]
            copied = end
        return "".join(parts) + self._text[copied:]

    def _change(self, node: yaml.Node, before: Any, wanted: Any) -> None:
        if before == wanted:
            return
        if isinstance(node, yaml.MappingNode) and isinstance(wanted, dict) and self._change_keys(node, before, wanted):
            return
        if isinstance(node, yaml.SequenceNode) and isinstance(wanted, tuple):
            pairs = _pairs(before, wanted)
            if pairs is not None and self._change_entries(node, before, wanted, pairs):
                return
        self._replace(node, wanted)

    def _change_keys(self, node: yaml.MappingNode, before: dict[str, Any], wanted: dict[str, Any]) -> bool:
        """Change the differing keys of a mapping. Return False if the whole mapping must be replaced."""
        nodes = {key.value: (key, value) for key, value in node.value}
        removed, added = [key for key in before if key not in wanted], [key for key in wanted if key not in nodes]
        is_flow = bool(node.flow_style)
        if any(key not in nodes for key in removed) or not wanted or not nodes or (is_flow and removed):
            return False
        if any(not self._is_first(nodes[key][0].start_mark) for key in removed):
            return False
        for key, value in wanted.items():
            if key in nodes:
                self._change(nodes[key][1], before.get(key), value)
        for key in removed:
            self._remove_lines(nodes[key][0].start_mark, self._end(nodes[key][1], nodes[key][0]))
        if added and is_flow:
            end = node.end_mark.index - 1
            self._edits.append((end, end, "".join(f", {key}: {_flow(wanted[key])}" for key in added)))
        elif added:
            key, value = node.value[-1]
            indent = node.value[0][0].start_mark.column
            lines = _lines({each: wanted[each] for each in added}, indent)
            self._insert_lines(self._end(value, key), lines)
        return True

    def _change_entries(
        self, node: yaml.SequenceNode, before: tuple[Any, ...], wanted: tuple[Any, ...], pairs: dict[int, int]
    ) -> bool:
        """Change the differing entries of a list. Return False if the whole list must be replaced.

        For each entry that is in both lists, `pairs` maps its index in `wanted` to its index in `before`.
        """
        if not pairs or (node.flow_style and not len(pairs) == len(before) == len(wanted)):
            return False
        kept = set(pairs.values())
        starts = [self._text.rfind("-", 0, entry.start_mark.index) for entry in node.value]
        if not node.flow_style and any(self._line_start(start) + node.start_mark.column != start for start in starts):
            return False
        for new, old in pairs.items():
            self._change(node.value[old], before[old], wanted[new])
        for index, entry in enumerate(node.value):
            if index not in kept:
                self._remove_lines(node.start_mark, self._end(entry, None), starts[index])
        added = [_frozen(value) for index, value in enumerate(wanted) if index not in pairs]
        lines = [" " * node.start_mark.column + "- " + _flow(value) for value in added]
        if lines:
            self._insert_lines(self._end(node.value[-1], None), lines)
        return True

    def _replace(self, node: yaml.Node, value: Any) -> None:
        start, end = node.start_mark.index, self._end(node, None)
        column = node.start_mark.column
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        if is_block:
            end = self._line_end(end)  # a comment there is about the last value
        if is_block and _is_block_value(value):
            lines = _lines(value, column) if isinstance(value, dict) else _entries(value, column)
            self._edits.append((start, end, "\n".join(lines).lstrip()))
            return
        if is_block:
            start = len(self._text[:start].rstrip())  # behind the colon, because a list can be as far left as its key
        before = self._text[self._line_start(start) : start]
        if _is_block_value(value) and isinstance(value, dict) and not node.value and _ONLY_KEY.fullmatch(before):
            indent = len(before) - len(before.lstrip()) + _INDENT
            colon = self._line_start(start) + len(before.rstrip())
            self._edits.append((colon, end, "\n" + "\n".join(_lines(value, indent))))
            return
        separator = " " if start and self._text[start - 1] in ":-" else ""
        self._edits.append((start, end, separator + _flow(value)))

    # --- places -------------------------------------------------------------------------------------------------------

    def _end(self, node: yaml.Node, key: yaml.Node | None) -> int:
        """Return the index in the text after the last character of a value. For an alias, use the end of its key."""
        if key is not None and node.start_mark.index < key.end_mark.index:
            return int(key.end_mark.index)
        if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
            last_key, last = node.value[-1]
            return self._end(last, last_key)
        if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
            return self._end(node.value[-1], None)
        written = self._text[node.start_mark.index : node.end_mark.index]
        return int(node.start_mark.index) + len(written.rstrip())

    def _line_start(self, index: int) -> int:
        return self._text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        end = self._text.find("\n", index)
        end = len(self._text) if end < 0 else end
        return end - 1 if self._text[end - 1 : end] == "\r" and end > index else end

    def _is_first(self, mark: yaml.Mark) -> bool:
        """Return True if there are only spaces before a place in its line."""
        return not self._text[self._line_start(mark.index) : mark.index].strip()

    def _remove_lines(self, mark: yaml.Mark, end: int, start: int | None = None) -> None:
        first = self._line_start(mark.index if start is None else start)
        last = self._line_end(end)
        if first == 0:
            self._edits.append((0, min(last + len(self._newline), len(self._text)), ""))
        else:
            self._edits.append((self._line_end(first - len(self._newline)), last, ""))

    def _insert_lines(self, end: int, lines: Sequence[str]) -> None:
        place = self._line_end(end)
        self._edits.append((place, place, "".join(f"\n{line}" for line in lines)))


def _pairs(before: Any, wanted: Sequence[Any]) -> dict[int, int] | None:
    """Return the index in `before` of each entry of `wanted` that is in both lists, by its index in `wanted`.

    Entries with the same name are the same entry. If both lists have the same length, an entry with a new name replaces
    the entry at its place. Return None if the entries have no unique names, or if their order must change.
    """
    if not isinstance(before, tuple) or not all(isinstance(each, dict) for each in (*before, *wanted)):
        return None
    old, new = [each.get("name") for each in before], [each.get("name") for each in wanted]
    if len(set(map(str, old))) < len(old) or len(set(map(str, new))) < len(new):
        return None
    if len(old) == len(new) and all(a == b or (a not in new and b not in old) for a, b in zip(old, new, strict=True)):
        return {index: index for index in range(len(new))}
    pairs = {index: old.index(name) for index, name in enumerate(new) if name in old}
    in_order = sorted(pairs.values()) == list(pairs.values()) and [*pairs] == list(range(len(pairs)))
    return pairs if in_order else None


# --- text of values ---------------------------------------------------------------------------------------------------


def _is_block_value(value: Any) -> bool:
    """Return True if a value is written on several lines: a mapping with mappings or lists, or a list with mappings."""
    if isinstance(value, dict):
        return any(isinstance(each, dict | tuple) for each in value.values())
    return isinstance(value, tuple) and any(isinstance(each, dict) for each in value)


def _lines(content: dict[str, Any], indent: int) -> list[str]:
    lines = []
    for key, value in content.items():
        start = " " * indent + f"{_flow(key)}:"
        if not _is_block_value(value):
            lines.append(f"{start} {_flow(value)}")
        elif isinstance(value, dict):
            lines += [start, *_lines(value, indent + _INDENT)]
        else:
            lines += [start, *_entries(value, indent + _INDENT)]
    return lines


def _entries(entries: tuple[Any, ...], indent: int) -> list[str]:
    return [" " * indent + "- " + _flow(entry) for entry in entries]


def _flow(value: Any) -> str:
    """Return the YAML text of a value, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return json.dumps(value)
