"""YAML to data with lines, and ${NAME} to secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.config.fault_lines import fault_lines
from vision.config import load_config_text
from vision.config.document import Document
from vision.config.document_reader import MAX_BYTES, parse_document, read_document
from vision.config.wording import Loc
from vision.config.yaml_nodes import MAX_DEPTH
from vision.config.yaml_values import MAX_VALUES
from vision.errors import ConfigError

BRACKET = "an open bracket, a missing comma, or text with , [ ] { } without quotes, such as ${NAME}"

TEXT = """\
# a comment
cameras:
  - id: gate   # first
    source: "rtsp://a"
  - {id: höf, source: b,
     classes: [x, y]}
"""


def parse(text: str, environ: dict[str, str] | None = None) -> Document:
    return parse_document(text, "camera.yaml", environ)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("loc", "place"),
    [
        (("cameras",), (2, 1)),
        (("cameras", 0), (3, 5)),
        (("cameras", 0, "source"), (4, 5)),
        (("cameras", 1, "id"), (5, 6)),
        (("cameras", 1, "classes"), (6, 6)),
        (("cameras", 1, "classes", 1), (6, 19)),
        (("cameras", 1, "transport"), (5, 5)),
        (("publish", "bind"), (2, 1)),
    ],
)
def test_every_key_and_value_has_a_place(loc: Loc, place: tuple[int, int], ending: str) -> None:
    found = parse(TEXT.replace("\n", ending)).place(loc)
    assert (found.line, found.column) == place


def test_value_has_a_place_apart_from_its_key() -> None:
    node = parse("a:\n  - b").node(("a",))
    assert node is not None
    assert (node.place.line, node.place.column) == (2, 3)


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("NO", "NO"),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-7", -7),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.INF", float("-inf")),
        ("1.2.3", "1.2.3"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("!!int '12'", 12),
        ("!!float 1", 1.0),
        ('"a\\tb"', "a\tb"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("<<", "<<"),
        ("[1, [a]]", (1, ("a",))),
        ("{b: {c: 1}}", {"b": {"c": 1}}),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, value: object) -> None:
    data = parse(f"a: {scalar}").plain()
    assert data == {"a": value}
    assert type(data["a"]) is type(value)


def test_nan_is_read() -> None:
    value = parse("a: .nan").plain()["a"]
    assert value != value  # noqa: PLR0124


def test_aliases_and_merges_keep_the_original_place() -> None:
    text = "a: &one {x: 1, y: 2}\nb: &two {y: 5, z: 6}\nc: *one\nd: {<<: [*one, *two], x: 3}\ne:\n  <<: *two\n  w: 0\n"
    document = parse(text)
    assert document.faults == ()
    one, two = {"x": 1, "y": 2}, {"y": 5, "z": 6}
    assert document.plain() == {"a": one, "b": two, "c": one, "d": {"x": 3, "y": 2, "z": 6}, "e": {**two, "w": 0}}
    assert document.place(("d", "y")).line == 1
    assert document.place(("d", "x")).line == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "camera.yaml:3: a: a second time; the first is on line 1"),
        ("1: a", "camera.yaml:1: expected a name as key, got '1', which YAML does not read as text (add quotes)"),
        (
            "x:\n  ~: a",
            "camera.yaml:2: x: expected a name as key, got '~', which YAML does not read as text (add quotes)",
        ),
        ("[a]: b", "camera.yaml:1: expected a name as key, got a list or a mapping (is { } meant as text?)"),
        ('"a\\e": b', "camera.yaml:1: a key with a character that cannot be printed"),
        ('a: "\\0"', "camera.yaml:1: a: a character that cannot be printed"),
        ('a: "\\ud800"', "camera.yaml:1: a: a character that cannot be printed"),
        (
            "a: !thing b",
            "camera.yaml:1: a: the tag '!thing' means nothing here (text that begins with '!' needs quotes)",
        ),
        (
            "a: !!set {b}",
            "camera.yaml:1: a: the tag '!!set' means nothing here (text that begins with '!' needs quotes)",
        ),
        ("a: !!python/name:os.system x", "camera.yaml:1: a: the tag '!!python/name:os.system' means nothing here"),
        ("a: !!int x", "camera.yaml:1: a: 'x' does not fit its tag !!int"),
        ("a: " + "9" * 5000, "camera.yaml:1: a: a number of more than 40 digits"),
        ("a: &b [1, *b]", "camera.yaml:1: a[1]: contains itself, by a '*' alias"),
        ("a: &b {<<: *b}", "camera.yaml:1: a.<<: contains itself, by a '*' alias"),
        ("a: {<<: 5}", "camera.yaml:1: a.<<: expected an alias of keys and values, such as <<: *name"),
        ("a: {<<: [5]}", "camera.yaml:1: a.<<: expected an alias of keys and values, such as <<: *name"),
    ],
)
def test_fault_of_one_value_leaves_the_rest_readable(text: str, message: str) -> None:
    document = parse(f"{text}\nlast: 1")
    assert document.plain()["last"] == 1
    (fault,) = document.faults
    where = f"{fault.where}: " if fault.where else ""
    assert f"camera.yaml:{fault.place.line}: {where}{fault.text}".startswith(message)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "camera.yaml: empty; expected keys and values (key: value)"),
        ("# nothing\n", "camera.yaml: empty; expected keys and values (key: value)"),
        ("- a", "camera.yaml:1: expected keys and values (key: value), got a list"),
        ("\nhello", "camera.yaml:2: expected keys and values (key: value), got a single value"),
        (
            "a: 1\nb: c: d",
            "camera.yaml:2: not valid YAML: a second ':' in this line: put quotes around text that contains ': '",
        ),
        ("a:\n\tb: 1", "camera.yaml:2: not valid YAML: a tab: YAML is indented with spaces"),
        ("a: @b", "camera.yaml:1: not valid YAML: text that begins with this character needs quotes"),
        ("a: [1,\n 2", f"camera.yaml:2: not valid YAML: {BRACKET} (in the block that begins on line 1)"),
        ("{a: ${X}}", "camera.yaml:1: not valid YAML: an open bracket"),
        ("a: 'b\n", "camera.yaml:2: not valid YAML: a quote is opened and not closed (in the"),
        ("a: [", "camera.yaml:1: not valid YAML: a bracket or quote is opened and not closed"),
        ("a:\n  - b: 1\n   c: 2", "camera.yaml:3: not valid YAML: the indentation does not fit the lines above"),
        ("a:\n  - b: 1\n     c: 2", "camera.yaml:3: not valid YAML: the indentation does not fit the line above"),
        ("a:\n  - b: 1\n  c: 2", "camera.yaml:3: not valid YAML: a key where a '-' is expected"),
        ("a:\n  b: 1\n  - c: 2", "camera.yaml:3: not valid YAML: a '-' where a key is expected"),
        ("a: {b: c:, d: 1}", "camera.yaml:1: not valid YAML: quote text that ends with ':'"),
        ("a: 'b' c", "camera.yaml:1: not valid YAML: text after a closing quote"),
        (" a: 1\nb: 2", "camera.yaml:2: not valid YAML: the indentation does not fit the lines above"),
        ("a: *b", "camera.yaml:1: not valid YAML: '*' needs a name that '&' has given above"),
        ("a: *:5555", "camera.yaml:1: not valid YAML: "),
        ('a: "\\d"', "camera.yaml:1: not valid YAML: an unknown '\\' sequence: text with '\\' goes in single quotes"),
        ('a: "\\xZZ"', "camera.yaml:1: not valid YAML: a '\\' sequence is cut short"),
        ('a:\n b: "\\U00110000"', "camera.yaml:2: not valid YAML: a number or character code out of range"),
        ("a: 1\n---\nb: 2", "camera.yaml:2: not valid YAML: a second document begins (---); expected one"),
        ("a: 1\nb: \x07", "camera.yaml:2: not valid YAML: a character that cannot be printed"),
        ("a: " + "[" * (MAX_DEPTH + 1), f"camera.yaml:1: not valid YAML: nested more than {MAX_DEPTH} levels deep"),
        ("a: " + "[" * 100_000, f"camera.yaml:1: not valid YAML: nested more than {MAX_DEPTH} levels deep"),
    ],
)
def test_invalid_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert fault_lines(str(caught.value))[0].startswith(message)


def nested_aliases(levels: int, times: int) -> str:
    lines = ["a0: &a0 [1]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * times)}]" for at in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (nested_aliases(9, 9), f"more than {MAX_VALUES} values"),
        (nested_aliases(MAX_DEPTH + 2, 1), f"more than {MAX_DEPTH} levels"),
        # chains that stand in keys, which no value visits before its last link
        (
            "\n".join(["? &a0 [1]\n: 1", *(f"? &a{at} [*a{at - 1}]\n: 1" for at in range(1, 400)), "x: *a399"]),
            f"more than {MAX_DEPTH} levels",
        ),
    ],
)
def test_expanded_aliases_are_limited(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse(text)


def test_document_within_the_limits_is_read() -> None:
    assert parse(nested_aliases(MAX_DEPTH - 2, 1)).faults == ()
    assert parse("a: " + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)).faults == ()


# --- the environment --------------------------------------------------------------------------------------------------

ENVIRON = {
    "USER_NAME": "kim",
    "PASSWORD": "s3same",
    "EMPTY": "",
    "LINES": "s3same\n",
    "NESTED": "${PASSWORD}",
    "_x1": "y",
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${PASSWORD}", "s3same"),
        ("rtsp://${USER_NAME}:${PASSWORD}@h", "rtsp://kim:s3same@h"),
        ("$${PASSWORD}", "${PASSWORD}"),
        ("$$${PASSWORD}", "$${PASSWORD}"),
        ("$${PASSWORD} ${PASSWORD}", "${PASSWORD} s3same"),
        ("$PASSWORD $ $$ $1 {PASSWORD}", "$PASSWORD $ $$ $1 {PASSWORD}"),
        ("${NESTED}", "${PASSWORD}"),
        ("${_x1}", "y"),
    ],
)
def test_variables_are_replaced_in_text(text: str, value: str) -> None:
    document = parse(f"a: ['{text}']\n'{text}': 1", ENVIRON)
    assert document.faults == ()
    assert document.plain() == {"a": (value,), text: 1}  # keys stay as they are
    assert parse(f"a: '{text}'").plain() == {"a": text}  # and without an environment so does everything


def test_variable_is_always_text() -> None:
    assert parse("a: ${N}\nb: ${L}", {"N": "5", "L": "[1]: x"}).plain() == {"a": "5", "b": "[1]: x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NOT_SET}", "the environment variable NOT_SET is not set (export it, or write $${ for a plain ${)"),
        ("${password}", "the environment variable password is not set (export it, or write $${ for a plain ${)"),
        ("${EMPTY}", "the environment variable EMPTY is empty"),
        ("${LINES}", "the environment variable LINES holds a line break or another character that cannot be printed"),
        (
            "${PASSWORD",
            "'${' begins an environment variable: expected ${NAME}, or $${ for the two characters themselves",
        ),
        ("${}", "'${' begins an environment variable: expected ${NAME}, or $${ for the two characters themselves"),
        ("${A:-b}", "'${' begins an environment variable: expected ${NAME}, or $${ for the two characters themselves"),
        ("${1A}", "'${' begins an environment variable: expected ${NAME}, or $${ for the two characters themselves"),
    ],
)
def test_unusable_variable_is_refused(text: str, message: str) -> None:
    document = parse(f"\na:\n  - b: 'x {text} ${{PASSWORD}}'", ENVIRON)
    assert [(fault.place.line, fault.where, fault.text) for fault in document.faults] == [(3, "a[0].b", message)]
    assert "s3same" not in repr(document.plain())


def test_values_are_shown_as_written() -> None:
    url = "rtsp://kim:pa/ss'word@host/${PASSWORD}?token=abc"
    document = parse(f"a: '${{PASSWORD}}'\nb: \"{url}\"\nc: 0x10\nd: [1]\ne: {{}}\nf:\ng: 'x'\nh: []", ENVIRON)
    shown = {key: document.shown((key,)) for key in document.plain()}
    assert shown == {
        "a": "'${PASSWORD}'",
        "b": "'rtsp://***@host/${PASSWORD}?token=***'",
        "c": "0x10",
        "d": "a list of 1",
        "e": "keys and values",
        "f": "nothing",
        "g": "'x'",
        "h": "an empty list",
    }
    assert document.shown(("not", "there")) == "nothing"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + "a: höf".encode())
        document = read_document(path)
        assert document.plain() == {"a": "höf"}
        assert document.place(("a",)).column == 1
        assert document.name == str(path)


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value).replace(str(path.parent), "DIR")


def test_missing_file_suggests_a_neighbour(tmp_path: Path) -> None:
    assert refusal(tmp_path / "camera.yaml") == (
        "DIR/camera.yaml: no such file\n  hint: vision run demo runs a shipped configuration"
    )
    (tmp_path / "cameras.yaml").touch()
    assert refusal(tmp_path / "camera.yaml") == "DIR/camera.yaml: no such file\n  hint: did you mean 'cameras.yaml'?"
    assert "no such file" in refusal(tmp_path / "no" / "folder" / "camera.yaml")


def test_folder_suggests_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    assert refusal(folder) == (
        "DIR/site: a folder; expected a YAML file\n  hint: name the file itself, such as camera.yaml"
    )
    (folder / "shop.yaml").touch()
    (folder / "yard.yml").touch()
    assert refusal(folder).endswith("hint: name the file itself: DIR/site/shop.yaml or DIR/site/yard.yml")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_file_without_permission_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.touch()
    path.chmod(0)
    with as_nobody():
        message = refusal(path)
    assert message.startswith("DIR/camera.yaml: permission denied\n  hint: change its owner or mode")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/self/mem", "cannot be read: Input/output error"),
        ("a\0b.yaml", "cannot be read: not a file name"),
        ("x" * 300 + ".yaml", "cannot be read: File name too long"),
        ("/dev/null/camera.yaml", "cannot be read: Not a directory"),
    ],
)
def test_unreadable_file_is_reported(path: str, reason: str) -> None:
    assert reason in refusal(Path(path))


@pytest.mark.integration
def test_too_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_bytes(b"#" * MAX_BYTES)
    assert "empty" in refusal(path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert refusal(path) == "DIR/camera.yaml: larger than 1024 KiB; expected a configuration in YAML"
    assert "larger than" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: 1\nb: \xff\xfe\n", "DIR/camera.yaml:2: byte 8 is not UTF-8 text"),
        ("a: höf".encode("latin-1"), "DIR/camera.yaml:1: byte 4 is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "DIR/camera.yaml:1: byte 0 is not UTF-8 text"),
    ],
)
def test_other_encoding_is_refused_with_its_line(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "camera.yaml"
    path.write_bytes(raw)
    assert refusal(path) == f"{message}\n  hint: save the file in the encoding UTF-8"


# --- the line of a fault ----------------------------------------------------------------------------------------------


def refused_lines(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config_text(text, {})
    return str(caught.value).splitlines()


def test_single_fault_shows_its_line_and_column() -> None:
    fault, line, caret = refused_lines("cameras:\n  - {id: a, source: csi:0, fps: -1}\n")
    assert fault.startswith("camera.yaml:2:28: cameras[0].fps: ")
    assert line == "      - {id: a, source: csi:0, fps: -1}"
    assert line[caret.index("^") :].startswith("fps: -1")


def test_column_is_left_out_for_the_first_key_of_a_line() -> None:
    fault, _, caret = refused_lines("cameras:\n  - id: a\n    source: csi:0\n    fps: -1\n")
    assert fault.startswith("camera.yaml:4: ")
    assert caret == " " * 8 + "^"


def test_many_faults_show_no_lines() -> None:
    assert len(refused_lines("cameras:\n  - {id: a, source: csi:0, fps: -1, loop: 5}\n")) == 2


def test_long_line_is_cut_around_the_column() -> None:
    _, line, caret = refused_lines(f"cameras: [{{id: a, source: csi:0, {' ' * 500}fps: -1, width: 64, height: 64}}]")
    assert len(line) <= 104
    assert line[caret.index("^") :].startswith("fps: -1")


@pytest.mark.parametrize("part", ["source: 'rtsp://me:${X}@h/', fps: -1", "source: 'http://h/?token=1', fps: a"])
def test_line_that_may_hold_a_secret_is_not_shown(part: str) -> None:
    assert not any(line.startswith("    ") for line in refused_lines(f"cameras: [{{id: a, {part}}}]"))


def test_yaml_error_shows_its_line() -> None:
    _, line, caret = refused_lines("cameras:\n  - id: a\n   source: csi:0\n")
    assert (line, caret) == ("       source: csi:0", " " * 7 + "^")
