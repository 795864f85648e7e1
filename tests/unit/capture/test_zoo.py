"""The camera zoo: its frame numbers, clips, packets, and the table of its cameras."""

from __future__ import annotations

import numpy as np
import pytest

from vision.capture.zoo.barcode import MOST_NUMBERS, paint_number, read_number
from vision.capture.zoo.clips import FRAMES, GOP, Codec, clip
from vision.capture.zoo.credentials import Gate
from vision.capture.zoo.payloads import PAYLOAD_BYTES, payloads
from vision.capture.zoo.playback import is_lost
from vision.capture.zoo.zoo import PERSONAS, selected
from vision.config import CameraConfig
from vision.errors import VisionError


@pytest.mark.parametrize("size", [(48, 64), (128, 160), (576, 768)])
def test_painted_numbers_can_be_read(size: tuple[int, int]) -> None:
    luma = np.full(size, 128, np.uint8)
    assert read_number(luma) is None
    for number in (0, 1, 239, MOST_NUMBERS - 1):
        paint_number(luma, number)
        assert read_number(luma) == number


def test_damaged_number_cannot_be_read() -> None:
    """A frame of which one half shows another number must not pass for either."""
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
