"""Tests of the shipped configurations and their names, of the configuration reference, and of the JSON Schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vision.config import (
    config_schema,
    folder_of_model,
    load_config,
    load_config_text,
    load_model_spec,
    model_schema,
    resolve_config,
    shipped_configs,
    shipped_models,
)
from vision.config.document import Node
from vision.config.schema import Schema, expectation, key_paths, resolve
from vision.config.source_address import Rtsp
from vision.config.yaml_reader import read_document
from vision.errors import ConfigError, ModelError

SECRETS = {
    "CAMERA_PASSWORD": "a/b",
    "GATE_PASSWORD": "d",
    "METRICS_TOKEN": "0123456789abcdef",
    "PAGE_TOKEN": "0123456789abcdef",
    "ONVIF_SERVER_PASSWORD": "0123456789abcdef",
} | {
    "BROKER_PASSWORD": "e",
    "WEBHOOK_SECRET": "0123456789abcdef",
    "LANGUAGE_KEY": "f",
}
REFERENCE = shipped_configs()["reference"]
DEMONSTRATED = {"pipeline"}
"""Keys whose value in the reference is not the default, because lines and zones need a pipeline with analytics."""


# --- shipped ----------------------------------------------------------------------------------------------------------


def test_every_shipped_configuration_is_valid() -> None:
    assert set(shipped_configs()) >= {"counting", "demo", "four-cameras", "jetson", "reference"}
    for path in shipped_configs().values():
        assert load_config(path, SECRETS).cameras


def test_demo_plays_the_shipped_clip_twice() -> None:
    config = load_config(resolve_config("demo"), {})
    assert [(camera.id, camera.loop) for camera in config.cameras] == [("north", True), ("south", True)]
    for camera in config.cameras:
        assert Path(camera.source).is_absolute()
        assert Path(camera.source).read_bytes()[4:8] == b"ftyp"


def test_four_cameras_reads_passwords_from_the_environment() -> None:
    config = load_config(resolve_config("four-cameras"), SECRETS)
    assert len(config.cameras) == 4
    assert config.cameras[0].address == Rtsp("rtsp://viewer:a%2Fb@192.0.2.11/stream1")
    with pytest.raises(ConfigError) as caught:
        load_config(resolve_config("four-cameras"), {})
    assert [fault.code for fault in caught.value.faults] == ["unset-variable"] * 4


def test_jetson_has_a_camera_of_each_kind() -> None:
    config = load_config(resolve_config("jetson"), SECRETS)
    assert [camera.source.partition(":")[0] for camera in config.cameras] == [
        "rtsp",
        "csi",
        "/dev/v4l/by-id/usb-046d_HD_Pro_Webcam_C920-video-index0",
    ]
    assert config.detect.precision == "fp16"


# --- names ------------------------------------------------------------------------------------------------------------


def test_name_is_a_shipped_configuration_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_config("demo") == shipped_configs()["demo"]
    for path in ("camera.yaml", "site.yml", "./demo", "/etc/vision/shop", "a/b"):
        assert resolve_config(path) == Path(path)
    Path("shop").touch()
    assert resolve_config("shop") == Path("shop")
    Path("demo").touch()
    assert resolve_config("demo") == shipped_configs()["demo"]


@pytest.mark.parametrize(("name", "hint"), [("dmeo", "'demo'"), ("jetsn", "'jetson'"), ("", "vision run demo")])
def test_unknown_name_lists_the_shipped_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(name)
    assert [name for name in shipped_configs() if name not in str(caught.value)] == []
    assert hint in caught.value.hint


# --- paths ------------------------------------------------------------------------------------------------------------

WITH_PATHS = """\
pipeline: own/steps.py
model: ../models/mine
cameras:
  - {id: a, source: videos/a.mp4}
  - {id: b, source: /data/b.mp4}
  - {id: c, source: "rtsp://h/videos"}
  - {id: d, source: frames/}
  - {id: e, source: csi:0}
  - {id: f, source: "synthetic:"}
  - {id: g, source: /dev/video0}
"""


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "camera.yaml").write_text(WITH_PATHS)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("site/camera.yaml"), {})
    folder = tmp_path / "site"
    assert config.pipeline == f"{folder}/own/steps.py"
    assert config.model == f"{folder}/../models/mine"
    assert [camera.source for camera in config.cameras] == [
        f"{folder}/videos/a.mp4",
        "/data/b.mp4",
        "rtsp://h/videos",
        f"{folder}/frames",
        "csi:0",
        "synthetic:",
        "/dev/video0",
    ]


def test_names_are_not_made_absolute(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text("pipeline: detect\nmodel: mine\ncameras: [{id: a, source: csi:0}]")
    config = load_config(path, {})
    assert (config.pipeline, config.model) == ("detect", "mine")
    assert load_config_text(WITH_PATHS, {}).model == "../models/mine"


def test_folder_of_a_model_is_shipped_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_of_model("mine", shipped_models()) == shipped_models() / "mine"
    assert folder_of_model("./mine", shipped_models()) == Path("mine")
    assert (shipped_models() / "__init__.py").is_file()


@pytest.mark.parametrize(("name", "suggested"), [("demoo.yaml", "'demo'"), ("em.yml", "'em.yaml'"), ("gate.yaml", "")])
def test_missing_configuration_suggests_only_similar_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suggested: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "em.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(resolve_config(name), {})
    assert caught.value.code == "no-such-file"
    names = [name for name in ("'demo'", "'em.yaml'") if f"{name}?" in caught.value.hint]
    assert names == ([suggested] if suggested else [])


def test_missing_or_invalid_model_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model_spec(tmp_path / "none")
    assert caught.value.code == "no-such-file"
    assert "model.yaml" in caught.value.hint
    (tmp_path / "model.yaml").write_text("name: [")
    with pytest.raises(ModelError) as caught:
        load_model_spec(tmp_path)
    assert [(fault.line, fault.column, fault.code) for fault in caught.value.faults] == [(1, 8, "invalid-yaml")]


def test_model_yaml_has_no_variables(tmp_path: Path) -> None:
    sections = "input: {width: 32, height: 32}\nhead: {kind: yolov8}\n"
    (tmp_path / "model.yaml").write_text(f"name: a\nfile: a.onnx\n{sections}classes: coco80\nlicence: ${{HOME}}\n")
    spec = load_model_spec(tmp_path)
    assert (spec.licence, spec.classes) == ("${HOME}", "coco80")


def test_every_shipped_model_yaml_is_valid() -> None:
    for path in shipped_models().glob("*/model.yaml"):
        assert load_model_spec(path.parent).name == path.parent.name


# --- the schema and the reference -------------------------------------------------------------------------------------


def keys_of(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the properties of every object of the schema."""
    for name, definition in [("", schema), *schema["$defs"].items()]:
        for key, value in definition.get("properties", {}).items():
            yield f"{name}.{key}", value


def test_schema_describes_every_key() -> None:
    schema = json.loads(json.dumps(config_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["cameras"]
    for path, value in keys_of(schema):
        assert resolve(schema, value)["description"], path
    for definition in (schema, *schema["$defs"].values()):
        assert definition["description"]
        assert definition["additionalProperties"] is False
    camera = schema["$defs"]["CameraConfig"]["properties"]
    assert camera["transport"]["enum"] == ["tcp", "udp"]
    assert camera["open_timeout_s"]["maximum"] == 120


def test_model_schema_describes_every_key() -> None:
    schema = json.loads(json.dumps(model_schema()))
    for kind in schema["anyOf"]:
        assert {"name", "file", "input", "head", "classes"} <= set(kind["required"])
        for path, value in keys_of({**kind, "$defs": schema["$defs"]}):
            assert resolve(schema, value)["description"], path


def written_keys(node: Node, base: str = "") -> Iterator[tuple[str, int, Node]]:
    """Yield each key of a document, in the form of `key_paths`, with its line and its value.

    ``*`` replaces a key that the user chooses.
    """
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            name = "*" if base in ("analytics", "privacy") else key
            path = f"{base}.{name}" if base else name
            yield path, node.keys[key].line, child
            yield from written_keys(child, path)
    elif isinstance(node.value, tuple):
        for child in node.value:
            yield from written_keys(child, f"{base}[]")


def comment_above(lines: list[str], line: int) -> list[str]:
    """Return the comment that ends directly above the line `line`. The first line has the number 1."""
    comment: list[str] = []
    for text in reversed(lines[: line - 1]):
        if not text.lstrip().startswith("#"):
            break
        comment.insert(0, text.strip().lstrip("# "))
    return comment


def limits(root: Schema, schema: Schema, *, required: bool) -> str:
    """Describe valid values and the default, as in `configs/reference.yaml`: ``a number from 0 to 1; default 0.35``."""
    if required:
        return f"{expectation(root, schema)}; required"
    default = schema.get("default")
    if default is None:
        return f"{expectation(root, schema)}; default: none"
    text = default if isinstance(default, str) else json.dumps(default)
    return f"{expectation(root, schema)}; default {text}"


def reference_faults(path: Path) -> list[str]:
    """Return the differences between the configuration reference at `path` and the schema."""
    schema = config_schema()
    keys = {key: (value, required) for key, value, required in key_paths(schema)}
    written = list(written_keys(read_document(path).root))
    lines = path.read_text().splitlines()
    faults = [f"{key}: missing" for key in keys if key not in {name for name, _, _ in written}]
    seen: set[str] = set()
    for key, line, node in written:
        if key in seen or key in ("analytics.*", "privacy.*"):
            continue
        seen.add(key)
        if key not in keys:
            faults.append(f"{line}: {key}: not in the schema")
            continue
        value, required = keys[key]
        section = resolve(schema, value).get("properties") is not None
        comment = comment_above(lines, line)
        prose = comment if section else comment[:-1]
        if not prose or not prose[0][0].isupper():
            faults.append(f"{line}: {key}: not explained")
        if not section and comment[-1:] != [f"({limits(schema, value, required=required)})"]:
            faults.append(f"{line}: {key}: expected ({limits(schema, value, required=required)})")
        default = value.get("default")
        is_plain = isinstance(default, str | int | float)
        if is_plain and key not in DEMONSTRATED and node.plain() != default:
            faults.append(f"{line}: {key}: expected the default {default}")
    return faults


def test_reference_has_every_key_with_limits_and_default() -> None:
    assert reference_faults(REFERENCE) == []
    assert "# yaml-language-server: $schema=" in REFERENCE.read_text()


@pytest.mark.parametrize(
    ("pattern", "replacement", "fault"),
    [
        (r"  score_threshold: 0.35\n", "", "detect.score_threshold: missing"),
        (r"    crowded_for_s: 0.0\n", "", "zones[].crowded_for_s: missing"),
        (r"  score_threshold: 0.35\n", "  score_threshold: 0.5\n", "detect.score_threshold: expected the default 0.35"),
        (r"default 0.35\)", "default 0.4)", "detect.score_threshold: expected (a number from 0 to 1; default 0.35)"),
        (r"from 1 to 256; default 8", "from 1 to 128; default 8", "detect.max_batch: expected (a whole number"),
        (r"  # Minimum score.*\n", "", "detect.score_threshold: not explained"),
        (r"node: station-7\n", "node: station-7\nnod: b\n", "nod: not in the schema"),
        (r"        direction: both\n", "        direction: in\n", "lines[].direction: expected the default both"),
    ],
)
def test_fault_in_the_reference_is_found(tmp_path: Path, pattern: str, replacement: str, fault: str) -> None:
    path = tmp_path / "reference.yaml"
    text, count = re.subn(pattern, replacement, REFERENCE.read_text(), count=1)
    assert count == 1
    path.write_text(text)
    assert any(fault in line for line in reference_faults(path))


def test_pyyaml_reads_the_shipped_configurations_alike() -> None:
    for path in shipped_configs().values():
        ours = json.dumps(read_document(path).plain())
        assert json.dumps(yaml.safe_load(path.read_text())) == ours
