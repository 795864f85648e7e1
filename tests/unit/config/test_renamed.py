"""Tests that, for each renamed key and each synonym in the tables, the error names the correct key."""

from __future__ import annotations

import pytest

from vision.config import AppConfig, ModelSpec, load_config_text
from vision.config.schema import key_paths, schema_of
from vision.config.validation import RENAMED, SYNONYMS, key_path
from vision.errors import ConfigError, Fault

MODEL_KEYS = {"nms.iou"}


def document(path: str, value: str = "1") -> str:
    """Return a camera.yaml in JSON with one additional key at `path`."""
    text = value
    for part in reversed(path.replace("[]", ".[]").replace("*", "gate").split(".")):
        text = f"[{text}]" if part == "[]" else f'{{"{part}": {text}}}'
    return text


def fault_of(path: str) -> Fault:
    with pytest.raises(ConfigError) as caught:
        load_config_text(document(path), {})
    (fault,) = (fault for fault in caught.value.faults if fault.code == "unknown-key")
    return fault


@pytest.mark.parametrize("path", [path for path in RENAMED if path not in MODEL_KEYS])
def test_old_key_is_refused_with_its_line_and_new_name(path: str) -> None:
    fault = fault_of(path)
    assert fault.line == 1
    assert f"'{RENAMED[path]}'" in fault.message


@pytest.mark.parametrize("path", SYNONYMS)
def test_synonym_suggests_the_key(path: str) -> None:
    assert f"'{SYNONYMS[path]}'" in fault_of(path).message


@pytest.mark.parametrize(("path", "key"), [*RENAMED.items(), *SYNONYMS.items()])
def test_tables_name_existing_keys(path: str, key: str) -> None:
    model = ModelSpec if path in MODEL_KEYS else AppConfig
    keys = {name for name, _, _ in key_paths(schema_of(model))}
    assert path not in keys
    assert f"{path.rpartition('.')[0]}.{key}".lstrip(".") in keys


def test_key_path_replaces_positions_and_camera_ids() -> None:
    assert key_path(("analytics", "gate", "zones", 3, "points")) == "analytics.*.zones[].points"
