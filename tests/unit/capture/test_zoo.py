"""Tests of the camera zoo: the frame numbers, the clips, the packets, and the table of cameras."""

from __future__ import annotations

import asyncio
import struct

import numpy as np
import pytest

from vision.capture.zoo.barcode import MOST_NUMBERS, paint_number, read_number
from vision.capture.zoo.clips import FRAMES, GOP, Codec, clip
from vision.capture.zoo.credentials import Gate
from vision.capture.zoo.page import expectation
from vision.capture.zoo.payloads import PAYLOAD_BYTES, payloads
from vision.capture.zoo.persona import PASSWORD, USER, RtspStream
from vision.capture.zoo.playback import Disturbance, Playback, is_lost
from vision.capture.zoo.rtp import CLOCK_HZ, RtpSender
from vision.capture.zoo.scenes import Scene, draw_scene
from vision.capture.zoo.zoo import PERSONAS, selected
from vision.config import CameraConfig
from vision.config.load import load_config_text
from vision.errors import VisionError


@pytest.mark.parametrize("size", [(48, 64), (128, 160), (576, 768)])
def test_painted_numbers_can_be_read(size: tuple[int, int]) -> None:
    luma = np.full(size, 128, np.uint8)
    assert read_number(luma) is None
    for number in (0, 1, 239, MOST_NUMBERS - 1):
        paint_number(luma, number)
        assert read_number(luma) == number


def test_damaged_number_cannot_be_read() -> None:
    """A frame whose parts show two different numbers must not be read as a third number."""
    top, bottom = np.zeros((128, 160), np.uint8), np.zeros((128, 160), np.uint8)
    for number in range(FRAMES):
        other = (number + 100) % FRAMES
        paint_number(top, number)
        paint_number(bottom, other)
        bottom[:16] = top[:16]
        assert read_number(bottom) in (None, number, other)
    bottom[:32, :10] = 128
    assert read_number(bottom) is None


def test_clip_can_be_looped() -> None:
    frames = clip().frames
    assert len(frames) == FRAMES
    assert FRAMES % GOP == 0
    assert [index for index, frame in enumerate(frames) if frame.key] == list(range(0, FRAMES, GOP))
    assert sorted(frame.number for frame in clip(b_frames=True).frames) == list(range(FRAMES))
    assert [frame.number for frame in clip(b_frames=True).frames] != list(range(FRAMES))


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_frames_need_several_packets(codec: Codec) -> None:
    source = clip(codec)
    parts = payloads(source, source.frames[0], in_band=True, aggregated=False, tables="always")
    assert len(parts) > 2
    assert all(len(part) <= PAYLOAD_BYTES for part in parts)


def test_loss_damages_key_frames_and_others() -> None:
    lost = [position for position in range(FRAMES) if is_lost(position)]
    assert any(position % GOP == 0 for position in lost)
    assert any(position % GOP for position in lost)


def test_stale_nonce_is_replaced() -> None:
    gate = Gate("digest-stale")
    (first,) = gate.challenges("DESCRIBE", {})
    assert first.startswith("Digest ")
    assert Gate(None).challenges("DESCRIBE", {}) == []
    assert gate.challenges("DESCRIBE", {"authorization": "Digest username=viewer, response=0"})


def test_names_are_unique_and_can_be_camera_ids() -> None:
    names = [persona.name for persona in PERSONAS]
    assert len(set(names)) == len(names) >= 40
    for persona in PERSONAS:
        CameraConfig.model_validate(
            {"id": persona.name, "source": persona.address(8600), "reader": persona.readers[0], **persona.settings}
        )


def test_shown_remedy_can_be_used_in_a_configuration() -> None:
    """The remedy must not contain a literal password, because configuration files refuse literal passwords."""
    (persona,) = selected(["no-account"])
    text = expectation(persona)
    assert "${CAMERA_PASSWORD}" in text and PASSWORD not in text
    keys = ["id: a", "source: rtsp://192.0.2.1/", *text.partition(" -> ")[2].split(", ")]
    config = load_config_text("cameras:\n  - " + "\n    ".join(keys), {"CAMERA_PASSWORD": PASSWORD})
    (camera,) = config.cameras
    assert (camera.user, camera.password) == (USER, PASSWORD)


def test_every_remedy_is_a_valid_configuration() -> None:
    for persona in PERSONAS:
        for reader, verdict in persona.verdicts.items():
            keys = {"reader": reader, **persona.settings, **(verdict.remedy or {})}
            CameraConfig.model_validate({"id": "a", "source": persona.address(8600), **keys})


def test_unknown_name_is_refused() -> None:
    with pytest.raises(VisionError) as raised:
        selected(["plain", "plane"])
    assert raised.value.code == "unknown-name"
    assert "plane" in str(raised.value)


def sent(disturbance: Disturbance, count: int = 30) -> tuple[list[bytes], list[bytes], Playback]:
    """Return the first RTP packets, the sender reports, and the record of a camera at 1000 frames/s."""
    packets: list[bytes] = []
    reports: list[bytes] = []
    playback = Playback()

    async def send(kind: int, packet: bytes) -> None:
        (reports if kind else packets).append(packet)
        if len(playback.sent) > count:
            raise ConnectionError

    sender = RtpSender(RtspStream(fps=1000.0), playback, send, loses=False, disturbance=disturbance)
    with pytest.raises(ConnectionError):
        asyncio.run(sender.run())
    return packets, reports, playback


PLAIN = sent(Disturbance())


def test_lost_packets_are_missing() -> None:
    packets, _, playback = sent(Disturbance(loss=0.3))
    assert playback.sent == PLAIN[2].sent
    assert 0.5 * len(PLAIN[0]) < len(packets) < 0.9 * len(PLAIN[0])
    assert {packet[12:] for packet in packets} < {packet[12:] for packet in PLAIN[0]}


def test_corrupt_packets_have_intact_headers() -> None:
    packets, _, _ = sent(Disturbance(corruption=1.0))
    assert len(packets) == len(PLAIN[0])
    for found, expected in zip(packets, PLAIN[0], strict=True):
        assert found != expected or len(found) < 20
        assert len(found) == len(expected)
        assert found[:14] == expected[:14]


def test_frozen_camera_repeats_its_last_key_frame() -> None:
    packets, _, _ = sent(Disturbance(frozen=True))
    frames: dict[bytes, list[bytes]] = {}
    for packet in packets:
        frames.setdefault(packet[4:8], []).append(packet[12:])
    first, *others, _incomplete = frames.values()
    assert len(others) > 20
    assert all(other == first for other in others)


def test_clock_that_jumps_changes_the_rtp_time_and_the_reports() -> None:
    packets, reports, _ = sent(Disturbance(jump_s=3600))
    jump = struct.unpack_from(">I", packets[0], 4)[0] - struct.unpack_from(">I", PLAIN[0][0], 4)[0]
    assert jump == 3600 * CLOCK_HZ
    _, expected, _ = sent(Disturbance())  # now, because the reports contain the time
    later, now = (struct.unpack_from(">I", each[0], 8)[0] for each in (reports, expected))
    assert 3500 < later - now < 3700


def test_enlarged_camera_sends_the_larger_clip() -> None:
    packets, _, playback = sent(Disturbance(enlarged=True))
    assert playback.sent == PLAIN[2].sent
    larger = clip("h264", (240, 192)).parameter_sets[0]
    assert larger in {packet[12:] for packet in packets}


@pytest.mark.parametrize("scene", ["numbers", "rectangles", "street"])
def test_scenes_move_and_have_the_requested_size(scene: Scene) -> None:
    frames = [frame.to_ndarray() for frame in draw_scene(scene, (320, 240), 5)]
    assert {frame.shape for frame in frames} == {(360, 320)}
    assert any((frames[0] != frame).any() for frame in frames[1:])
