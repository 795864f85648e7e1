"""What pydantic finds, said to an operator: every kind of error, and all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.unit.config.fault_lines import fault_lines
from vision.config import AppConfig, ModelSpec, load_config, load_config_text, load_model_spec
from vision.config.document_reader import parse_document
from vision.config.schema import key_paths, resolve, schema_of
from vision.config.section import INCONSISTENT
from vision.config.validation import PHRASES
from vision.errors import ConfigError, ModelError

NAME = "a name of at most 64 letters, digits, '-' and '_', first a letter or digit"
SECONDS = "a number above 0 up to 60"
FRAME = "a list of at least 1 entry"

GOOD = "cameras:\n  - {id: a, source: csi:0}\n"

LINE = GOOD + "pipeline: count\nanalytics: {a: {lines: [{name: b, %s}]}}"
ZONE = GOOD + "pipeline: count\nanalytics: {a: {zones: [{name: b, %s}]}}"
CAMERA = "cameras:\n  - {id: a, source: a.mp4, %s}"

SPEC = """\
name: mine
file: mine.onnx
input: {width: 640, height: 640}
head: {kind: yolov8}
classes: [cat, dog]
licence: MIT
"""

# --- every kind of error ----------------------------------------------------------------------------------------------

CONFIG_CASES: list[tuple[str, str, str]] = [
    ("missing", "{}\n", "1: cameras: missing; expected a list of at least 1 entry"),
    (
        "missing",
        "detect:\n  score_threshold: 0\ncameras:\n  - source: csi:0\n",
        f"4: cameras[0].id: missing; expected {NAME}",
    ),
    (
        "missing",
        LINE.replace(", %s", ""),
        "4: analytics.a.lines[0].points: missing; expected a list of 2 points [x, y]",
    ),
    (
        "missing",
        LINE % "points: [[1, 2]]",
        "4: analytics.a.lines[0].points: expected a list of 2 points [x, y], got a list of 1",
    ),
    (
        "missing",
        LINE % "points: [[1, 2], []]",
        "4: analytics.a.lines[0].points[1]: expected a list of 2 numbers from 0 to 16384, got an empty list",
    ),
    ("extra_forbidden", GOOD + "pipline: count", "3: pipline: unknown key (did you mean 'pipeline'?)"),
    (
        "extra_forbidden",
        GOOD + "max_batch: 4",
        "3: max_batch: unknown key here (did you mean detect.max_batch or cascade.max_batch?)",
    ),
    (
        "extra_forbidden",
        GOOD + "publish: {zzz: 4}",
        "3: publish.zzz: unknown key; expected bind, encoding, queue, replay or max_events",
    ),
    (
        "extra_forbidden",
        GOOD + "publish: {'': 4}",
        "3: publish['']: unknown key; expected bind, encoding, queue, replay or max_events",
    ),
    (
        "value_error",
        GOOD + "publish:\n  bind: 5555x",
        "4: publish.bind: expected tcp://ADDRESS:PORT or ipc:///PATH, got '5555x' (such as tcp://127.0.0.1:5555)",
    ),
    (
        "value_error",
        GOOD + "detect: {classes: [a, a]}",
        "3: detect.classes: expected a list of at least 1 name, none of them empty, none twice",
    ),
    ("string_pattern_mismatch", GOOD + "node: a b", f"3: node: expected {NAME}, got 'a b'"),
    (
        "string_pattern_mismatch",
        GOOD + "pipeline: count\nanalytics:\n  a b: {}",
        f"5: analytics['a b']: expected {NAME}, got 'a b'",
    ),
    (
        "too_long",
        LINE % "points: [[1, 2], [3, 4, 5]]",
        "4: analytics.a.lines[0].points[1]: expected a list of 2 numbers from 0 to 16384, got a list of 3",
    ),
    (
        "too_long",
        ZONE % f"polygon: [{'[0, 0],' * 101}]",
        "4: analytics.a.zones[0].polygon: expected a list of 3 to 100 points [x, y], got a list of 101",
    ),
    ("too_short", "cameras: []", "1: cameras: expected a list of at least 1 entry, got an empty list"),
    (
        "bool_type",
        CAMERA % "\n    loop: yes",
        "3: cameras[0].loop: expected true or false, got 'yes' (did you mean true?)",
    ),
    ("bool_type", CAMERA % "loop: 1", "2: cameras[0].loop: expected true or false, got 1"),
    (
        "bool_type",
        CAMERA % "loop: 'OFF'",
        "2: cameras[0].loop: expected true or false, got 'OFF' (did you mean false?)",
    ),
    ("dict_type", GOOD + "analytics: 5", "3: analytics: expected keys and values, got 5"),
    ("finite_number", GOOD + "stop_timeout_s: .nan", f"3: stop_timeout_s: expected {SECONDS}, got .nan"),
    ("finite_number", GOOD + "stop_timeout_s: 1e999", f"3: stop_timeout_s: expected {SECONDS}, got 1e999"),
    ("float_type", GOOD + "stop_timeout_s: '5'", f"3: stop_timeout_s: expected {SECONDS}, got '5' (without quotes)"),
    ("float_type", GOOD + "stop_timeout_s: 5s", f"3: stop_timeout_s: expected {SECONDS}, got '5s'"),
    ("float_type", GOOD + "stop_timeout_s: true", f"3: stop_timeout_s: expected {SECONDS}, got true"),
    ("float_type", GOOD + "stop_timeout_s:", f"3: stop_timeout_s: expected {SECONDS}, got nothing"),
    ("greater_than", GOOD + "stop_timeout_s: 0", f"3: stop_timeout_s: expected {SECONDS}, got 0"),
    (
        "greater_than_equal",
        GOOD + "detect: {score_threshold: -0.1}",
        "3: detect.score_threshold: expected a number from 0 to 1, got -0.1",
    ),
    (
        "int_type",
        GOOD + "detect: {max_batch: 1.5}",
        "3: detect.max_batch: expected a whole number from 1 to 256, got 1.5",
    ),
    (
        "int_type",
        GOOD + "detect: {max_batch: [1]}",
        "3: detect.max_batch: expected a whole number from 1 to 256, got a list of 1",
    ),
    (
        "less_than_equal",
        GOOD + "detect: {max_batch: 257}",
        "3: detect.max_batch: expected a whole number from 1 to 256, got 257",
    ),
    (
        "less_than_equal",
        GOOD + "detect: {batches_in_flight: 9}",
        "3: detect.batches_in_flight: expected a whole number from 1 to 8, got 9",
    ),
    (
        "literal_error",
        (CAMERA % "transport: tpc").replace("a.mp4", "rtsp://h"),
        "2: cameras[0].transport: expected 'tcp' or 'udp', got 'tpc' (did you mean 'tcp'?)",
    ),
    (
        "literal_error",
        GOOD + "detect: {precision: 16}",
        "3: detect.precision: expected 'fp32', 'tf32', 'fp16', 'bf16', 'fp8' or 'int8', got 16",
    ),
    (
        "literal_error",
        GOOD + "publish: {encoding: xml}",
        "3: publish.encoding: expected 'json' or 'msgpack', got 'xml'",
    ),
    (
        "model_type",
        GOOD + "detect:",
        "3: detect: expected keys and values, got nothing (leave the key out for its defaults)",
    ),
    ("model_type", "cameras: [5]", "1: cameras[0]: expected keys and values, got 5"),
    ("string_type", "cameras:\n  - {id: 7, source: csi:0}", f"2: cameras[0].id: expected {NAME}, got 7 (as text: '7')"),
    ("string_type", GOOD + "detect: {classes: [a, {}]}", "3: detect.classes[1]: expected text, got keys and values"),
    (
        "tuple_type",
        "cameras: {gate: {}}",
        (
            "1: cameras: expected a list of at least 1 entry, got keys and values (a list, in which each camera begins "
            "with '- id: gate')"
        ),
    ),
    (
        "string_type",
        "cameras: [{id: a, source: 0}]",
        (
            "1: cameras[0].source: expected an rtsp://, rtsps://, http:// or https:// address, a file, a folder, "
            "/dev/videoN, csi:N or synthetic:, got 0 (USB camera 0 is /dev/video0)"
        ),
    ),
    ("tuple_type", GOOD + "detect: {classes: person}", "3: detect.classes: expected a list of names, got 'person'"),
]

SPEC_CASES: list[tuple[str, str, str]] = [
    ("string_too_short", SPEC.replace("MIT", "''"), "6: licence: expected text, got ''"),
    (
        "literal_error",
        SPEC.replace("[cat, dog]", "coco81"),
        "5: classes: expected a list of names or 'coco80', got 'coco81' (did you mean 'coco80'?)",
    ),
    ("tuple_type", SPEC.replace("[cat, dog]", "80"), "5: classes: expected a list of names or 'coco80', got 80"),
    ("string_type", SPEC.replace("dog", "1"), "5: classes[1]: expected text, got 1 (as text: '1')"),
    (
        "value_error",
        SPEC.replace("[cat, dog]", "[]"),
        "5: classes: expected a list of at least 1 name, none of them empty, none twice",
    ),
    (
        "value_error",
        SPEC.replace("mine.onnx", "../mine.onnx"),
        "2: file: expected the name of an .onnx file in the folder of model.yaml, got '../mine.onnx'",
    ),
    ("string_pattern_mismatch", SPEC + "sha256: ABC", "7: sha256: expected 64 of the digits 0-9 and a-f, got 'ABC'"),
    (
        "greater_than",
        SPEC.replace("height: 640", "height: 640, std: [1, 1, 0]"),
        "3: input.std[2]: expected a number above 0, got 0",
    ),
    (
        "missing",
        SPEC.replace("height: 640", "height: 640, mean: [1, 1]"),
        "3: input.mean: expected a list of 3 numbers, got a list of 2",
    ),
    (
        "missing",
        SPEC.replace(", height: 640", ""),
        "3: input.height: missing; expected a whole number from 16 to 16384",
    ),
    ("extra_forbidden", SPEC + "license: MIT", "7: license: unknown key (did you mean 'licence'?)"),
]


def types_of(model: type[BaseModel], text: str) -> set[str]:
    """Kinds of pydantic's errors for a document."""
    try:
        model.model_validate(parse_document(text, "", {}).plain(), strict=True)
    except ValidationError as error:
        return {details["type"] for details in error.errors()}
    return set()


@pytest.mark.parametrize(("kind", "text", "fault"), CONFIG_CASES)
def test_each_kind_of_error_in_camera_yaml(kind: str, text: str, fault: str) -> None:
    assert kind in types_of(AppConfig, text)
    with pytest.raises(ConfigError) as caught:
        load_config_text(text, {})
    assert fault_lines(str(caught.value)) == [f"camera.yaml:{fault}"]


@pytest.mark.parametrize(("kind", "text", "fault"), SPEC_CASES)
def test_each_kind_of_error_in_model_yaml(kind: str, text: str, fault: str, tmp_path: Path) -> None:
    assert kind in types_of(ModelSpec, text)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ModelError) as caught:
        load_model_spec(tmp_path)
    assert fault_lines(caught.value.args[0]) == [f"{tmp_path}/model.yaml:{fault}"]


# Kinds of error by the kinds of pydantic's core schema, for strict input of plain data. A str has "string_unicode" as
# well, which cannot come because the document refuses lone surrogates.
CONSTRAINTS = {
    "gt": "greater_than",
    "ge": "greater_than_equal",
    "lt": "less_than",
    "le": "less_than_equal",
    "multiple_of": "multiple_of",
}
LENGTHS = {"min_length": "too_short", "max_length": "too_long"}
NO_ERRORS = {"definitions", "definition-ref", "default", "nullable", "model-field", "tagged-union"}


def errors_of(schema: Mapping[str, Any]) -> set[str]:
    """Return the errors of one node of a core schema, without its children."""
    kind = schema["type"]
    if kind in NO_ERRORS:
        return set()
    if kind in ("int", "float"):
        finite = {"finite_number"} if kind == "float" else set()
        return {f"{kind}_type"} | finite | {name for key, name in CONSTRAINTS.items() if schema.get(key) is not None}
    if kind == "str":
        lengths = {key: f"string_{name}" for key, name in LENGTHS.items()}
        extra = {"pattern": "string_pattern_mismatch", **lengths}
        return {"string_type"} | {name for key, name in extra.items() if schema.get(key) is not None}
    if kind == "tuple":
        fixed = {"missing", "too_long"} if "variadic_item_index" not in schema else set()
        return {"tuple_type"} | fixed | {name for key, name in LENGTHS.items() if schema.get(key) is not None}
    if kind == "function-after":
        return (
            {"value_error"}
            if schema["schema"]["type"] not in ("model", "model-fields", "function-before")
            else {INCONSISTENT}
        )
    return {
        "bool": {"bool_type"},
        "literal": {"literal_error"},
        "dict": {"dict_type"},
        "model": {"model_type"},
        "model-fields": {"missing", "extra_forbidden"},
        "function-before": set(),
    }[kind]


def nodes(schema: object) -> Iterator[Mapping[str, Any]]:
    """Every node of a core schema; a kind that `errors_of` does not know fails the test there."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("type"), str):
            yield schema
        skipped = ("serialization", "metadata", "config", "function", "discriminator")
        for key, value in schema.items():
            yield from nodes(value) if key not in skipped else ()
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for value in schema:
            yield from nodes(value)


def test_every_kind_of_error_has_a_phrase_and_a_test() -> None:
    possible = {
        kind
        for model in (AppConfig, ModelSpec)
        for schema in nodes(model.__pydantic_core_schema__)
        for kind in errors_of(schema)
    } - {INCONSISTENT}
    assert possible == set(PHRASES)
    assert {kind for kind, _, _ in CONFIG_CASES + SPEC_CASES} == set(PHRASES)


@pytest.mark.parametrize("model", [AppConfig, ModelSpec])
def test_every_pattern_has_a_description(model: type[BaseModel]) -> None:
    root = schema_of(model)
    patterned = [(path, schema) for path, value, _ in key_paths(root) if "pattern" in (schema := resolve(root, value))]
    assert patterned
    for path, schema in patterned:
        assert "^" not in schema["title"], path


# --- all at once ------------------------------------------------------------------------------------------------------

MANY = """\
cameras:
  - {id: gate, source: "rtsp://user:${GATE_PASSWORD}@10.0.0.4/1", transport: tpc}
  - {id: gate, sorce: csi:0, width: 1920}
  - id: yard
    source: rstp://x
    loop: maybe
detect:
  score_threshold: 2
publish: {bind: here}
node: [a]
detect: {}
"""


def test_all_faults_are_reported_in_file_order() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(MANY, {})
    lines = fault_lines(str(caught.value))
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in lines] == [
        "camera.yaml:2 cameras[0].source",
        "camera.yaml:2 cameras[0].transport",
        "camera.yaml:3 cameras[1].id",
        "camera.yaml:3 cameras[1].sorce",
        "camera.yaml:3 cameras[1].width",
        "camera.yaml:5 cameras[2].source",
        "camera.yaml:6 cameras[2].loop",
        "camera.yaml:8 detect.score_threshold",
        "camera.yaml:9 publish.bind",
        "camera.yaml:10 node",
        "camera.yaml:11 detect",
    ]


def test_misspelt_key_is_not_reported_as_missing() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(
            "cameras:\n  - {id: a, sorce: csi:0}\n  - {id: b, sorce: csi:1, source: csi:2}\n  - {id: c}", {}
        )
    assert [line.split(": ", 2)[1:] for line in fault_lines(str(caught.value))] == [
        ["cameras[0].sorce", "unknown key (did you mean 'source'?)"],
        ["cameras[1].sorce", "unknown key (did you mean 'source'?)"],
        ["cameras[2].source", fault_lines(caught.value.args[0])[2].split(": ", 2)[2]],
    ]


def test_unreadable_value_has_one_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text("cameras:\n  - {id: '${A}', source: '${B}', transport: udp, max_fps: !x 1}", {})
    assert [line.split(": ")[1] for line in fault_lines(str(caught.value))] == [
        "cameras[0].id",
        "cameras[0].source",
        "cameras[0].max_fps",
    ]


def test_file_is_named_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("site.yaml").write_text("cameras: []")
    with pytest.raises(ConfigError, match=r"^site\.yaml:1: cameras: "):
        load_config(Path("site.yaml"), {})


def test_errors_have_no_chain_that_could_show_a_value() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(MANY, {})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    with pytest.raises(ValidationError) as refused:
        AppConfig.model_validate({"cameras": [{"id": "a", "source": "rtsp://user:s3same@:99999"}]})
    assert "s3same" not in str(refused.value)
