"""Tests that no pixel of a hidden area or object is visible, and that all other pixels remain unchanged."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vision.config.privacy import CameraPrivacy
from vision.detect.reference.crops import JpegEncoder
from vision.drawing.privacy import PrivacyFilter
from vision.types import Frame, FrameMeta

HEIGHT, WIDTH = 120, 160
SIZE = (WIDTH, HEIGHT)


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(40, 255, (HEIGHT, WIDTH, 3), np.uint8)


def filter_of(**keys: object) -> PrivacyFilter:
    return PrivacyFilter({"gate": CameraPrivacy.model_validate(keys)}, ["person", "car"])


@pytest.mark.parametrize(
    ("units", "mask"),
    [
        ("pixels", ((16, 12), (80, 12), (80, 60), (16, 60))),
        ("fraction", ((0.1, 0.1), (0.5, 0.1), (0.5, 0.5), (0.1, 0.5))),
        ("percent", ((10, 10), (50, 10), (50, 50), (10, 50))),
    ],
)
def test_mask_is_black_and_the_rest_is_not_changed(units: str, mask: object) -> None:
    image, before = noise(), noise()
    filter_of(units=units, masks=(mask,)).fill(image, "gate", SIZE)
    assert not image[12:61, 16:81].any()
    image[12:61, 16:81] = before[12:61, 16:81]
    assert np.array_equal(image, before)


def test_other_camera_is_not_changed() -> None:
    image, before = noise(), noise()
    hidden = filter_of(masks=(((0, 0), (50, 0), (50, 50)),), blur=("person",))
    hidden.fill(image, "yard", SIZE)
    hidden.blur(image, "yard", np.array([[0, 0, 50, 50]], np.float32), np.array([0], np.int32))
    hidden.hide_without_objects(image, "yard", SIZE)
    assert np.array_equal(image, before)


def test_part_of_a_frame_is_masked_where_the_frame_is() -> None:
    whole, hidden = noise(), filter_of(masks=(((16, 12), (80, 12), (80, 60), (16, 60)),))
    part = whole[40:100, 60:140].copy()
    hidden.fill(whole, "gate", SIZE)
    hidden.fill(part, "gate", SIZE, (60, 40))
    assert np.array_equal(part, whole[40:100, 60:140])


def test_only_objects_of_the_classes_are_blurred() -> None:
    image, before = noise(), noise()
    boxes = np.array([[20, 20, 60, 100], [90, 20, 130, 60], [-30, 100, 10, 200]], np.float32)
    filter_of(blur=("person",)).blur(image, "gate", boxes, np.array([0, 1, 0], np.int32))
    assert np.array_equal(image[20:60, 90:130], before[20:60, 90:130])
    object_pixels = image[20:100, 20:60].reshape(-1, 3)
    assert len(np.unique(object_pixels, axis=0)) <= 6 * 6
    assert object_pixels.std() < before[20:100, 20:60].std() / 4  # noise averages out
    assert not np.array_equal(image[100:, :10], before[100:, :10])


def test_images_without_known_objects_are_unrecognizable() -> None:
    image = noise()
    filter_of(blur=("person",)).hide_without_objects(image, "gate", SIZE)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) <= 32 * 32
    part = noise()[:40, :40].copy()
    filter_of(blur=("person",)).hide_without_objects(part, "gate", SIZE, (0, 0))
    assert len(np.unique(part.reshape(-1, 3), axis=0)) <= 8 * 8


def test_jpeg_files_contain_no_masked_pixel() -> None:
    meta = FrameMeta("gate", 0, 0, 0, 0, WIDTH, HEIGHT)
    encoder = JpegEncoder(quality=95, hide=filter_of(masks=(((0, 0), (80, 0), (80, 120), (0, 120)),)).fill)
    pixels = noise()
    frame = Frame.wrap(meta, pixels, "bgr")
    for content in (encoder.encode(frame), encoder.encode_part(frame, (20, 20, 70, 100))):
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert decoded[:, :48].max() < 40
    assert np.array_equal(pixels, noise())  # the frame of the detector is not changed
