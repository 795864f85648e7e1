"""Tests that random files result in a valid configuration, or in one `ConfigError` that contains no secret."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vision.config import AppConfig, config_schema, load_config_text, shipped_configs
from vision.config.schema import key_paths
from vision.errors import ConfigError

pytestmark = pytest.mark.integration

MARK = "zQ7x"
SECRETS = st.sampled_from(
    ["", "a/b", "@h", "'", '"', " ", "\n", "?", "#", "%", "ü", ":", "\\", "]", "<", "://", "$${A}", "${A}"]
).map(lambda rest: f"{MARK}{rest}{MARK}")


class EveryVariable(Mapping[str, str]):
    """Environment in which every variable contains the same secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __getitem__(self, name: str) -> str:
        return self._secret

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def check(text: str, secret: str) -> None:
    """Load `text`. If this raises an error, check that no printed form of the error contains the secret."""
    try:
        config = load_config_text(text, EveryVariable(secret))
    except ConfigError as error:
        printed = "".join(traceback.format_exception(error)) + repr(error) + error.hint + str(error.args)
        assert MARK not in printed
        assert str(error).startswith("camera.yaml:")
        assert error.faults
        assert "Input should" not in str(error)
    else:
        assert isinstance(config, AppConfig)
        for camera in config.cameras:
            if "://" in camera.source and MARK in camera.source.rpartition("@")[0]:  # user and password of a URL
                shown = str(dict(camera.__repr_args__())["source"])  # an id can contain any text
                assert MARK not in shown.rpartition("@")[0]


KEYS = sorted({key.rpartition(".")[2].strip("[]*") for key, _, _ in key_paths(config_schema())} - {""})
TEXTS = [
    "${A}",
    "x${A}y",
    "rtsp://u:${A}@h/1",
    "rtsp://${A}:${A}@h:554/${A}",
    "http://${A}/v?token=${A}",
    "${A}://h",
    "csi:${A}",
    "/dev/${A}",
    "synthetic:${A}",
    "tcp://${A}:1",
    "ipc://${A}",
    "tcp://*:${A}",
    "a.mp4",
    "csi:0",
    "/dev/video0",
    "gate",
    "tcp",
    "fraction",
    "both",
    "count",
    "detect",
    "person",
    "",
    " ",
    "${",
    "$${A}",
    "${A",
    "~",
    "yes",
    "nodel",
    "a\tb",
    "\u0085",
    "😀",
]
SCALARS = st.one_of(
    st.sampled_from(TEXTS),
    st.none(),
    st.booleans(),
    st.integers(-5, 700),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
)
POINTS = st.lists(st.lists(st.one_of(st.integers(-1, 5), st.floats(-0.5, 1.5)), min_size=1, max_size=3), max_size=6)
NAMES = st.one_of(
    st.sampled_from(KEYS),
    st.sampled_from(["gate", "${A}", "sorce", "<<", "", "a b"]),
    st.text(max_size=4),
    st.integers(0, 3),
)
ANYTHING = st.recursive(
    SCALARS | POINTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


def section(*keys: str, **special: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for a section: a mapping of some `keys` to valid and invalid values, or any other value."""
    optional = dict.fromkeys(keys, ANYTHING) | special
    return st.one_of(st.fixed_dictionaries({}, optional=optional), st.fixed_dictionaries(special), ANYTHING)


SHAPE = section(
    "direction",
    "classes",
    "anchor",
    "crowd_threshold",
    "crowded_for_s",
    "dwell_s",
    "zzz",
    name=st.sampled_from(["a", "b", "${A}"]),
    points=POINTS,
    polygon=POINTS,
)
CAMERA = section(
    "reader",
    "transport",
    "width",
    "height",
    "fps",
    "max_fps",
    "loop",
    "max_frame_age_s",
    id=st.sampled_from(["gate", "yard", "${A}"]),
    source=st.sampled_from(TEXTS),
)
CONFIG = st.fixed_dictionaries(
    {"cameras": st.lists(CAMERA, max_size=3) | ANYTHING},
    optional={
        "analytics": st.dictionaries(
            st.sampled_from(["gate", "yrd", "${A}", "a b"]),
            section("units", lines=st.lists(SHAPE, max_size=3), zones=st.lists(SHAPE, max_size=3)),
            max_size=3,
        )
        | ANYTHING,
        "detect": section("backend", "score_threshold", "iou_threshold", "classes", "precision", "max_batch"),
        "publish": section("encoding", "queue", bind=st.sampled_from(TEXTS)),
        "pipeline": st.sampled_from(TEXTS),
        "model": st.sampled_from(TEXTS),
        "node": ANYTHING,
        "zzz": ANYTHING,
    },
)

many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@many
@given(CONFIG, SECRETS, st.booleans())
def test_document_of_valid_and_invalid_parts_gives_a_configuration_or_located_faults(
    data: dict[str, Any], secret: str, flow: bool
) -> None:
    check(yaml.safe_dump(data, default_flow_style=flow, sort_keys=False, allow_unicode=True), secret)


SHIPPED = [path.read_text() for path in shipped_configs().values()]
PIECES = st.sampled_from(
    [
        "\n",
        " ",
        "\t",
        ":",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "<<: *a",
        "!x ",
        "!!int ",
        "'",
        '"',
        "|",
        ">",
        "#",
        "---\n",
        "...",
        "%",
        "@",
        "`",
        "? ",
        "${A}",
        "${",
        "$${",
        "\\",
        '"\\U00110000"',
        "\x07",
        "\ufeff",
        "😀",
        "null",
        "1e999",
        "0o9",
        "rtsp://u:${A}@h",
        "x: ",
        "\r",
        "\u2028",
    ]
)


@many
@given(
    st.sampled_from(SHIPPED),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 30), PIECES), max_size=6),
    SECRETS,
)
def test_changed_shipped_configuration_gives_a_configuration_or_located_faults(
    text: str, changes: list[tuple[int, int, str]], secret: str
) -> None:
    body = text.replace("_PASSWORD}", "}")
    for at, removed, piece in changes:
        start = at % len(body)
        body = body[:start] + piece + body[start + removed :]
    check(body, secret)


@many
@given(st.lists(PIECES | st.sampled_from(KEYS) | st.text(max_size=3), max_size=40).map("".join), SECRETS)
def test_random_yaml_punctuation_gives_a_configuration_or_located_faults(text: str, secret: str) -> None:
    check(text, secret)
