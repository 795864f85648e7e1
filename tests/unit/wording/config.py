"""Expected texts of configuration errors, as `vision` prints them."""

from __future__ import annotations

from vision.config import AppConfig, CameraConfig, check_classes, load_config_text
from vision.errors import ConfigError


def _refusal(text: str) -> str:
    try:
        load_config_text(text, {})
    except ConfigError as error:
        return str(error)
    return "no error"


def _unknown_class() -> str:
    config = AppConfig.model_validate(
        {"cameras": (CameraConfig(id="a", source="csi:0"),), "detect": {"classes": ("people",)}}
    )
    try:
        check_classes(config, ("apple", "person"))
    except ConfigError as error:
        return str(error)
    return "no error"


_CAMERA = "cameras:\n  - {id: a, source: csi:0}\n"

ROWS = [
    (
        "a number in quotes",
        lambda: _refusal(_CAMERA + "stop_timeout_s: '5'\n"),
        (
            "camera.yaml:3: stop_timeout_s: expected a number above 0 up to 60, got '5' (without quotes)\n"
            "    stop_timeout_s: '5'\n"
            "    ^"
        ),
    ),
    (
        "a list instead of keys",
        lambda: _refusal(_CAMERA + "publish: [1]\n"),
        "camera.yaml:3: publish: expected keys and values, got a list of 1\n    publish: [1]\n    ^",
    ),
    (
        "a key without a value",
        lambda: _refusal(_CAMERA + "publish: {queue: }\n"),
        (
            "camera.yaml:3:11: publish.queue: expected a whole number from 1 to 1000000, got nothing\n"
            "    publish: {queue: }\n"
            "              ^"
        ),
    ),
    (
        "a value out of range",
        lambda: _refusal(_CAMERA + "detect:\n  score_threshold: 35\n"),
        (
            "camera.yaml:4: detect.score_threshold: expected a number from 0 to 1, got 35\n"
            "      score_threshold: 35\n"
            "      ^"
        ),
    ),
    (
        "a renamed key",
        lambda: _refusal(_CAMERA + "detect: {score: 0.4}\n"),
        (
            "camera.yaml:3:10: detect.score: unknown key: renamed to 'score_threshold'\n"
            "    detect: {score: 0.4}\n"
            "             ^"
        ),
    ),
    (
        "an id twice",
        lambda: _refusal(_CAMERA + "  - {id: a, source: csi:1}\n"),
        "camera.yaml:3:6: cameras[1].id: duplicate id 'a', first on line 2\n      - {id: a, source: csi:1}\n         ^",
    ),
    (
        "a class that the model calls otherwise",
        _unknown_class,
        "detect.classes[0]: the model nanodet-g-416 has no class 'people' (did you mean 'person'?)",
    ),
    (
        "a unit written out",
        lambda: _refusal(
            _CAMERA + "analytics: {a: {}}\nrules:\n  - name: busy\n    when: crowded road for 10 seconds\n"
        ),
        (
            "camera.yaml:6: rules[0].when: expected a duration such as 500ms, 10s, 5m, 2h or 1d, got 'crowded road for "
            "10 seconds' (did you mean '10s'? the units are ms, s, m, h and d, without a space before them)\n"
            "        when: crowded road for 10 seconds\n"
            "        ^"
        ),
    ),
    (
        "a mapping of cameras",
        lambda: _refusal("cameras:\n  gate:\n    source: csi:0\n"),
        (
            "camera.yaml:1: cameras: expected a list of 1 to 1000 entries, got keys and values (a list, in which each "
            "camera begins with '- id: gate')\n"
            "    cameras:\n"
            "    ^"
        ),
    ),
    (
        "a tab",
        lambda: _refusal("cameras:\n\t- id: a\n"),
        "camera.yaml:2: not valid YAML: a tab: YAML is indented with spaces\n     - id: a\n    ^",
    ),
    (
        "a variable that is not set",
        lambda: _refusal("cameras:\n  - id: a\n    source: rtsp://h\n    user: u\n    password: ${GATE_PASSWORD}\n"),
        (
            "camera.yaml:5:15: cameras[0].password: the environment variable GATE_PASSWORD is not set (export it, or "
            "write $${ for a plain ${)"
        ),
    ),
    (
        "a missing key",
        lambda: _refusal("cameras:\n  - source: csi:0\n"),
        (
            "camera.yaml:2: cameras[0].id: missing; expected a name of at most 64 letters, digits, '-' and '_' that "
            "starts with a letter or digit\n      - source: csi:0\n        ^"
        ),
    ),
    (
        "lines of a camera that does not exist",
        lambda: _refusal(_CAMERA + "analytics:\n  yard: {}\n"),
        "camera.yaml:4: analytics.yard: no camera has this id; expected 'a'\n      yard: {}\n      ^",
    ),
    (
        "fractions without their unit",
        lambda: _refusal(_CAMERA + "analytics:\n  a:\n    lines:\n      - {name: l, points: [[0, 0.5], [1, 1]]}\n"),
        (
            "camera.yaml:6:19: analytics.a.lines[0].points: expected coordinates in pixels, or `units: fraction` next "
            "to lines and zones, got points within one pixel\n"
            "          - {name: l, points: [[0, 0.5], [1, 1]]}\n"
            "                      ^"
        ),
    ),
    (
        "a sink with an unknown scheme",
        lambda: _refusal(_CAMERA + "state_dir: s\nsinks: [{name: a, address: 'amqp://h'}]\n"),
        (
            "camera.yaml:4:19: sinks[0].address: expected an address such as mqtt://HOST:PORT, with mqtt, kafka, "
            "redis, nats, or http, or with TLS, got 'amqp://h' (the schemes are mqtt, mqtts, kafka, kafkas, redis, "
            "rediss, nats, natss, http or https)\n"
            "    sinks: [{name: a, address: 'amqp://h'}]\n"
            "                      ^"
        ),
    ),
    (
        "a sink without a folder",
        lambda: _refusal(_CAMERA + "sinks: [{name: a, address: 'mqtt://h'}]\n"),
        (
            "camera.yaml:3: sinks: expected state_dir too, the folder in which messages wait\n"
            "    sinks: [{name: a, address: 'mqtt://h'}]\n"
            "    ^"
        ),
    ),
]
