"""Tests of the section `sinks`: addresses, conflicts, secrets, and paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.config import AppConfig, load_config_text
from vision.config.load import load_config
from vision.config.sinks import SinkConfig, parse_sink_address
from vision.config.wording import InvalidValue
from vision.errors import ConfigError, redact


def config(*lines: str, state: str = "state_dir: state", environ: dict[str, str] | None = None) -> AppConfig:
    text = "\n".join(["cameras: [{id: gate, source: csi:0}]", state, "sinks:", *(f"  - {line}" for line in lines)])
    return load_config_text(text, {"SECRET": "a-secret-of-20-chars"} | (environ or {}))


def faults(*lines: str, state: str = "state_dir: state") -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as raised:
        config(*lines, state=state)
    return [(fault.key, fault.code) for fault in raised.value.faults]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://192.0.2.1", ("mqtt", False, (("192.0.2.1", 1883),), "")),
        ("MQTTS://broker.example.com:9000", ("mqtt", True, (("broker.example.com", 9000),), "")),
        ("kafka://a,b:9093", ("kafka", False, (("a", 9092), ("b", 9093)), "")),
        ("redis://h", ("redis", False, (("h", 6379),), "0")),
        ("rediss://h:1/7", ("redis", True, (("h", 1),), "7")),
        ("nats://[2001:db8::1]:4223", ("nats", False, (("2001:db8::1", 4223),), "")),
        ("https://h/a/b?c=d", ("webhook", True, (("h", 443),), "/a/b?c=d")),
        ("http://h", ("webhook", False, (("h", 80),), "")),
    ],
)
def test_address_is_parsed(text: str, expected: tuple[object, ...]) -> None:
    found = parse_sink_address(text)
    assert (found.protocol, found.tls, found.hosts, found.path) == expected


def test_servers_of_an_address_have_brackets_around_ipv6() -> None:
    assert parse_sink_address("kafka://[::1]:1,b").servers == "[::1]:1,b:9092"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("amqp://h", "sink-address"),
        ("mqtt:h", "sink-address"),
        ("h:1883", "sink-address"),
        ("mqtt://", "sink-host"),
        ("mqtt://h h", "sink-address"),
        ("mqtt://h:0x1", "sink-port"),
        ("mqtt://h:99999", "sink-port"),
        ("mqtt://user:pass@h", "sink-account"),
        ("mqtt://h/topic", "sink-path"),
        ("redis://h/name", "sink-path"),
        ("nats://a,b", "sink-hosts"),
        ("https://h_\u00e4", "sink-host"),
        ("mqtt://h\n", "sink-address"),
    ],
)
def test_wrong_address_is_refused(text: str, code: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        parse_sink_address(text)
    assert raised.value.code == code


@given(st.text(max_size=40).map(lambda text: f"mqtt://{text}") | st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        found = parse_sink_address(text)
    except InvalidValue:
        return
    assert all(1 <= port <= 65535 and host for host, port in found.hosts)


@pytest.mark.parametrize(
    ("line", "key", "code"),
    [
        ("{name: a, address: 'mqtt://h', secret: '${SECRET}'}", "secret", "no-effect"),
        ("{name: a, address: 'https://h', home_assistant: true}", "home_assistant", "no-effect"),
        ("{name: a, address: 'https://h', prefix: b}", "prefix", "no-effect"),
        ("{name: a, address: 'https://h', user: b, password: '${SECRET}'}", "user", "no-effect"),
        ("{name: a, address: 'mqtt://h', user: b}", "user", "given-alone"),
        ("{name: a, address: 'mqtt://h', password: '${SECRET}'}", "password", "given-alone"),
        ("{name: a, address: 'mqtt://h', tls: ca.pem}", "tls", "no-effect"),
        ("{name: a, address: 'mqtts://h', tls: accept-any}", "tls", "tls"),
        ("{name: a, address: 'mqtt://h', user: b, password: written}", "password", "written-password"),
        ("{name: a, address: 'https://h', secret: a-written-secret}", "secret", "written-password"),
        ("{name: a, address: 'https://h/?token=abcdef'}", "address", "written-password"),
        ("{name: a, address: 'mqtt://h', messages: [objects]}", "messages[0]", "needs-objects"),
        ("{name: a, address: 'mqtt://h', messages: []}", "messages", "names"),
        ("{name: a, address: 'mqtt://h', cameras: [yard]}", "cameras[0]", "unknown-camera"),
        ("{name: a, address: 'mqtt://h', prefix: a//b}", "prefix", "sink-prefix"),
        ("{name: a, address: 'mqtt://h', prefix: 'a/#'}", "prefix", "sink-prefix"),
        ("{name: a, address: 'mqtt://h', spool_age: 5}", "spool_age", "string-type"),
        ("{name: a, address: 'mqtt://h', spool_mb: 0}", "spool_mb", "greater-than-equal"),
    ],
)
def test_conflicts_of_a_sink_name_their_key(line: str, key: str, code: str) -> None:
    assert (f"sinks[0].{key}", code) in faults(line)


def test_names_are_unique_and_messages_need_a_folder() -> None:
    two = ("{name: a, address: 'mqtt://h'}", "{name: a, address: 'mqtt://i'}")
    assert ("sinks[1].name", "duplicate-name") in faults(*two)
    assert ("sinks", "needs-state-dir") in faults(two[0], state="node: a")


def test_sink_with_only_a_redis_password_is_valid() -> None:
    assert config("{name: a, address: 'redis://h', password: '${SECRET}'}").sinks[0].user is None


def test_secret_values_are_hidden_and_not_part_of_texts() -> None:
    (sink,) = config(
        "{name: a, address: 'https://h/${TOKEN}', secret: '${SECRET}'}", environ={"TOKEN": "t0ken-abc"}
    ).sinks
    assert "a-secret-of-20-chars" not in repr(sink)
    assert redact("https://h/t0ken-abc failed with a-secret-of-20-chars") == "https://h/*** failed with ***"


def test_path_of_certificates_is_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    sink = "{name: a, address: 'mqtts://h', tls: ca.pem}"
    path.write_text(f"cameras: [{{id: gate, source: csi:0}}]\nstate_dir: state\nsinks: [{sink}]\n")
    assert load_config(path, {}).sinks[0].tls == str(tmp_path / "ca.pem")


def test_defaults_keep_a_week_in_100_mb() -> None:
    sink = SinkConfig(name="a", address="mqtt://h")
    assert (sink.spool_mb, sink.spool_age_s) == (100, 7 * 86400)
