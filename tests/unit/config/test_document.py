"""Tests of the YAML reader: values with their positions, the replacement of ${NAME}, and faults of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.unit.config.faults import FaultKey, fault_keys
from vision.config import load_config_text
from vision.config.document import Document
from vision.config.wording import Loc
from vision.config.yaml_reader import MAX_BYTES, MAX_DEPTH, MAX_VALUES, parse_document, read_document
from vision.errors import ConfigError, Unavailable


def pyyaml_problem(text: str) -> str | None:
    """Return the problem that PyYAML reports about `text`, or None if the report does not help a user."""
    try:
        yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        return error.problem
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        pass
    return None


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
    assert parse(TEXT.replace("\n", ending)).place(loc) == place


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
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", (3, "a", "duplicate-key")),
        ("1: a", (1, "", "invalid-key")),
        ("x:\n  ~: a", (2, "x", "invalid-key")),
        ("[a]: b", (1, "", "invalid-key")),
        ('"a\\e": b', (1, "", "invalid-key")),
        ('a: "\\0"', (1, "a", "unprintable")),
        ('a: "\\ud800"', (1, "a", "unprintable")),
        ("a: !thing b", (1, "a", "unknown-tag")),
        ("a: !!set {b}", (1, "a", "unknown-tag")),
        ("a: !!python/name:os.system x", (1, "a", "unknown-tag")),
        ("a: !!int x", (1, "a", "wrong-tag")),
        ("a: " + "9" * 5000, (1, "a", "too-many-digits")),
        ("a: &b [1, *b]", (1, "a[1]", "alias-of-itself")),
        ("a: &b {<<: *b}", (1, "a.<<", "alias-of-itself")),
        ("a: {<<: 5}", (1, "a.<<", "invalid-merge")),
        ("a: {<<: [5]}", (1, "a.<<", "invalid-merge")),
    ],
)
def test_fault_of_one_value_leaves_the_rest_readable(text: str, expected: FaultKey) -> None:
    document = parse(f"{text}\nlast: 1")
    assert document.plain()["last"] == 1
    (fault,) = document.faults
    assert (fault.line, fault.key, fault.code) == expected


@pytest.mark.integration
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, "empty")),
        ("# nothing\n", (0, "empty")),
        ("- a", (1, "no-mapping")),
        ("\nhello", (2, "no-mapping")),
        ("a: 1\nb: c: d", (2, "invalid-yaml")),
        ("a:\n\tb: 1", (2, "invalid-yaml")),
        ("a: @b", (1, "invalid-yaml")),
        ("a: [1,\n 2", (2, "invalid-yaml")),
        ("{a: ${X}}", (1, "invalid-yaml")),
        ("a: 'b\n", (2, "invalid-yaml")),
        ("a: [", (1, "invalid-yaml")),
        ("a:\n  - b: 1\n   c: 2", (3, "invalid-yaml")),
        ("a:\n  - b: 1\n     c: 2", (3, "invalid-yaml")),
        ("a:\n  - b: 1\n  c: 2", (3, "invalid-yaml")),
        ("a:\n  b: 1\n  - c: 2", (3, "invalid-yaml")),
        ("a: {b: c:, d: 1}", (1, "invalid-yaml")),
        ("a: 'b' c", (1, "invalid-yaml")),
        (" a: 1\nb: 2", (2, "invalid-yaml")),
        ("a: *b", (1, "invalid-yaml")),
        ("a: *:5555", (1, "invalid-yaml")),
        ('a: "\\d"', (1, "invalid-yaml")),
        ('a: "\\xZZ"', (1, "invalid-yaml")),
        ('a:\n b: "\\U00110000"', (2, "invalid-yaml")),
        ("a: 1\n---\nb: 2", (2, "invalid-yaml")),
        ("a: 1\nb: \x07", (2, "invalid-yaml")),
        ("a: " + "[" * (MAX_DEPTH + 1), (1, "invalid-yaml")),
        ("a: " + "[" * 100_000, (1, "invalid-yaml")),
    ],
)
def test_invalid_yaml_is_refused(text: str, expected: tuple[int, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    (fault,) = caught.value.faults
    assert (fault.line, fault.code) == expected
    problem = pyyaml_problem(text)
    assert problem is None or problem not in fault.message, "the fault is explained, not only quoted"


def nested_aliases(levels: int, times: int) -> str:
    lines = ["a0: &a0 [1]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * times)}]" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (nested_aliases(9, 9), MAX_VALUES),
        (nested_aliases(MAX_DEPTH + 2, 1), MAX_DEPTH),
        # chains of aliases in keys. Only the last alias is used in a value.
        (
            "\n".join(["? &a0 [1]\n: 1", *(f"? &a{link} [*a{link - 1}]\n: 1" for link in range(1, 400)), "x: *a399"]),
            MAX_DEPTH,
        ),
    ],
)
def test_expanded_aliases_are_limited(text: str, limit: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    refused = [fault for fault in caught.value.faults if fault.code == "too-many-aliases"]
    assert refused
    assert all(f" {limit} " in fault.message for fault in refused)


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
    assert document.plain() == {"a": (value,), text: 1}  # keys are not changed
    assert parse(f"a: '{text}'").plain() == {"a": text}  # without an environment, no text is changed


def test_variable_is_always_text() -> None:
    assert parse("a: ${N}\nb: ${L}", {"N": "5", "L": "[1]: x"}).plain() == {"a": "5", "b": "[1]: x"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("${NOT_SET}", "unset-variable"),
        ("${password}", "unset-variable"),
        ("${EMPTY}", "empty-variable"),
        ("${LINES}", "unprintable-variable"),
        ("${PASSWORD", "invalid-variable"),
        ("${}", "invalid-variable"),
        ("${A:-b}", "invalid-variable"),
        ("${1A}", "invalid-variable"),
    ],
)
def test_unusable_variable_is_refused(text: str, code: str) -> None:
    document = parse(f"\na:\n  - b: 'x {text} ${{PASSWORD}}'", ENVIRON)
    assert [(fault.line, fault.key, fault.code) for fault in document.faults] == [(3, "a[0].b", code)]
    assert "s3same" not in repr(document.plain())


def test_values_are_shown_as_written() -> None:
    url = "rtsp://kim:pa/ss'word@host/${PASSWORD}?token=abc"
    document = parse(f"a: '${{PASSWORD}}'\nb: \"{url}\"\nc: 0x10\ng: 'x'", ENVIRON)
    shown = {key: document.shown((key,)) for key in document.plain()}
    assert shown == {
        "a": "'${PASSWORD}'",
        "b": "'rtsp://***@host/${PASSWORD}?token=***'",
        "c": "0x10",
        "g": "'x'",
    }


# --- the file ---------------------------------------------------------------------------------------------------------


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + "a: höf".encode())
        document = read_document(path)
        assert document.plain() == {"a": "höf"}
        assert document.place(("a",)).column == 1
        assert document.name == str(path)


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def test_missing_file_suggests_a_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    assert refusal(path).code == "no-such-file"
    assert "demo" in refusal(path).hint
    (tmp_path / "cameras.yaml").touch()
    assert "'cameras.yaml'" in refusal(path).hint
    assert refusal(tmp_path / "no" / "folder" / "camera.yaml").code == "no-such-file"


def test_folder_suggests_its_files(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "folder"
    (tmp_path / "shop.yaml").touch()
    (tmp_path / "yard.yml").touch()
    assert f"{tmp_path}/shop.yaml" in refusal(tmp_path).hint
    assert f"{tmp_path}/yard.yml" in refusal(tmp_path).hint


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run as a user who does not have root's permission to read all files."""
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
        assert refusal(path).code == "permission-denied"


def test_failing_disk_is_no_error_in_the_configuration() -> None:
    with pytest.raises(Unavailable) as caught:
        read_document(Path("/proc/self/mem"))
    assert (caught.value.code, caught.value.exit_code) == ("unreadable", 75)


@pytest.mark.parametrize("path", ["a\0b.yaml", "x" * 300 + ".yaml", "/dev/null/camera.yaml"])
def test_unreadable_file_is_reported(path: str) -> None:
    assert refusal(Path(path)).code == "unreadable"


@pytest.mark.integration
def test_too_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_bytes(b"#" * MAX_BYTES)
    assert refusal(path).code == "empty"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert refusal(path).code == "too-large"
    assert refusal(Path("/dev/zero")).code == "unreadable"


@pytest.mark.parametrize(
    ("raw", "line", "byte"),
    [(b"a: 1\nb: \xff\xfe\n", 2, 8), ("a: höf".encode("latin-1"), 1, 4), ("a: 1".encode("utf-16"), 1, 0)],
)
def test_other_encoding_is_refused_with_its_line(tmp_path: Path, raw: bytes, line: int, byte: int) -> None:
    path = tmp_path / "camera.yaml"
    path.write_bytes(raw)
    error = refusal(path)
    assert fault_keys(error) == [(line, "", "not-utf8")]
    assert f"byte {byte}" in error.faults[0].message


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
