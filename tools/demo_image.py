"""Create the image in the README: two cameras of the demo, with the objects that the shipped model detects.

python tools/demo_image.py [--out docs/demo.jpg] [--frames 45 185]
"""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vision.capture.frame_reader import read_frames
from vision.config import CameraConfig, load_config, resolve_config
from vision.detect.detector import Detector
from vision.detect.open import open_detector
from vision.drawing.overlay import Overlay, class_color
from vision.runtime.builder import find_model
from vision.types import Detections, Frame, FrameMeta

WIDTH_PX = 1200
GAP_PX = 8
LARGEST_BYTES = 200_000


def main() -> None:
    """Create the image, and print its path and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/demo.jpg"), help="output file. Default: %(default)s")
    parser.add_argument("--frames", type=int, nargs=2, default=[45, 185], help="frame number for each camera, from 0")
    arguments = parser.parse_args()
    config = load_config(resolve_config("demo"), os.environ)
    with closing(open_detector(*find_model(config.model), config.detect)) as detector:
        tiles = [tile(camera, frame, detector) for camera, frame in zip(config.cameras, arguments.frames, strict=True)]
    arguments.out.write_bytes(encode(side_by_side(tiles)))
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


def tile(camera: CameraConfig, index: int, detector: Detector) -> NDArray[np.uint8]:
    """Return a frame of one camera with its detected objects, scaled to half the width of the whole image."""
    image = frame_of(camera, index)
    objects = detect(image, detector)
    width_px = (WIDTH_PX - GAP_PX) // 2
    scale = width_px / image.shape[1]
    small = cv2.resize(image, (width_px, round(image.shape[0] * scale)), interpolation=cv2.INTER_AREA)
    pixels = np.asarray(small, np.uint8)
    overlay = Overlay(pixels)
    overlay.banner(camera.id, f"{len(objects)} objects")
    names = [detector.spec.class_names[class_id] for class_id in objects.class_ids]
    labels = [f"{name} {score * 100:.0f}%" for name, score in zip(names, objects.scores, strict=True)]
    overlay.objects(
        objects.boxes_xyxy * np.float32(scale), labels, [class_color(int(class_id)) for class_id in objects.class_ids]
    )
    return pixels


def frame_of(camera: CameraConfig, index: int) -> NDArray[np.uint8]:
    """Return a copy of the pixels of frame `index` (counted from 0) of a camera."""
    with closing(read_frames(camera, offline=True)) as frames:
        pixels: NDArray[np.uint8] = next(islice(frames, index, None)).pixels.copy()
        return pixels


def detect(image: NDArray[np.uint8], detector: Detector) -> Detections:
    """Return the objects that the detector finds in a BGR image, uint8 (H, W, 3)."""
    height_px, width_px = image.shape[:2]
    meta = FrameMeta("demo", 0, 0, 0, 0, width_px, height_px)
    detector.submit(0, [Frame.wrap(meta, image, "bgr")])
    return detector.wait(0, timeout_s=60.0)[0]


def side_by_side(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Join two images of equal height horizontally, with a white gap of `GAP_PX` between them."""
    gap = np.full((tiles[0].shape[0], GAP_PX, 3), 255, np.uint8)
    whole: NDArray[np.uint8] = np.hstack([tiles[0], gap, tiles[1]])
    return whole


def encode(image: NDArray[np.uint8]) -> bytes:
    """Encode an image as JPEG with the highest quality that fits in `LARGEST_BYTES`. Return the JPEG data."""
    for quality in range(92, 40, -4):
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
        if len(data) <= LARGEST_BYTES:
            return data.tobytes()
    raise SystemExit(f"the image cannot be encoded in {LARGEST_BYTES} bytes; reduce WIDTH_PX")


if __name__ == "__main__":
    main()
