"""Tests of configuration sections as plain data for other processes: values, classes, and invalid data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from vision.config import AppConfig, CameraConfig
from vision.config.fields import ConfigSection
from vision.config.load import load_config, shipped_configs
from vision.config.transfer import plain_section, section_of
from vision.errors import ConfigError


def sent(section: ConfigSection) -> ConfigSection:
    data = msgspec.msgpack.encode(section, enc_hook=plain_section)
    kind = type(section)
    return msgspec.msgpack.decode(data, type=kind, dec_hook=section_of)


def values(value: object) -> Iterator[tuple[type, object]]:
    """Yield all values in a section together with their classes, because 1, 1.0, and True are equal."""
    if isinstance(value, ConfigSection):
        yield type(value), frozenset(value.model_fields_set)
        for name in type(value).model_fields:
            yield from values(getattr(value, name))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield dict, key
            yield from values(each)
    elif isinstance(value, tuple):
        yield tuple, len(value)
        for each in value:
            yield from values(each)
    else:
        yield type(value), value


@pytest.mark.parametrize("path", shipped_configs().values(), ids=lambda path: path.stem)
def test_configuration_arrives_as_it_was(path: Path) -> None:
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", path.read_text()), "a-secret-of-the-test")
    config = load_config(path, environ)
    received = sent(config)
    assert received == config
    assert list(values(received)) == list(values(config))


def test_values_are_not_validated_again() -> None:
    camera = CameraConfig(id="gate", source="synthetic:64x48").model_copy(update={"id": "gate.2"})
    assert sent(camera) == camera


@pytest.mark.parametrize(
    "data",
    [{"": "DetectConfig"}, {"": "OtherClass"}, {"": 7}, {"id": "a"}, [], None, {"": "AppConfig", "track": {"": "x"}}],
)
def test_other_data_is_refused(data: object) -> None:
    with pytest.raises(TypeError):
        section_of(AppConfig, data)


@pytest.mark.parametrize("name", [b"caf\xe9/camera.yaml", b"caf\xe9.yaml"])
def test_path_that_messages_cannot_contain_is_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("cameras: [{id: a, source: 'synthetic:64x48'}]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert caught.value.code == "path-encoding"
