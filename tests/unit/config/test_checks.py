"""Tests of configuration checks: addresses of the publisher, names of files, and conflicting values."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.unit.config.faults import FaultKey, config_faults, fault_keys
from vision.config import (
    AppConfig,
    CameraAnalytics,
    CameraConfig,
    ModelSpec,
    PublishConfig,
    check_classes,
    load_config_text,
)
from vision.config.fields import INCONSISTENT, FileName, PipelineName, check_bind, check_model_name
from vision.config.wording import InvalidValue
from vision.errors import ConfigError


@pytest.mark.parametrize(
    "bind",
    [
        "tcp://127.0.0.1:5555",
        "tcp://*:1",
        "tcp://*:*",
        "tcp://0.0.0.0:0",
        "tcp://[::1]:65535",
        "tcp://eth0:5555",
        "ipc:///run/vision/node.sock",
        "ipc://@node",
    ],
)
def test_bind_address_is_accepted(bind: str) -> None:
    assert check_bind(bind) == bind


@pytest.mark.parametrize(
    ("bind", "code"),
    [
        ("", "bind-form"),
        ("127.0.0.1:5555", "bind-form"),
        ("udp://127.0.0.1:5555", "bind-form"),
        ("tcp://127.0.0.1", "port"),
        ("tcp://127.0.0.1:", "port"),
        ("tcp://127.0.0.1:65536", "port"),
        ("tcp://127.0.0.1:-1", "port"),
        ("tcp://localhost:5555", "host"),
        ("tcp://:5555", "host"),
        ("tcp://1.2.3:5555", "host"),
        ("tcp://[::g]:5555", "host"),
        ("tcp://::1:5555", "host"),
        ("tcp://a/b:5555", "host"),
        ("ipc://", "ipc-path"),
        ("ipc:///", "ipc-path"),
        ("ipc://node.sock", "ipc-path"),
        ("ipc:///a\nb", "ipc-path"),
        ("ipc:///" + "ü" * 54, "ipc-path-length"),
    ],
)
def test_invalid_bind_address_is_refused(bind: str, code: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        check_bind(bind)
    assert caught.value.code == code


def test_longest_socket_path_is_accepted() -> None:
    assert check_bind("ipc:///" + "x" * 106)


@pytest.mark.parametrize("name", ["", "a\nb", "https://models.net/x", "~/model"])
def test_invalid_model_name_is_refused(name: str) -> None:
    assert check_model_name("../my model") == "../my model"
    with pytest.raises(InvalidValue):
        check_model_name(name)


@pytest.mark.parametrize("name", ["", "Detect", "detect.yaml", "a/b", "a\n.py", "~/a.py", "x" * 65])
def test_invalid_pipeline_name_is_refused(name: str) -> None:
    pipeline = TypeAdapter(PipelineName)
    assert pipeline.validate_python("detect") == "detect"
    assert pipeline.validate_python("../my pipeline.py") == "../my pipeline.py"
    with pytest.raises(ValidationError):
        pipeline.validate_python(name)


@pytest.mark.parametrize("name", ["", ".onnx", "a.pt", "a/b.onnx", "..\\b.onnx", "a\n.onnx"])
def test_invalid_onnx_file_name_is_refused(name: str) -> None:
    file_name = TypeAdapter(FileName)
    assert file_name.validate_python("a b.onnx") == "a b.onnx"
    with pytest.raises(ValidationError):
        file_name.validate_python(name)


# --- conflicts --------------------------------------------------------------------------------------------------------


def camera(**options: object) -> str:
    return f"cameras: [{{id: a, {', '.join(f'{key}: {value}' for key, value in options.items())}}}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (camera(source="csi:0", width=640), [(1, "cameras[0].width", "given-alone")]),
        (camera(source="csi:0", height=640), [(1, "cameras[0].height", "given-alone")]),
        (camera(source="csi:0", height=640, width=480, fps=30), []),
        (camera(source="a.mp4", fps=5, loop="true"), []),
        (camera(source="rtsp://h", loop="false"), []),
        (camera(source="rtsp://h", loop="true"), [(1, "cameras[0].loop", "no-effect")]),
        (camera(source="'synthetic:'", loop="true"), [(1, "cameras[0].loop", "no-effect")]),
        (camera(source="rtsp://h", transport="udp"), []),
        (camera(source="http://h", transport="tcp"), [(1, "cameras[0].transport", "no-effect")]),
        (camera(source="rtsp://h", fps=5), [(1, "cameras[0].fps", "no-effect")]),
        (
            camera(source="a.mp4", width=64, height=64),
            [(1, "cameras[0].width", "no-effect"), (1, "cameras[0].height", "no-effect")],
        ),
        (camera(source="csi:0", reader="opencv"), [(1, "cameras[0].reader", "wrong-reader")]),
        (camera(source="a.mp4", reader="gstreamer"), [(1, "cameras[0].reader", "wrong-reader")]),
        (camera(source="a.mp4", reader="ffmpeg", loop="true"), []),
        (camera(source="'synthetic:'", reader="opencv"), [(1, "cameras[0].reader", "wrong-reader")]),
        (camera(source="/dev/video0", reader="gstreamer"), []),
        (camera(source="/dev/video0", reader="ffmpeg"), [(1, "cameras[0].reader", "wrong-reader")]),
        (camera(source="'rtsp://10.0.0.4/a'", reader="ffmpeg"), []),
        (camera(source="'rtsp://10.0.0.4/a'", reader="nvdec"), []),
        (camera(source="'http://10.0.0.4/a'", reader="nvdec"), []),
        (camera(source="a.mp4", reader="nvdec", loop="true"), []),
        (camera(source="/dev/video0", reader="nvdec"), [(1, "cameras[0].reader", "wrong-reader")]),
        (
            camera(source="a.mp4", reader="nvdec") + "\ndetect: {backend: onnxruntime}\n",
            [(1, "cameras[0].reader", "nvdec-detector")],
        ),
        (camera(source="a.mp4", reader="nvdec") + "\ndetect: {backend: tensorrt}\n", []),
        (
            camera(source="'rtsp://10.0.0.4/a'", reader="nvdec", transport="udp"),
            [(1, "cameras[0].transport", "lossy-transport")],
        ),
        (camera(source="'http://10.0.0.4/a'", reader="ffmpeg"), []),
        (
            "cameras:\n- {id: a, source: csi:0}\n- {id: b, source: csi:1}\n- {id: a, source: csi:2}\n",
            [(4, "cameras[2].id", "duplicate-id")],
        ),
        (
            "cameras:\n- {id: a, source: csi:0}\n- {id: b, source: csi:0}\n",
            [(3, "cameras[1].source", "duplicate-source")],
        ),
        ("cameras:\n- {id: a, source: a.mp4}\n- {id: b, source: a.mp4}\n", []),
        (camera(source="'rtsp://u:pw@h'"), [(1, "cameras[0].source", "written-password")]),
        (camera(source="'rtsp://u:pw${X}@h'"), [(1, "cameras[0].source", "written-password")]),
        (camera(source="'http://h/v?a=b&password=pw'"), [(1, "cameras[0].source", "written-password")]),
        (camera(source="'rtsp://u:${X}@h'"), []),
        (camera(source="'rtsp://${X}:${X}@h:554/?password=${X}'"), []),
        (camera(source="'rtsp://viewer@h'"), []),
        (camera(source="'rtsp://viewer:@h'"), []),
    ],
)
def test_conflicts_of_a_camera_are_reported(text: str, expected: list[FaultKey]) -> None:
    assert config_faults(text, {"X": "s3same"}) == expected


ANALYTICS = """\
pipeline: count
detect: {classes: [person, car]}
cameras: [{id: gate, source: csi:0}, {id: yard, source: csi:1}]
analytics:
"""
LINE = "name: a, points: [[0, 0], [9, 9]]"
ZONE = "polygon: [[0, 0], [9, 0], [9, 9]]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  gate: {}", []),
        ("  gat: {}", [(5, "analytics.gat", "unknown-camera")]),
        ("  zzz: {}", [(5, "analytics.zzz", "unknown-camera")]),
        (
            f"  gate:\n    lines:\n    - {{{LINE}}}\n    zones:\n    - {{name: a, {ZONE}}}",
            [(9, "analytics.gate.zones[0].name", "duplicate-name")],
        ),
        (f"  gate: {{lines: [{{{LINE}}}]}}\n  yard: {{lines: [{{{LINE}}}]}}", []),
        (
            "  gate: {units: fraction, lines: [{name: a, points: [[0, 0], [0.5, 1.5]]}]}",
            [(5, "analytics.gate.lines[0].points[1]", "wrong-unit")],
        ),
        ("  gate: {units: fraction, lines: [{name: a, points: [[0, 0], [1, 1]]}]}", []),
        (
            "  gate: {units: percent, lines: [{name: a, points: [[0, 0], [50, 101]]}]}",
            [(5, "analytics.gate.lines[0].points[1]", "wrong-unit")],
        ),
        ("  gate: {units: percent, lines: [{name: a, points: [[0, 0], [100, 100]]}]}", []),
        (
            "  gate: {units: percent, lines: [{name: a, points: [[0, 0], [0.5, 1]]}]}",
            [(5, "analytics.gate.lines[0].points", "wrong-unit")],
        ),
        (
            "  gate: {lines: [{name: a, points: [[0, 0.5], [1, 1]]}]}",
            [(5, "analytics.gate.lines[0].points", "wrong-unit")],
        ),
        (
            "  gate: {zones: [{name: a, polygon: [[0, 0], [9, 0], [9, 9]], crowded_for_s: 5}]}",
            [(5, "analytics.gate.zones[0].crowded_for_s", "no-effect")],
        ),
        ("  gate: {zones: [{name: a, polygon: [[0, 0], [9, 0], [9, 9]], crowded_for_s: 5, crowd_threshold: 0}]}", []),
        (
            "  gate: {lines: [{name: a, points: [[0, 0], [9, 9]], classes: [car, bus]}]}",
            [(5, "analytics.gate.lines[0].classes[1]", "never-detected")],
        ),
    ],
)
def test_conflicts_of_lines_and_zones_are_reported(text: str, expected: list[FaultKey]) -> None:
    assert config_faults(ANALYTICS + text) == expected


@pytest.mark.parametrize("pipeline", ["pipeline: detect\n", "pipeline: track\n"])
def test_analytics_need_a_pipeline_with_analytics(pipeline: str) -> None:
    wrong = pipeline + camera(source="csi:0") + "\nanalytics: {a: {}}"
    assert config_faults(wrong) == [(3, "analytics", "wrong-pipeline")]
    assert config_faults("pipeline: own.py\n" + camera(source="csi:0") + "\nanalytics: {a: {}}") == []
    assert config_faults(pipeline + camera(source="csi:0") + "\nanalytics: {}") == []


def test_default_pipeline_is_count_with_analytics() -> None:
    def pipeline(text: str) -> str:
        return load_config_text(camera(source="csi:0") + text, {}).pipeline

    assert pipeline("\nanalytics: {a: {}}") == "count"
    assert pipeline("\nanalytics: {}") == pipeline("") == "detect"
    assert pipeline("\nanalytics: {a: {}}\npipeline: own.py") == "own.py"
    assert (
        AppConfig(cameras=(CameraConfig(id="a", source="csi:0"),), analytics={"a": CameraAnalytics()}).pipeline
        == "count"
    )


def test_ids_from_the_environment_are_not_printed() -> None:
    cameras = "- {id: '${A}', source: csi:0}\n- {id: '${A}', source: csi:1}"
    with pytest.raises(ConfigError) as caught:
        load_config_text(f"pipeline: count\ncameras:\n{cameras}\nanalytics: {{s3sam: {{}}}}", {"A": "s3same"})
    assert fault_keys(caught.value) == [
        (4, "cameras[1].id", "duplicate-id"),
        (5, "analytics.s3sam", "unknown-camera"),
    ]
    assert all("'${A}'" in fault.message for fault in caught.value.faults)
    assert "s3same" not in str(caught.value)


def test_camera_without_valid_id_causes_no_second_fault() -> None:
    text = "pipeline: count\ncameras: [{id: '${A}', source: csi:0}]\nanalytics: {gate: {}}"
    assert [key for _, key, _ in config_faults(text)] == ["cameras[0].id"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"cameras": [{"id": "a", "source": "csi:0", "width": 640}]}, "width"),
        ({"cameras": [{"id": "a", "source": "csi:0"}, {"id": "a", "source": "csi:1"}]}, "cameras[1].id"),
        ({"cameras": [{"id": "node", "source": "csi:0"}]}, "cameras[0].id"),
        ({"cameras": [{"id": "a", "source": "csi:0"}], "pipeline": "track", "analytics": {"a": {}}}, "analytics"),
        (
            {
                "pipeline": "count",
                "cameras": [{"id": "a", "source": "csi:0"}],
                "analytics": {"a": {"zones": [{"name": "z", "polygon": [[0, 0], [0, 1], [1, 0]]}]}},
            },
            "zones[0].polygon",
        ),
    ],
)
def test_config_built_in_python_is_checked(values: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AppConfig.model_validate(values)
    (error,) = (error for error in caught.value.errors() if error["type"] == INCONSISTENT)
    assert error["msg"].startswith(f"{key}: ")


def test_config_built_in_python_has_defaults() -> None:
    config = AppConfig(cameras=(CameraConfig(id="a", source="synthetic:"),))
    assert config.publish == PublishConfig()
    assert config.analytics == {}


def test_passwords_are_not_printed() -> None:
    config = load_config_text(camera(source="'rtsp://u:${X}@h/1'"), {"X": "s3same"})
    assert config.cameras[0].source == "rtsp://u:s3same@h/1"
    assert "s3same" not in f"{config!r} {config} {config.cameras[0]}"
    assert "rtsp://***@h/1" in repr(config)


# --- classes of the model ---------------------------------------------------------------------------------------------

WITH_CLASSES = """\
pipeline: count
cameras: [{id: a, source: csi:0}]
detect:
  classes:
    - person
    - persn
analytics:
  a:
    lines:
      - name: b
        points: [[0, 0], [9, 9]]
        classes: [persn]
"""


def test_unknown_class_is_refused() -> None:
    config = load_config_text(WITH_CLASSES, {})
    check_classes(config, ["person", "persn"])
    with pytest.raises(ConfigError) as caught:
        check_classes(config, ["person", "car"])
    assert fault_keys(caught.value) == [
        (0, "analytics.a.lines[0].classes[0]", "unknown-class"),
        (0, "detect.classes[1]", "unknown-class"),
    ]
    assert all("'person'" in fault.message for fault in caught.value.faults)


def test_unknown_class_is_reported_with_its_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("site") / "camera.yaml"
    path.write_text(WITH_CLASSES)
    config = load_config_text(WITH_CLASSES, {})
    with pytest.raises(ConfigError) as caught:
        check_classes(config, ["person"], path)
    assert [fault.line for fault in caught.value.faults] == [6, 12]
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        check_classes(config, ["person"], path)
    assert [fault.line for fault in caught.value.faults] == [0, 0]


def test_short_model_spec_has_defaults() -> None:
    spec = ModelSpec.model_validate(
        {
            "name": "mine",
            "file": "mine.onnx",
            "input": {"width": 640, "height": 640},
            "head": {"kind": "yolov8"},
            "classes": ["cat", "dog"],
            "licence": "MIT",
        }
    )
    assert (spec.nms.iou_threshold, spec.input.letterbox, spec.head.strides) == (0.6, "center", None)
