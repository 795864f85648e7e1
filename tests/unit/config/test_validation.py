"""Tests that all faults in camera.yaml and model.yaml are reported together, for every kind of pydantic error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.unit.config.faults import FaultKey, config_faults, fault_keys
from vision.config import AppConfig, ModelSpec, load_config, load_config_text, load_model_spec
from vision.config.fields import INCONSISTENT
from vision.config.schema import key_paths, resolve, schema_of
from vision.config.yaml_reader import parse_document
from vision.errors import ConfigError, ModelError

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

CONFIG_CASES: list[tuple[str, str, FaultKey]] = [
    ("missing", "{}\n", (1, "cameras", "missing")),
    ("missing", "detect:\n  score_threshold: 0\ncameras:\n  - source: csi:0\n", (4, "cameras[0].id", "missing")),
    ("missing", LINE.replace(", %s", ""), (4, "analytics.a.lines[0].points", "missing")),
    ("missing", LINE % "points: [[1, 2]]", (4, "analytics.a.lines[0].points", "missing")),
    ("missing", LINE % "points: [[1, 2], []]", (4, "analytics.a.lines[0].points[1]", "missing")),
    (
        "string_too_long",
        GOOD
        + f"pipeline: count\nlanguage: {{url: 'http://h', model: m}}\nverify: [{{name: v, prompt: {'x' * 10_001}}}]",
        (5, "verify[0].prompt", "string-too-long"),
    ),
    ("extra_forbidden", GOOD + "pipline: count", (3, "pipline", "unknown-key")),
    ("extra_forbidden", GOOD + "max_batch: 4", (3, "max_batch", "unknown-key")),
    ("extra_forbidden", GOOD + "publish: {zzz: 4}", (3, "publish.zzz", "unknown-key")),
    ("extra_forbidden", GOOD + "publish: {'': 4}", (3, "publish['']", "unknown-key")),
    ("value_error", GOOD + "publish:\n  bind: 5555x", (4, "publish.bind", "bind-form")),
    ("value_error", GOOD + "detect: {classes: [a, a]}", (3, "detect.classes", "names")),
    ("string_pattern_mismatch", GOOD + "node: a b", (3, "node", "string-pattern-mismatch")),
    (
        "string_pattern_mismatch",
        GOOD + "pipeline: count\nanalytics:\n  a b: {}",
        (5, "analytics['a b']", "string-pattern-mismatch"),
    ),
    ("too_long", LINE % "points: [[1, 2], [3, 4, 5]]", (4, "analytics.a.lines[0].points[1]", "too-long")),
    ("too_long", ZONE % f"polygon: [{'[0, 0],' * 101}]", (4, "analytics.a.zones[0].polygon", "too-long")),
    ("too_short", "cameras: []", (1, "cameras", "too-short")),
    ("bool_type", CAMERA % "\n    loop: yes", (3, "cameras[0].loop", "bool-type")),
    ("bool_type", CAMERA % "loop: 1", (2, "cameras[0].loop", "bool-type")),
    ("bool_type", CAMERA % "loop: 'OFF'", (2, "cameras[0].loop", "bool-type")),
    ("dict_type", GOOD + "analytics: 5", (3, "analytics", "dict-type")),
    ("finite_number", GOOD + "stop_timeout_s: .nan", (3, "stop_timeout_s", "finite-number")),
    ("finite_number", GOOD + "stop_timeout_s: 1e999", (3, "stop_timeout_s", "finite-number")),
    ("float_type", GOOD + "stop_timeout_s: '5'", (3, "stop_timeout_s", "float-type")),
    ("float_type", GOOD + "stop_timeout_s: 5s", (3, "stop_timeout_s", "float-type")),
    ("float_type", GOOD + "stop_timeout_s: true", (3, "stop_timeout_s", "float-type")),
    ("float_type", GOOD + "stop_timeout_s:", (3, "stop_timeout_s", "float-type")),
    ("greater_than", GOOD + "stop_timeout_s: 0", (3, "stop_timeout_s", "greater-than")),
    (
        "greater_than_equal",
        GOOD + "detect: {score_threshold: -0.1}",
        (3, "detect.score_threshold", "greater-than-equal"),
    ),
    ("int_type", GOOD + "detect: {max_batch: 1.5}", (3, "detect.max_batch", "int-type")),
    ("int_type", GOOD + "detect: {max_batch: [1]}", (3, "detect.max_batch", "int-type")),
    ("less_than_equal", GOOD + "detect: {max_batch: 257}", (3, "detect.max_batch", "less-than-equal")),
    ("less_than_equal", GOOD + "detect: {batches_in_flight: 9}", (3, "detect.batches_in_flight", "less-than-equal")),
    (
        "literal_error",
        (CAMERA % "transport: tpc").replace("a.mp4", "rtsp://h"),
        (2, "cameras[0].transport", "literal-error"),
    ),
    ("literal_error", GOOD + "detect: {precision: 16}", (3, "detect.precision", "literal-error")),
    ("literal_error", GOOD + "publish: {encoding: xml}", (3, "publish.encoding", "literal-error")),
    ("model_type", GOOD + "detect:", (3, "detect", "model-type")),
    ("model_type", "cameras: [5]", (1, "cameras[0]", "model-type")),
    ("string_type", "cameras:\n  - {id: 7, source: csi:0}", (2, "cameras[0].id", "string-type")),
    ("string_type", GOOD + "detect: {classes: [a, {}]}", (3, "detect.classes[1]", "string-type")),
    ("tuple_type", "cameras: {gate: {}}", ((1, "cameras", "tuple-type"))),
    ("string_type", "cameras: [{id: a, source: 0}]", ((1, "cameras[0].source", "string-type"))),
    ("tuple_type", GOOD + "detect: {classes: person}", (3, "detect.classes", "tuple-type")),
]

SPEC_CASES: list[tuple[str, str, FaultKey]] = [
    ("string_too_short", SPEC.replace("MIT", "''"), (6, "licence", "string-too-short")),
    ("literal_error", SPEC.replace("[cat, dog]", "coco81"), (5, "classes", "literal-error")),
    ("tuple_type", SPEC.replace("[cat, dog]", "80"), (5, "classes", "tuple-type")),
    ("string_type", SPEC.replace("dog", "1"), (5, "classes[1]", "string-type")),
    ("value_error", SPEC.replace("[cat, dog]", "[]"), (5, "classes", "names")),
    ("string_pattern_mismatch", SPEC.replace("mine.onnx", "../mine.onnx"), (2, "file", "string-pattern-mismatch")),
    ("string_pattern_mismatch", SPEC + "sha256: ABC", (7, "sha256", "string-pattern-mismatch")),
    ("greater_than", SPEC.replace("height: 640", "height: 640, std: [1, 1, 0]"), (3, "input.std[2]", "greater-than")),
    ("missing", SPEC.replace("height: 640", "height: 640, mean: [1, 1]"), (3, "input.mean", "missing")),
    ("missing", SPEC.replace(", height: 640", ""), (3, "input.height", "missing")),
    ("extra_forbidden", SPEC + "license: MIT", (7, "license", "unknown-key")),
]


def types_of(model: type[BaseModel], text: str) -> set[str]:
    """Return the types of the pydantic errors for a document."""
    try:
        model.model_validate(parse_document(text, "", {}).plain(), strict=True)
    except ValidationError as error:
        return {details["type"] for details in error.errors()}
    return set()


@pytest.mark.parametrize(("kind", "text", "fault"), CONFIG_CASES)
def test_each_error_in_camera_yaml_has_its_line_key_and_code(kind: str, text: str, fault: FaultKey) -> None:
    assert kind in types_of(AppConfig, text)
    assert config_faults(text) == [fault]


@pytest.mark.parametrize(("kind", "text", "fault"), SPEC_CASES)
def test_each_error_in_model_yaml_has_its_line_key_and_code(
    kind: str, text: str, fault: FaultKey, tmp_path: Path
) -> None:
    assert kind in types_of(ModelSpec, text)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ModelError) as caught:
        load_model_spec(tmp_path)
    assert fault_keys(caught.value) == [fault]


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
NO_ERRORS = {"definitions", "definition-ref", "default", "nullable", "model-field", "tagged-union", "union", "any"}


def errors_of(schema: Mapping[str, Any]) -> set[str]:
    """Return the errors that one node of a core schema can cause, without its children."""
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
    """Yield every node of a core schema. `errors_of` fails for a node of an unknown kind."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("type"), str):
            yield schema
        skipped = ("serialization", "metadata", "config", "function", "discriminator")
        for key, value in schema.items():
            yield from nodes(value) if key not in skipped else ()
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for value in schema:
            yield from nodes(value)


def test_every_kind_of_error_has_a_test() -> None:
    possible = {
        kind
        for model in (AppConfig, ModelSpec)
        for schema in nodes(model.__pydantic_core_schema__)
        for kind in errors_of(schema)
    } - {INCONSISTENT}
    assert {kind for kind, _, _ in CONFIG_CASES + SPEC_CASES} == possible


@pytest.mark.parametrize("model", [AppConfig, ModelSpec])
def test_every_pattern_has_a_description(model: type[BaseModel]) -> None:
    root = schema_of(model)
    patterned = [(path, schema) for path, value, _ in key_paths(root) if "pattern" in (schema := resolve(root, value))]
    assert patterned
    for path, schema in patterned:
        assert "^" not in schema["title"], path


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        (GOOD + "pipline: count", "'pipeline'"),
        (GOOD + "max_batch: 4", "detect.max_batch"),
        (GOOD + "max_batch: 4", "cascade.max_batch"),
        (GOOD + "publish: {zzz: 4}", "encoding"),
        (GOOD + "publish: {zzz: 4}", "max_events"),
        (CAMERA % "loop: yes", "true?"),
        (CAMERA % "loop: 'OFF'", "false?"),
        (CAMERA % "transport: tpc", "'tcp'?"),
        ("cameras: [{id: 7, source: csi:0}]", "'7'"),
        ("cameras: [{id: a, source: 0}]", "/dev/video0"),
        ("cameras: {gate: {}}", "'- id: gate'"),
    ],
)
def test_fault_has_a_suggestion(text: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(text, {})
    assert suggestion in caught.value.faults[0].message


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
    assert [f"{line} {key}" for line, key, _ in config_faults(MANY)] == [
        "2 cameras[0].source",
        "2 cameras[0].transport",
        "3 cameras[1].id",
        "3 cameras[1].sorce",
        "3 cameras[1].width",
        "5 cameras[2].source",
        "6 cameras[2].loop",
        "8 detect.score_threshold",
        "9 publish.bind",
        "10 node",
        "11 detect",
    ]


def test_misspelt_key_is_not_reported_as_missing() -> None:
    text = "cameras:\n  - {id: a, sorce: csi:0}\n  - {id: b, sorce: csi:1, source: csi:2}\n  - {id: c}"
    assert config_faults(text) == [
        (2, "cameras[0].sorce", "unknown-key"),
        (3, "cameras[1].sorce", "unknown-key"),
        (4, "cameras[2].source", "missing"),
    ]


def test_unreadable_value_has_one_fault() -> None:
    text = "cameras:\n  - {id: '${A}', source: '${B}', transport: udp, max_fps: !x 1}"
    assert [key for _, key, _ in config_faults(text)] == ["cameras[0].id", "cameras[0].source", "cameras[0].max_fps"]


def test_message_names_the_file_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("site.yaml").write_text("cameras: []")
    with pytest.raises(ConfigError) as caught:
        load_config(Path("site.yaml"), {})
    assert str(caught.value).startswith("site.yaml:1:")


def test_error_chain_shows_no_value() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_text(MANY, {})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    with pytest.raises(ValidationError) as refused:
        AppConfig.model_validate({"cameras": [{"id": "a", "source": "rtsp://user:s3same@:99999"}]})
    assert "s3same" not in str(refused.value)
