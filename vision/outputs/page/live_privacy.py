"""`ImageFilter` hides parts of images before they are sent to browsers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.config.privacy import CameraPrivacy
from vision.drawing.jpeg import JpegEncoder
from vision.messaging.schema import DetectionsMessage

_MAX_WIDTH_PX: Final = 1280


class ImageFilter:
    """Filter that fills masks, and that makes objects of hidden classes unrecognizable. Not thread-safe."""

    def __init__(self, sections: Mapping[str, CameraPrivacy]) -> None:
        """Create the filter. `sections` contains the masks and hidden classes, by camera id."""
        self._encoder = JpegEncoder()
        self._sections = sections
        self._classes = sorted({name for section in sections.values() for name in section.blur or ()})

    def hide(self, jpeg: bytes, result: DetectionsMessage) -> bytes | None:
        """Return an image as a JPEG, with private parts hidden. Return None if the image cannot be decoded.

        `jpeg` is a frame in its original size, and `result` is its result. The returned image can be smaller.
        """
        import cv2

        from vision.drawing.privacy import PrivacyFilter

        decoded: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            return None
        if decoded.shape[:2] != (result.height, result.width):  # images have even sides
            decoded = cv2.resize(decoded, (result.width, result.height))
        image: NDArray[np.uint8] = decoded
        numbers = {name: number for number, name in enumerate(self._classes)}
        hidden = [each for each in result.objects if each.class_name in numbers]
        boxes = np.array([each.box for each in hidden], np.float32).reshape(-1, 4)
        class_ids = np.array([numbers[each.class_name] for each in hidden], np.int32)
        privacy = PrivacyFilter(self._sections, self._classes)
        privacy.fill(image, result.camera, (result.width, result.height))
        privacy.blur(image, result.camera, boxes, class_ids)
        return self._encoder.encode(image, "bgr", "bt601", max_width_px=_MAX_WIDTH_PX)
