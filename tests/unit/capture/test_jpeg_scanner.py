"""Tests of the search for JPEGs in a stream that can contain any bytes between the JPEGs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import cv2
import numpy as np
import pytest

from vision.capture.jpeg_scanner import JpegScanner, is_truncated_jpeg

OPTIONS: tuple[list[int], ...] = (
    [],
    [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
    [cv2.IMWRITE_JPEG_QUALITY, 30],
)


@cache
def jpegs() -> tuple[bytes, ...]:
    """Return sequential and progressive JPEGs, with and without restart markers."""
    noise = np.random.default_rng(1)
    return tuple(
        bytes(cv2.imencode(".jpg", noise.integers(0, 255, (40 + 8 * size, 64, 3), np.uint8), options)[1].tobytes())
        for size in range(4)
        for options in OPTIONS
    )


def with_thumbnail(jpeg: bytes) -> bytes:
    """Return the JPEG with another JPEG inside its metadata, as cameras write thumbnails."""
    segment = b"Exif\x00\x00" + jpegs()[0][:3000]
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


def scan(data: bytes, step: int) -> tuple[list[bytes], int]:
    """Pass `data` to a scanner, `step` bytes at a time. Return the JPEGs, and the number of damaged JPEGs."""
    scanner, found = JpegScanner(), []
    for at in range(0, len(data), step):
        found += scanner.feed(data[at : at + step])
    return found + scanner.finish(), scanner.damaged


SEPARATORS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda jpeg: jpeg,
    "line": lambda jpeg: jpeg + b"\r\n",
    "boundary": lambda jpeg: b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n",
    "length": lambda jpeg: b"--frame\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg), jpeg),
    "lower case": lambda jpeg: b"frame\ncontent-length:%d\n\n%b\n" % (len(jpeg), jpeg),
    "length of two more": lambda jpeg: b"--frame\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg) + 2, jpeg),
    "too long": lambda jpeg: b"--frame\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg) + 77, jpeg),
    "too short": lambda jpeg: b"--frame\r\nContent-Length: %d\r\n\r\n%b\r\n" % (len(jpeg) - 9, jpeg),
    "padding": lambda jpeg: b"--frame\r\nContent-Length: %d\r\n\r\n%b" % (len(jpeg) + 16, jpeg + bytes(16)),
    "text": lambda jpeg: b"--x\r\nContent-Type: text/plain\r\n\r\nmotion: none\r\n--x\r\n\r\n" + jpeg,
}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 1 << 20])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_every_jpeg_is_found(separator: str, step: int) -> None:
    data = b"".join(SEPARATORS[separator](jpeg) for jpeg in jpegs())
    assert scan(data, step) == (list(jpegs()), 0)


@pytest.mark.parametrize("separator", ["nothing", "boundary", "length"])
def test_last_jpeg_does_not_wait_for_the_next(separator: str) -> None:
    scanner = JpegScanner()
    data = SEPARATORS[separator](jpegs()[0])
    assert scanner.feed(data[: data.rfind(b"\xff\xd9") + 2]) == [jpegs()[0]]


def test_thumbnail_is_a_part_of_its_jpeg() -> None:
    whole = [with_thumbnail(jpeg) for jpeg in jpegs()]
    assert scan(b"".join(whole), 1000) == (whole, 0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("separator", ["nothing", "boundary", "length"])
def test_truncated_jpegs_are_counted_and_the_others_found(separator: str, share: float) -> None:
    def sent(place: int, jpeg: bytes) -> bytes:
        data = SEPARATORS[separator](jpeg)
        cut = data.find(b"\xff\xd8") + int(len(jpeg) * share)
        return data[:cut] if place % 3 == 1 else data

    data = b"".join(sent(place, jpeg) for place, jpeg in enumerate(jpegs()))
    found, damaged = scan(data, 997)
    assert found == [jpeg for place, jpeg in enumerate(jpegs()) if place % 3 != 1]
    assert damaged == sum(place % 3 == 1 for place in range(len(jpegs())))


def damage(data: bytes, places: Sequence[int], values: random.Random) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] = values.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(20))
def test_damage_never_ends_the_search(seed: int) -> None:
    """The scanner must find the JPEGs after damaged bytes, regardless of the values of these bytes."""
    values = random.Random(seed)
    bad = b"".join(SEPARATORS["boundary"](jpeg) for jpeg in jpegs())
    bad = damage(bad, [values.randrange(len(bad)) for _ in range(200)], values)
    good = b"".join(SEPARATORS["boundary"](jpeg) for jpeg in jpegs())
    found, _ = scan(bad + bytes(70_000) + good, 4096)
    assert found[1 - len(jpegs()) :] == list(jpegs()[1:])


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated_file_is_recognized(share: float) -> None:
    for jpeg in (*jpegs(), with_thumbnail(jpegs()[1])):
        assert is_truncated_jpeg(jpeg[: int(len(jpeg) * share)])
        assert not is_truncated_jpeg(jpeg)
        assert not is_truncated_jpeg(jpeg + b"trailer")
    assert not is_truncated_jpeg(b"\x89PNG")
    assert not is_truncated_jpeg(b"")
