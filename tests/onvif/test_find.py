"""Tests of `vision cameras find`. The devices follow the published WSDL, and an independent client can read them."""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from onvif import ONVIFClient
from wsdiscovery.publishing import ThreadedWSPublishing
from wsdiscovery.qname import QName
from wsdiscovery.scope import Scope

from tests.onvif.device import STREAMS, OnvifDevice, Stream, answering_probes, probe_matches
from tests.unit.cli.in_process import call
from tests.unit.cli.pseudo_terminal import pseudo_terminal
from vision.capture.onvif.device import Device, Profile, on_same_host
from vision.capture.onvif.find import Camera, Target, camera_section, find_devices, preferred_profile
from vision.capture.onvif.soap import Account
from vision.config.changes import read_camera

SEARCH_S = 10.0


@contextmanager
def found_by_wsdiscovery(device: OnvifDevice) -> Iterator[None]:
    """Announce the device with the package WSDiscovery, which also responds to probes."""
    publishing = ThreadedWSPublishing()
    publishing.start()
    try:
        publishing.publishService(
            types=[QName("http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter")],
            scopes=[Scope("onvif://www.onvif.org/name/North%20Gate"), Scope("onvif://www.onvif.org/Profile/M")],
            xAddrs=[device.address],
        )
        yield
    finally:
        publishing.stop()


def network_address() -> str:
    """Return an address of this machine at which the package WSDiscovery responds."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not ipaddress.ip_address(each.address).is_loopback:
                return each.address
    pytest.skip("this machine has no network interface")


def ask(device: OnvifDevice, account: Account | None = None) -> Device:
    """Search for a device at its address. Return the result of the search."""
    (found,) = find_devices([Target(device.host, device.port)], SEARCH_S, account)
    return found


def account_of(device: OnvifDevice) -> Account:
    return Account(device.user, device.password)


@pytest.mark.parametrize("auth", ["token", "http-digest"])
def test_an_independent_client_reads_the_test_device(auth: Any) -> None:
    with OnvifDevice(auth=auth).serving() as device:
        client = ONVIFClient(device.host, device.port, device.user, device.password, http_digest=auth == "http-digest")
        assert client.devicemgmt().GetDeviceInformation()["Model"] == "V-8"
        profiles = client.media().GetProfiles()
        assert [each["VideoEncoderConfiguration"]["Resolution"]["Width"] for each in profiles] == [1920, 640, 320]
        setup = {"Stream": "RTP-Unicast", "Transport": {"Protocol": "RTSP"}}
        uri = client.media().GetStreamUri(StreamSetup=setup, ProfileToken="sub")["Uri"]
        assert uri == f"rtsp://{device.host}:554/sub"
        assert len(client.media2().GetProfiles(Type=["All"])) == len(STREAMS)


@pytest.mark.parametrize("auth", ["token", "http-digest", "none"])
@pytest.mark.parametrize("has_media_2", [False, True])
def test_finds_profiles_and_streams(auth: Any, has_media_2: bool) -> None:
    with OnvifDevice(auth=auth, has_media_2=has_media_2).serving() as device:
        found = ask(device, account_of(device))
    assert (found.manufacturer, found.model, found.firmware, found.serial) == ("Vista", "V-8", "1.2.3", "0042")
    assert [(each.codec, each.width, each.height, each.fps) for each in found.profiles] == [
        stream[1:5] for stream in STREAMS
    ]
    assert [each.address for each in found.profiles] == [f"rtsp://{device.host}:554/{each[0]}" for each in STREAMS]
    assert not found.problems
    assert not any(device.password.encode() in each for each in device.raw)


@pytest.mark.parametrize("days", [-4000, 1])
def test_uses_the_clock_of_the_device(days: int) -> None:
    with OnvifDevice(clock_offset=timedelta(days=days)).serving() as device:
        assert len(ask(device, account_of(device)).profiles) == len(STREAMS)


def test_asks_for_capabilities_of_a_device_without_get_services() -> None:
    with OnvifDevice(has_services=False).serving() as device:
        assert len(ask(device, account_of(device)).profiles) == len(STREAMS)


@pytest.mark.parametrize(
    ("account", "code"),
    [(None, "onvif-no-account"), (Account("viewer", "wrong"), "onvif-account"), (Account("x", "y"), "onvif-account")],
)
@pytest.mark.parametrize("auth", ["token", "http-digest"])
def test_reports_a_refused_account(auth: Any, account: Account | None, code: str) -> None:
    with OnvifDevice(auth=auth).serving() as device:
        found = ask(device, account)
    assert [problem.code for problem in found.problems] == [code]


# A thread of the package fails because it also answers over IPv6. Its thread for IPv4 continues.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_finds_an_announced_device_and_adds_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OnvifDevice(host=network_address()).serving() as device, found_by_wsdiscovery(device):
        monkeypatch.setenv("ONVIF_PASSWORD", device.password)
        result = call("cameras", "find", "--user", device.user, "--json", "--timeout", "3s")
    assert result.returncode == 0, result.stderr
    assert device.password not in result.stdout + result.stderr
    (found,) = [each for each in json.loads(result.stdout) if each["address"] == device.address]
    assert (found["name"], found["model"]) == ("North Gate", "V-8")
    (camera,) = found["cameras"]
    assert [each["name"] for each in camera["profiles"] if each["preferred"]] == ["sub stream"]
    section = camera["camera"]
    assert section == {
        "id": section["id"],
        "source": f"rtsp://{device.host}:554/sub",
        "user": device.user,
        "password": "${ONVIF_PASSWORD}",
    }
    file = tmp_path / "camera.yaml"
    file.write_text(yaml.safe_dump(section))
    assert read_camera(file) == section


def test_prints_a_table_and_lines_for_camera_yaml(tmp_path: Path) -> None:
    with OnvifDevice().serving() as device:
        file = tmp_path / "password"
        file.write_text(f"{device.password}\n")
        address = f"{device.host}:{device.port}"
        result = call("cameras", "find", address, "--user", device.user, "--password-file", file)
    assert result.returncode == 0, result.stderr
    table, _, lines = result.stdout.partition("\ncameras:")
    assert [row.split()[0] for row in table.splitlines()[1:4]] == ["camera-127-0-0-1"] * 3
    (camera,) = yaml.safe_load(f"cameras:{lines}")["cameras"]
    assert camera["source"].endswith("/sub")
    assert device.password not in result.stdout + result.stderr


def test_asks_for_the_password_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONVIF_PASSWORD", raising=False)
    with OnvifDevice().serving() as device:
        command = [
            sys.executable,
            "-m",
            "vision",
            "cameras",
            "find",
            f"{device.host}:{device.port}",
            "--user",
            device.user,
        ]
        with pseudo_terminal(command, columns=200) as terminal:
            terminal.read_until("Password of viewer", timeout_s=60)
            terminal.write(f"{device.password}\n")
            terminal.read_until("password: ${ONVIF_PASSWORD}", timeout_s=60)
    assert device.password not in "\n".join(terminal.lines)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["127.0.0.1:0"], 2),
        (["http://127.0.0.1"], 2),
        (["--password-file", "x"], 2),
        (["--user", "viewer"], 78),
        (["--user", "viewer", "--password-file", "/missing"], 78),
        (["--timeout", "0"], 2),
    ],
)
def test_refuses_invalid_arguments(arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONVIF_PASSWORD", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert call("cameras", "find", *arguments).returncode == code


def test_named_device_that_does_not_answer_is_a_temporary_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # refuses connections, because it does not listen
        result = call("cameras", "find", f"127.0.0.1:{unused.getsockname()[1]}")
    assert result.returncode == 75
    assert "127.0.0.1" in result.stdout


def _profiles(*streams: Stream) -> list[Profile]:
    return [
        Profile(token, token, source, codec, width, height, fps, f"rtsp://127.0.0.1/{token}")
        for token, codec, width, height, fps, source in streams
    ]


@pytest.mark.parametrize(
    ("streams", "preferred"),
    [
        (STREAMS, "sub"),
        (STREAMS[:1], "main"),
        (STREAMS[2:], "tiny"),
        ([("av1", "AV1", 640, 360, 15, "s"), *STREAMS], "sub"),
        ([("av1", "AV1", 640, 360, 15, "s")], None),
        ([("portrait", "H265", 360, 640, 15, "s"), STREAMS[0]], "portrait"),
        ([("empty", "H264", 0, 0, 15, "s"), STREAMS[2]], "tiny"),
        ([], None),
    ],
)
def test_prefers_the_smallest_stream_that_fills_the_input(streams: list[Stream], preferred: str | None) -> None:
    chosen = preferred_profile(_profiles(*streams), (416, 416))
    assert (chosen.token if chosen else None) == preferred


def test_groups_profiles_by_video_source(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [("a", "H264", 640, 360, 15, "left"), ("b", "H264", 640, 360, 15, "right")]
    with OnvifDevice(streams=streams).serving() as device:
        address = f"{device.host}:{device.port}"
        monkeypatch.setenv("ONVIF_PASSWORD", device.password)
        result = call("cameras", "find", address, "--user", device.user, "--json")
    (found,) = json.loads(result.stdout)
    assert [each["camera"]["id"] for each in found["cameras"]] == ["camera-127-0-0-1", "camera-127-0-0-1-2"]


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("http://192.0.2.4:8080/media", "http://192.0.2.4:8080/media"),
        ("http://10.0.0.9/media?x=1", "http://192.0.2.4:81/media?x=1"),
        ("http://169.254.169.254/latest", "http://192.0.2.4:81/latest"),
        ("http://user@192.0.2.4/media", "http://192.0.2.4:81/media"),
        ("file:///etc/passwd", ""),
        ("http://[bad/media", ""),
        ("", ""),
    ],
)
def test_asks_services_only_on_the_host_of_the_device(service: str, expected: str) -> None:
    assert on_same_host(service, "http://192.0.2.4:81/onvif/device_service") == expected


@pytest.mark.parametrize(
    ("address", "source", "code"),
    [
        ("rtsp://127.0.0.1/a", "rtsp://127.0.0.1/a", None),
        ("rtsp://viewer:pa55-word@127.0.0.1/a", "rtsp://127.0.0.1/a", None),
        ("rtsp://127.0.0.1/${HOME}", "rtsp://127.0.0.1/%24{HOME}", None),
        ("rtsp://127.0.0.1/a?pwd=pa55-word&c=1", "rtsp://127.0.0.1/a?pwd=${ONVIF_PASSWORD}&c=1", None),
        ("rtsp://127.0.0.1/user=x_password=y9f8", None, "onvif-stream-account"),
        ("rtsp://10.0.0.9/a", None, "onvif-stream-elsewhere"),
    ],
)
def test_writes_safe_addresses(address: str, source: str | None, code: str | None) -> None:
    profile = Profile("t", "n", "s", "H264", 640, 360, 15, address)
    camera = Camera("gate", (profile,), profile)
    section, problem = camera_section(
        Device("127.0.0.1", "http://127.0.0.1/"), camera, Account("viewer", "pa55-word"), "ONVIF_PASSWORD"
    )
    assert (section and section["source"], problem and problem.code) == (source, code)


def test_a_device_that_answers_twice_is_one_device() -> None:
    with OnvifDevice().serving() as device:
        answer = (f"http://[fe80::1]/onvif {device.address}", "onvif://www.onvif.org/name/Yard")
        with answering_probes(lambda number: [probe_matches(number, answer, answer)] * 2):
            found = [each for each in find_devices([], 2.0, account_of(device)) if each.address == device.address]
    assert [(each.name, len(each.profiles)) for each in found] == [("Yard", len(STREAMS))]
