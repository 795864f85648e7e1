"""Renamed keys and synonyms: each row of the tables leads to the key that takes its place."""

from __future__ import annotations

import pytest

from tests.unit.config.fault_lines import fault_lines
from vision.config import load_config_text
from vision.config.app import AppConfig, ModelSpec
from vision.config.renamed import RENAMED, SYNONYMS, key_path, with_new_keys
from vision.config.schema import key_paths, schema_of
from vision.errors import ConfigError

MODEL_KEYS = {"nms.iou"}


def document(path: str, value: str = "1") -> str:
    """Return a camera.yaml in JSON with one more key, at `path`."""
    text = value
    for part in reversed(path.replace("[]", ".[]").replace("*", "gate").split(".")):
        text = f"[{text}]" if part == "[]" else f'{{"{part}": {text}}}'
    return text


def faults(path: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config_text(document(path), {})
    return [line for line in fault_lines(str(caught.value)) if "unknown key" in line]


@pytest.mark.parametrize("path", [path for path in RENAMED if path not in MODEL_KEYS])
def test_old_key_is_refused_with_its_line_and_new_name(path: str) -> None:
    (fault,) = faults(path)
    assert fault.startswith("camera.yaml:1")
    assert f"'{RENAMED[path]}'" in fault


@pytest.mark.parametrize("path", SYNONYMS)
def test_word_of_another_program_suggests_the_key(path: str) -> None:
    (fault,) = faults(path)
    assert f"'{SYNONYMS[path]}'" in fault


@pytest.mark.parametrize(("path", "key"), [*RENAMED.items(), *SYNONYMS.items()])
def test_tables_lead_to_keys_that_exist(path: str, key: str) -> None:
    model = ModelSpec if path in MODEL_KEYS else AppConfig
    keys = {found for found, _, _ in key_paths(schema_of(model))}
    assert path not in keys
    assert f"{path.rpartition('.')[0]}.{key}".lstrip(".") in keys


def test_old_key_is_the_only_fault() -> None:
    text = "cameras: [{id: a, source: csi:0}]\npipeline: count\nanalytics:\n  a:\n    zones:\n"
    text += "      - {name: z, polygon: [[0, 0], [9, 0], [0, 9]], crowded_above: 1, crowded_for_s: 2}\n"
    with pytest.raises(ConfigError) as caught:
        load_config_text(text, {})
    assert len(fault_lines(str(caught.value))) == 1


def test_key_path_replaces_positions_and_camera_ids() -> None:
    assert key_path(("analytics", "gate", "zones", 3, "points")) == "analytics.*.zones[].points"


def test_with_new_keys_leaves_other_keys() -> None:
    assert with_new_keys({"state": 1, "cameras": ({"state": 2},)}) == {"state_dir": 1, "cameras": ({"state": 2},)}
