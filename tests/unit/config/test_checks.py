"""Addresses of the publisher, names of files, and values that do not fit together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.unit.config.fault_lines import fault_lines
from vision.config import (
    AppConfig,
    CameraAnalytics,
    CameraConfig,
    ModelSpec,
    PublishConfig,
    check_classes,
    load_config_text,
)
from vision.config.addresses import check_bind, check_file_name, check_model_name, check_pipeline
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
    ("bind", "message"),
    [
        ("", "expected tcp://ADDRESS:PORT or ipc:///PATH"),
        ("127.0.0.1:5555", "expected tcp://ADDRESS:PORT or ipc:///PATH"),
        ("udp://127.0.0.1:5555", "expected tcp://ADDRESS:PORT or ipc:///PATH"),
        ("tcp://127.0.0.1", "with a port from 1 to 65535"),
        ("tcp://127.0.0.1:", "with a port from 1 to 65535"),
        ("tcp://127.0.0.1:65536", "with a port from 1 to 65535"),
        ("tcp://127.0.0.1:-1", "with a port from 1 to 65535"),
        ("tcp://localhost:5555", "did you mean '127.0.0.1'?"),
        ("tcp://:5555", "expected an address of this machine"),
        ("tcp://1.2.3:5555", "expected an address of this machine"),
        ("tcp://[::g]:5555", "expected an address of this machine"),
        ("tcp://::1:5555", "expected an address of this machine"),
        ("tcp://a/b:5555", "expected an address of this machine"),
        ("ipc://", "a whole path"),
        ("ipc:///", "a whole path"),
        ("ipc://node.sock", "a whole path"),
        ("ipc:///a\nb", "a whole path"),
        ("ipc:///" + "ü" * 54, "at most 107 bytes"),
    ],
)
def test_invalid_bind_address_is_refused(bind: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        check_bind(bind)
    assert message in str(caught.value)


def test_longest_socket_path_is_accepted() -> None:
    assert check_bind("ipc:///" + "x" * 106)


@pytest.mark.parametrize("name", ["", "a\nb", "https://models.net/x", "~/model"])
def test_invalid_model_name_is_refused(name: str) -> None:
    assert check_model_name("../my model") == "../my model"
    with pytest.raises(InvalidValue):
        check_model_name(name)


@pytest.mark.parametrize("name", ["", "Detect", "detect.yaml", "a/b", "a\n.py", "~/a.py", "x" * 65])
def test_invalid_pipeline_name_is_refused(name: str) -> None:
    assert check_pipeline("detect") == "detect"
    assert check_pipeline("../my pipeline.py") == "../my pipeline.py"
    with pytest.raises(InvalidValue):
        check_pipeline(name)


@pytest.mark.parametrize("name", ["", ".onnx", "a.pt", "a/b.onnx", "..\\b.onnx", "a\n.onnx"])
def test_invalid_onnx_file_name_is_refused(name: str) -> None:
    assert check_file_name("a b.onnx") == "a b.onnx"
    with pytest.raises(InvalidValue):
        check_file_name(name)


# --- together ---------------------------------------------------------------------------------------------------------


def faults(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """Return the faults of a document, without the file's name."""
    try:
        load_config_text(text, environ or {})
    except ConfigError as error:
        return [line.removeprefix("camera.yaml:") for line in fault_lines(str(error))]
    return []


def camera(**options: object) -> str:
    return f"cameras: [{{id: a, {', '.join(f'{key}: {value}' for key, value in options.items())}}}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            camera(source="csi:0", width=640),
            ["1: cameras[0].width: expected height too: they are given together"],
        ),
        (
            camera(source="csi:0", height=640),
            ["1: cameras[0].height: expected width too: they are given together"],
        ),
        (camera(source="csi:0", height=640, width=480, fps=30), []),
        (camera(source="a.mp4", fps=5, loop="true"), []),
        (camera(source="rtsp://h", loop="false"), []),
        (camera(source="rtsp://h", loop="true"), ["1: cameras[0].loop: has no effect on this source; only files have"]),
        (
            camera(source="'synthetic:'", loop="true"),
            ["1: cameras[0].loop: has no effect on this source; only files have"],
        ),
        (camera(source="rtsp://h", transport="udp"), []),
        (
            camera(source="http://h", transport="tcp"),
            ["1: cameras[0].transport: has no effect on this source; only rtsp:// and rtsps:// sources have"],
        ),
        (camera(source="rtsp://h", fps=5), ["1: cameras[0].fps: has no effect on this source"]),
        (
            camera(source="a.mp4", width=64, height=64),
            ["1: cameras[0].width: has no effect on", "1: cameras[0].height: has no effect on"],
        ),
        (
            camera(source="csi:0", reader="opencv"),
            ["1: cameras[0].reader: expected 'auto' or 'gstreamer' for this kind of source, got 'opencv'"],
        ),
        (
            camera(source="a.mp4", reader="gstreamer"),
            ["1: cameras[0].reader: expected 'auto', 'ffmpeg' or 'nvdec' for this kind of source"],
        ),
        (camera(source="a.mp4", reader="ffmpeg", loop="true"), []),
        (
            camera(source="'synthetic:'", reader="opencv"),
            ["1: cameras[0].reader: expected 'auto' for this kind of source"],
        ),
        (camera(source="/dev/video0", reader="gstreamer"), []),
        (
            camera(source="/dev/video0", reader="ffmpeg"),
            ["1: cameras[0].reader: expected 'auto', 'opencv' or 'gstreamer' for this kind of source, got 'ffmpeg'"],
        ),
        (camera(source="'rtsp://10.0.0.4/a'", reader="ffmpeg"), []),
        (camera(source="'rtsp://10.0.0.4/a'", reader="nvdec"), []),
        (camera(source="'http://10.0.0.4/a'", reader="nvdec"), []),
        (camera(source="a.mp4", reader="nvdec", loop="true"), []),
        (
            camera(source="/dev/video0", reader="nvdec"),
            ["1: cameras[0].reader: expected 'auto', 'opencv' or 'gstreamer' for this kind of source, got 'nvdec'"],
        ),
        (
            camera(source="'rtsp://10.0.0.4/a'", reader="nvdec", transport="udp"),
            ["1: cameras[0].transport: expected tcp with reader: nvdec"],
        ),
        (camera(source="'http://10.0.0.4/a'", reader="ffmpeg"), []),
        (
            "cameras:\n- {id: a, source: csi:0}\n- {id: b, source: csi:1}\n- {id: a, source: csi:2}\n",
            ["4: cameras[2].id: duplicate id 'a', first on line 2"],
        ),
        (
            "cameras:\n- {id: a, source: csi:0}\n- {id: b, source: csi:0}\n",
            ["3: cameras[1].source: expected another device than cameras[0].source on line 2"],
        ),
        ("cameras:\n- {id: a, source: a.mp4}\n- {id: b, source: a.mp4}\n", []),
        (
            camera(source="'rtsp://u:pw@h'"),
            ["1: cameras[0].source: a password in the file; expected it from the environment: write ${NAME} i"],
        ),
        (camera(source="'rtsp://u:pw${X}@h'"), ["1: cameras[0].source: a password in the file"]),
        (camera(source="'http://h/v?a=b&password=pw'"), ["1: cameras[0].source: a password in the file"]),
        (camera(source="'rtsp://u:${X}@h'"), []),
        (camera(source="'rtsp://${X}:${X}@h:554/?password=${X}'"), []),
        (camera(source="'rtsp://viewer@h'"), []),
        (camera(source="'rtsp://viewer:@h'"), []),
    ],
)
def test_camera_faults(text: str, expected: list[str]) -> None:
    found = faults(text, {"X": "s3same"})
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


ANALYTICS = """\
pipeline: count
detect: {classes: [person, car]}
cameras: [{id: gate, source: csi:0}, {id: yard, source: csi:1}]
analytics:
"""
LINE = "name: a, points: [[0, 0], [9, 9]]"
ZONE = "polygon: [[0, 0], [9, 0], [9, 9]]"
ONE_PERCENT = "all within one percent; expected units: fraction next to lines and zones, or percent from 0 to 100"
ONE_PIXEL = "all within one pixel; expected units: fraction next to lines and zones, or coordinates in pixels"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  gate: {}", []),
        ("  gat: {}", ["5: analytics.gat: no camera has this id (did you mean 'gate'?)"]),
        ("  zzz: {}", ["5: analytics.zzz: no camera has this id; expected 'gate' or 'yard'"]),
        (
            f"  gate:\n    lines:\n    - {{{LINE}}}\n    zones:\n    - {{name: a, {ZONE}}}",
            ["9: analytics.gate.zones[0].name: duplicate name 'a', first on line 7"],
        ),
        (f"  gate: {{lines: [{{{LINE}}}]}}\n  yard: {{lines: [{{{LINE}}}]}}", []),
        (
            "  gate: {units: fraction, lines: [{name: a, points: [[0, 0], [0.5, 1.5]]}]}",
            ["5: analytics.gate.lines[0].points[1]: expected fractions from 0 to 1, because units is fraction"],
        ),
        ("  gate: {units: fraction, lines: [{name: a, points: [[0, 0], [1, 1]]}]}", []),
        (
            "  gate: {units: percent, lines: [{name: a, points: [[0, 0], [50, 101]]}]}",
            ["5: analytics.gate.lines[0].points[1]: expected percent from 0 to 100, because units is percent"],
        ),
        ("  gate: {units: percent, lines: [{name: a, points: [[0, 0], [100, 100]]}]}", []),
        (
            "  gate: {units: percent, lines: [{name: a, points: [[0, 0], [0.5, 1]]}]}",
            [f"5: analytics.gate.lines[0].points: {ONE_PERCENT}"],
        ),
        (
            "  gate: {lines: [{name: a, points: [[0, 0.5], [1, 1]]}]}",
            [f"5: analytics.gate.lines[0].points: {ONE_PIXEL}"],
        ),
        (
            "  gate: {zones: [{name: a, polygon: [[0, 0], [9, 0], [9, 9]], crowded_for_s: 5}]}",
            ["5: analytics.gate.zones[0].crowded_for_s: has no effect without crowd_threshold"],
        ),
        ("  gate: {zones: [{name: a, polygon: [[0, 0], [9, 0], [9, 9]], crowded_for_s: 5, crowd_threshold: 0}]}", []),
        (
            "  gate: {lines: [{name: a, points: [[0, 0], [9, 9]], classes: [car, bus]}]}",
            ["5: analytics.gate.lines[0].classes[1]: never detected, because detect.classes does not include it"],
        ),
    ],
)
def test_analytics_faults(text: str, expected: list[str]) -> None:
    assert faults(ANALYTICS + text) == expected


@pytest.mark.parametrize("pipeline", ["pipeline: detect\n", "pipeline: track\n"])
def test_analytics_need_a_pipeline_with_analytics(pipeline: str) -> None:
    (fault,) = faults(pipeline + camera(source="csi:0") + "\nanalytics: {a: {}}")
    assert "has no lines and zones; expected pipeline: count, or a file of your own" in fault
    assert faults("pipeline: own.py\n" + camera(source="csi:0") + "\nanalytics: {a: {}}") == []
    assert faults(pipeline + camera(source="csi:0") + "\nanalytics: {}") == []


def test_pipeline_counts_where_analytics_are_given() -> None:
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
    assert faults(f"pipeline: count\ncameras:\n{cameras}\nanalytics: {{s3sam: {{}}}}", {"A": "s3same"}) == [
        "4: cameras[1].id: duplicate id '${A}', first on line 3",
        "5: analytics.s3sam: no camera has this id (did you mean '${A}'?)",
    ]


def test_camera_without_valid_id_causes_no_second_fault() -> None:
    text = "pipeline: count\ncameras: [{id: '${A}', source: csi:0}]\nanalytics: {gate: {}}"
    assert [line.split(": ")[1] for line in faults(text)] == ["cameras[0].id"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cameras": [{"id": "a", "source": "csi:0", "width": 640}]}, "height too"),
        ({"cameras": [{"id": "a", "source": "csi:0"}, {"id": "a", "source": "csi:1"}]}, "first in cameras[0].id"),
        ({"cameras": [{"id": "node", "source": "csi:0"}]}, "status/node"),
        (
            {"cameras": [{"id": "a", "source": "csi:0"}], "pipeline": "track", "analytics": {"a": {}}},
            "has no lines and zones",
        ),
        (
            {
                "pipeline": "count",
                "cameras": [{"id": "a", "source": "csi:0"}],
                "analytics": {"a": {"zones": [{"name": "z", "polygon": [[0, 0], [0, 1], [1, 0]]}]}},
            },
            "all within one pixel",
        ),
    ],
)
def test_config_built_in_python_is_checked_too(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AppConfig.model_validate(values)
    assert message in str(caught.value)


def test_config_built_in_python_has_defaults() -> None:
    site = AppConfig(cameras=(CameraConfig(id="a", source="synthetic:"),))
    assert site.publish == PublishConfig()
    assert site.analytics == {}


def test_passwords_are_not_printed() -> None:
    site = load_config_text(camera(source="'rtsp://u:${X}@h/1'"), {"X": "s3same"})
    assert site.cameras[0].source == "rtsp://u:s3same@h/1"
    assert "s3same" not in f"{site!r} {site} {site.cameras[0]}"
    assert "rtsp://***@h/1" in repr(site)


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
    site = load_config_text(WITH_CLASSES, {})
    check_classes(site, ["person", "persn"])
    with pytest.raises(ConfigError) as caught:
        check_classes(site, ["person", "car"])
    assert str(caught.value).splitlines() == [
        "detect.classes[1]: the model nanodet-g-416 has no class 'persn' (did you mean 'person'?)",
        "analytics.a.lines[0].classes[0]: the model nanodet-g-416 has no class 'persn' (did you mean 'person'?)",
    ]
    with pytest.raises(ConfigError, match=r"has no class 'person' \(it has sofa or car\)"):
        check_classes(site, ["sofa", "car"])


def test_unknown_class_is_reported_with_its_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("site") / "camera.yaml"
    path.write_text(WITH_CLASSES)
    site = load_config_text(WITH_CLASSES, {})
    with pytest.raises(ConfigError) as caught:
        check_classes(site, ["person"], path)
    assert [line.split(": ")[0] for line in fault_lines(str(caught.value))] == [f"{path}:6", f"{path}:12"]
    path.unlink()
    with pytest.raises(ConfigError, match=r"^detect.classes\[1\]: "):
        check_classes(site, ["person"], path)


def test_model_spec_of_ten_lines_has_defaults() -> None:
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
    assert (spec.nms.iou_threshold, spec.input.letterbox, spec.head.strides) == (0.6, "center", (8, 16, 32))
