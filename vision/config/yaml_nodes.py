"""YAML nodes, composed by PyYAML with the core schema of YAML 1.2, and explanations of syntax errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import yaml

from vision.config.document import Fault, Place, render
from vision.errors import ConfigError

MAX_DEPTH: Final = 32

NULL: Final = "tag:yaml.org,2002:null"
BOOL: Final = "tag:yaml.org,2002:bool"
INT: Final = "tag:yaml.org,2002:int"
FLOAT: Final = "tag:yaml.org,2002:float"
STR: Final = "tag:yaml.org,2002:str"
SEQ: Final = "tag:yaml.org,2002:seq"
MAP: Final = "tag:yaml.org,2002:map"

# YAML 1.2.2, section 10.3.2.
CORE_SCHEMA: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    NULL: (re.compile(r"(?:~|null|Null|NULL|)\Z"), "~nN"),
    BOOL: (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    INT: (re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), "-+0123456789"),
    FLOAT: (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML loader that composes nodes only, with a limit of depth."""

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


for _tag, (_pattern, _first) in CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(_tag, _pattern, [*_first, *([""] if _tag == NULL else [])])

# PyYAML's texts and their explanations. The first match counts.
_SYNTAX: Final = (
    ("mapping values are not allowed", "a second ':' in this line: put quotes around text that contains ': '"),
    (r"found character '\\t'", "a tab: YAML is indented with spaces"),
    ("found character", "text that begins with this character needs quotes"),
    ("expected ',' or.*but got ':'", "quote text that ends with ':' or holds ': ' here, or close the bracket"),
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


def compose(text: str, name: str) -> yaml.Node:
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
