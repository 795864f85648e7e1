"""Tests of the values of ``${NAME}`` that `redact` removes, and of the texts from which it removes them."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from pydantic import BaseModel

from vision.config import AppConfig, secret_values
from vision.config.load import load_config_text
from vision.errors import ConfigError, conceal

SECRET = "Zq7S3cret"

FORMS = [
    "rtsp://h/user=admin_password=${P}_channel=1",
    "rtsp://h/${P}/live",
    "rtsp://h/live${P}x/1",
    "rtsp://h/live?session=${P}",
    "http://h/get.cgi?user=a&loginpas=${P}",
    "http://h/get.cgi#${P}",
    "rtsp://u:${P}@h/live",
    "rtsp://${P}@h/live",
    "rtsp://h:554/;jsession=${P}?x=1",
]
"""Sources, each with a secret in a different part of its URL."""


def load(camera: dict[str, str], secret: str = SECRET, **top: object) -> None:
    cameras = [{"id": "a", "source": "rtsp://h/1"} | camera]
    load_config_text(json.dumps({"cameras": cameras} | top), {"P": secret, "HOST": "cam.example.com", "ID": "gate"})


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("secret", [SECRET, "a%2Fb%40c7", "9-d_e~f.g!"])
def test_value_in_a_source_is_a_secret(source: str, secret: str) -> None:
    load({"source": source}, secret)
    assert secret not in conceal(f"cannot open {source.replace('${P}', secret)}: {secret} was refused")


@pytest.mark.parametrize("secret", ["7", "ab", "x9z"])
def test_short_value_in_a_source_is_hidden_in_its_path(secret: str) -> None:
    load({"source": "rtsp://h/live/${P}/main"}, secret)
    assert conceal(f"rtsp://u:p@h/live/{secret}/main, 7 ab x9z") == "rtsp://u:p@h/live/***/main, 7 ab x9z"


def test_password_of_a_key_is_hidden_also_as_a_header() -> None:
    config = load_config_text(
        json.dumps({"cameras": [{"id": "a", "source": "rtsp://h/1", "user": "u", "password": "${P}"}]}), {"P": SECRET}
    )
    assert config.cameras[0].address is not None
    assert conceal(f"{SECRET} Basic dTpacTdTM2NyZXQ=") == "*** Basic ***"


def test_whole_address_is_hidden_without_its_host() -> None:
    load({"source": "${P}"}, f"rtsp://me:{SECRET}@cam.example.com:554/live/main?token=abcd1234")
    text = f"rtsp://me:{SECRET}@cam.example.com:554/live/main?token=abcd1234"
    hidden = conceal(f"{text}; abcd1234; me {SECRET}; GET /live/main")
    assert SECRET not in hidden
    assert "abcd1234" not in hidden
    assert "cam.example.com:554" in hidden


def test_hosts_names_and_paths_are_not_secrets() -> None:
    load({"id": "${ID}", "source": "rtsp://${HOST}/1"}, node="${ID}", model="${P}", state_dir="/var/${P}")
    text = f"gate at cam.example.com, /var/{SECRET}"
    assert conceal(text) == text


def test_secret_of_an_invalid_file_is_hidden_too() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"source": "rtsp://u:${P}@h:0/1", "password": "${P}"}, "a/b@c12345")
    assert "b@c12345" not in f"{caught.value} {caught.value.faults}"
    assert "b@c12345" not in conceal("a/b@c12345")


@pytest.mark.parametrize(
    "source", ["rtsp://h/user=a_password=x7_channel=1", "http://h/x?loginpas=x7", "rtsp://h/x?session=x7"]
)
def test_written_password_is_a_fault(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"source": source})
    assert [fault.code for fault in caught.value.faults] == ["written-password"]


@pytest.mark.parametrize(
    "section",
    [
        {"http": {"bind": "127.0.0.1:9090", "token": SECRET[:4]}},
        {"onvif": {"user": "a", "password": SECRET[:4]}},
        {"sinks": [{"name": "hook", "address": "http://h/", "secret": SECRET[:4]}]},
    ],
)
def test_too_short_written_secret_is_not_shown(section: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, SECRET, **section)
    assert "a value that is not shown" in str(caught.value)
    assert SECRET[:4] not in f"{caught.value} {caught.value.faults}"


@pytest.mark.parametrize("secret", ["/x9Qabcdefgh1234zzzz", "../x9Qabcdefgh1234zzzz", "a://x9Qabcdefgh1234zzzz/h"])
def test_secret_that_looks_like_a_path_or_an_address_is_hidden(secret: str) -> None:
    load({}, secret, http={"bind": "127.0.0.1:9090", "token": "${P}"})
    assert conceal(f"refused the token {secret}") == "refused the token ***"


def test_path_stays_visible() -> None:
    load({}, "/srv/vision", state_dir="${P}/state")
    assert conceal("cannot write /srv/vision/state") == "cannot write /srv/vision/state"


def test_each_field_for_a_secret_is_known() -> None:
    """A field that does not appear in the `repr` of an object (`repr=False`) is a secret."""
    seen: set[type[BaseModel]] = set()
    names: set[str] = set()

    def collect(kind: object) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind in seen:
                return
            seen.add(kind)
            for name, field in kind.model_fields.items():
                if not field.repr:
                    names.add(name)
                collect(field.annotation)
        for part in get_args(kind):
            collect(part)

    collect(AppConfig)
    assert names == secret_values.SECRET_KEYS
