"""Tests of a running program that serves ONVIF metadata to FFmpeg and GStreamer, and reads a found camera."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree.ElementTree import fromstring

import av
import psutil
import pytest
import xmlschema
import yaml

from tests.onvif.device import OnvifDevice
from tests.rtsp.stage import PYTHON, missing
from tests.unit.cli.in_process import call
from tests.unit.cli.test_main import read_until, started, write_config
from vision.capture.zoo import persona
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.zoo import running_zoo, selected
from vision.messaging.times import utc_ns

USER, PASSWORD = "recorder", "gate-secret-1"
CLIENT = Path(__file__).with_name("gstreamer_client.py")
WAIT_S = 60.0
END = b"</tt:MetadataStream>"
ANALYTICS = {
    "units": "fraction",
    "lines": [{"name": "door", "points": [[0.5, 0], [0.5, 1]]}],
    "zones": [{"name": "yard", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}],
}
EXPECTED = (b"<tt:Object ", b"LineDetector/Crossed", b"ObjectsInside", b'"Initialized"', b"vision:rule")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Run the program. Yield its configuration, and the host and port of its metadata server."""
    folder = tmp_path_factory.mktemp("site")
    config = write_config(
        folder,
        cameras=[{"id": each, "source": f"synthetic:320x240@15?objects=8&seed={each}"} for each in ("1", "2")],
        analytics={"1": ANALYTICS},
        rules=[{"name": "any", "when": "line_crossed door"}],
        onvif={"bind": "127.0.0.1:*", "user": USER, "password": "${ONVIF_SERVER_PASSWORD}"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONVIF_SERVER_PASSWORD", PASSWORD)
        patch.setenv("ONVIF_PASSWORD", persona.PASSWORD)
        with started("run", str(config)) as process:
            lines = read_until(process, "ONVIF metadata at")
            match = re.search(r"rtsp://(\S+:\d+)/", lines)
            assert match is not None
            read_until(process, "frames/s")
            yield config, match[1]


def documents(url: str, transport: str) -> Iterator[bytes]:
    """Yield the metadata documents that FFmpeg receives."""
    with av.open(url, options={"rtsp_transport": transport}, timeout=WAIT_S) as container:
        received = b""
        for packet in container.demux():
            received += bytes(packet)
            if received.endswith(END):
                yield received
                received = b""


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_ffmpeg_receives_valid_documents(site: tuple[Path, str], schema: xmlschema.XMLSchema11, transport: str) -> None:
    end_s = time.monotonic() + WAIT_S
    missing = set(EXPECTED)
    for document in documents(f"rtsp://{USER}:{PASSWORD}@{site[1]}/1", transport):
        schema.validate(document)
        missing -= {text for text in missing if text in document}
        if not missing or time.monotonic() > end_s:
            break
    assert not missing


@pytest.mark.rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_sender_reports_give_the_time_of_the_document(
    site: tuple[Path, str], schema: xmlschema.XMLSchema11, transport: str
) -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    command = [str(PYTHON), str(CLIENT), f"rtsp://{site[1]}/1", USER, PASSWORD, transport, "20"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=2 * WAIT_S)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 20
    for line in lines:
        schema.validate(line["document"])
        root = fromstring(line["document"])
        stated = next(each.get("UtcTime") for each in root.iter() if each.get("UtcTime"))
        assert stated is not None
        assert abs(utc_ns(stated) - line["utc_ns"]) < 1_000_000


@pytest.mark.parametrize(
    ("account", "camera"), [("", "1"), (f"{USER}:wrong@", "1"), (f"x:{PASSWORD}@", "1"), (f"{USER}:{PASSWORD}@", "3")]
)
def test_refuses_other_accounts_and_unknown_cameras(site: tuple[Path, str], account: str, camera: str) -> None:
    with pytest.raises((av.error.HTTPUnauthorizedError, av.error.HTTPNotFoundError)):
        av.open(f"rtsp://{account}{site[1]}/{camera}", options={"rtsp_transport": "tcp"}, timeout=WAIT_S)


def test_a_killed_server_is_started_again(site: tuple[Path, str]) -> None:
    url = f"rtsp://{USER}:{PASSWORD}@{site[1]}/1"
    stream = documents(url, "tcp")
    next(stream)
    children = [child for child in psutil.Process().children(recursive=True) if "outputs.onvif" in str(child.cmdline())]
    (server,) = children
    server.kill()
    for _ in stream:
        pass
    assert b"MetadataStream" in next(documents(url, "tcp"))


def test_a_found_camera_can_be_added(site: tuple[Path, str], tmp_path: Path) -> None:
    streaming = Camera(selected(["digest"])[0], fault_after_s=WAIT_S, repeats=False)
    with running_zoo() as zoo:
        zoo.start([streaming])
        stream = f"rtsp://{{host}}:{streaming.port}{urlsplit(streaming.address).path}?profile={{token}}"
        device = OnvifDevice(user=persona.USER, password=persona.PASSWORD, stream_address=stream)
        with device.serving():
            found = call("cameras", "find", f"{device.host}:{device.port}", "--user", device.user, "--json")
        (camera,) = json.loads(found.stdout)[0]["cameras"]
        file = tmp_path / "found.yaml"
        file.write_text(yaml.safe_dump(camera["camera"]))
        added = call("cameras", "add", file, "--config", site[0])
        assert added.returncode == 0, added.stderr
        # The server sends the metadata of the new camera, too.
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s and not is_streaming(site[0], camera["camera"]["id"]):
            time.sleep(0.2)
        url = f"rtsp://{USER}:{PASSWORD}@{site[1]}/{camera['camera']['id']}"
        assert b"MetadataStream" in next(documents(url, "tcp"))


def is_streaming(config: Path, camera: str) -> bool:
    status = json.loads(call("status", "--config", config, "--json").stdout)
    return any(each["camera"] == camera and each["state"] == "streaming" for each in status["cameras"])


def test_removing_a_camera_ends_its_stream(site: tuple[Path, str]) -> None:
    stream = documents(f"rtsp://{USER}:{PASSWORD}@{site[1]}/2", "tcp")
    next(stream)
    removed = call("cameras", "remove", "2", "--config", site[0])
    assert removed.returncode == 0, removed.stderr
    for _ in stream:
        pass  # the test fails by its time limit if the stream continues
    with pytest.raises(av.error.HTTPNotFoundError):
        next(documents(f"rtsp://{USER}:{PASSWORD}@{site[1]}/2", "tcp"))
