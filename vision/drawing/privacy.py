"""`PrivacyFilter`, which hides areas and objects in images before they are stored or shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.config.privacy import CameraPrivacy

Hide: TypeAlias = Callable[[NDArray[np.uint8], str, tuple[int, int], tuple[int, int]], None]
"""Function that hides what must not be shown in a part of a frame. The arguments are:

1. the part, (H, W, 3) uint8 BGR, which the function changes
2. the id of the camera
3. the width and height of the frame in pixels
4. x and y of the upper left corner of the part, in pixels of the frame
"""

_CELLS: Final = 6  # number of cells along the longer side of a blurred object
_MARGIN: Final = 0.1  # blurred margin around a box, as a fraction of the box's width and height
_WHOLE: Final = 32  # cells along the longer side of a frame whose objects are unknown


class PrivacyFilter:
    """Filter that hides the areas and objects that the section `privacy` of a configuration names.

    The methods change images, (H, W, 3) uint8 BGR.
    """

    def __init__(self, sections: Mapping[str, CameraPrivacy], class_names: Sequence[str] = ()) -> None:
        """Create the filter.

        `sections` maps the id of each camera to its section `privacy`. `class_names` are the names of the model's
        classes, in the order of their ids.
        """
        self._sections = sections
        self._blurred = {
            camera: [number for number, name in enumerate(class_names) if name in (section.blur or ())]
            for camera, section in sections.items()
        }

    def fill(
        self, image: NDArray[np.uint8], camera_id: str, size_px: tuple[int, int], corner: tuple[int, int] = (0, 0)
    ) -> None:
        """Fill the masks of a camera in `image`, which is a part of a frame, with black.

        `size_px` is the width and height of the frame. `corner` is the x and y of the top left corner of the part.
        """
        section = self._sections.get(camera_id)
        if section is None or not section.masks:
            return
        scale = {"pixels": (1.0, 1.0), "fraction": size_px, "percent": (size_px[0] / 100, size_px[1] / 100)}
        factors = np.array(scale[section.units])
        polygons = [np.rint(np.array(mask) * factors - corner).astype(np.int32) for mask in section.masks]
        for polygon in polygons:
            cv2.fillPoly(image, [polygon], (0, 0, 0))

    def blur(
        self,
        image: NDArray[np.uint8],
        camera_id: str,
        boxes_xyxy: NDArray[np.float32],
        class_ids: NDArray[np.int32],
    ) -> None:
        """Make the objects of the configured classes unrecognizable. `image` is a complete frame.

        `boxes_xyxy` (N, 4), in pixels of the frame, and `class_ids` (N,) describe all objects of the frame.
        """
        blurred = self._blurred.get(camera_id)
        if not blurred:
            return
        height_px, width_px = image.shape[:2]
        for x1, y1, x2, y2 in boxes_xyxy[np.isin(class_ids, blurred)].tolist():
            margin_x, margin_y = _MARGIN * (x2 - x1), _MARGIN * (y2 - y1)
            left, top = max(0, math.floor(x1 - margin_x)), max(0, math.floor(y1 - margin_y))
            right, bottom = min(width_px, math.ceil(x2 + margin_x)), min(height_px, math.ceil(y2 + margin_y))
            if left < right and top < bottom:
                _pixelate(image[top:bottom, left:right], _CELLS)

    def hide_without_objects(
        self, image: NDArray[np.uint8], camera_id: str, size_px: tuple[int, int], corner: tuple[int, int] = (0, 0)
    ) -> None:
        """Fill the masks in a part of a frame with black.

        If the camera has classes to blur, make the whole part unrecognizable. Use this method for images whose objects
        are unknown. For the arguments, see `fill`.
        """
        section = self._sections.get(camera_id)
        if section is not None and section.blur:
            _pixelate(image, max(1, round(_WHOLE * max(image.shape[:2]) / max(size_px))))
        self.fill(image, camera_id, size_px, corner)


def hide_without_objects(sections: Mapping[str, CameraPrivacy]) -> Hide | None:
    """Return the function that applies the privacy settings in `sections` to images whose objects are unknown.

    Return None if `sections` is empty.
    """
    return PrivacyFilter(sections).hide_without_objects if sections else None


def _pixelate(part: NDArray[np.uint8], cells: int) -> None:
    """Replace a part of an image with a grid of uniform cells, at most `cells` along the longer side."""
    height_px, width_px = part.shape[:2]
    scale = min(1.0, cells / max(height_px, width_px))
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    part[:] = cv2.resize(small, (width_px, height_px), interpolation=cv2.INTER_NEAREST)
