"""Tests of the addresses and the conflicts in the section `onvif`."""

from __future__ import annotations

import pytest

from vision.config.load import load_config_text
from vision.errors import ConfigError

ACCOUNT = 'user: recorder, password: "${P}"'


def load(onvif: str) -> str:
    text = f"cameras:\n  - {{id: a, source: csi:0}}\nonvif: {{{onvif}}}\n"
    config = load_config_text(text, {"P": "verysecret", "SHORT": "abc"})
    assert config.onvif is not None
    return config.onvif.bind


@pytest.mark.parametrize(
    ("onvif", "bind"),
    [
        ("", "127.0.0.1:8554"),
        ('bind: "127.0.0.1:*"', "127.0.0.1:*"),
        (f'bind: "*:8554", {ACCOUNT}', "*:8554"),
        (f"bind: eth0:554, {ACCOUNT}", "eth0:554"),
    ],
)
def test_accepts_addresses(onvif: str, bind: str) -> None:
    assert load(onvif) == bind


@pytest.mark.parametrize(
    ("onvif", "key", "code"),
    [
        ('bind: "*:8554"', "onvif.bind", "insecure-address"),
        ("bind: 192.0.2.4:554", "onvif.bind", "insecure-address"),
        ("bind: rtsp://127.0.0.1:554, user: u, password: '${P}'", "onvif.bind", "bind-form"),
        ("bind: 127.0.0.1:0x", "onvif.bind", "port"),
        ("user: recorder", "onvif.user", "given-alone"),
        ('password: "${P}"', "onvif.password", "given-alone"),
        ("user: recorder, password: verysecret", "onvif.password", "written-password"),
        ('user: recorder, password: "${SHORT}"', "onvif.password", "string-too-short"),
        ('user: \'a"b\', password: "${P}"', "onvif.user", "string-pattern-mismatch"),
        ("clients: 3", "onvif.clients", "unknown-key"),
    ],
)
def test_refuses_invalid_values(onvif: str, key: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(onvif)
    assert [(fault.line, fault.key, fault.code) for fault in caught.value.faults] == [(3, key, code)]
