"""Slow reference implementation, in integer arithmetic, of the kernel that cuts objects out of frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.letterbox_reference import to_bgr
from vision.config.model_spec import CropSpec
from vision.detect.reference.classifier import Box, CropFit
from vision.types import PixelFormat, YuvEncoding


def crop_levels(
    pixels: NDArray[np.uint8],
    pixel_format: PixelFormat,
    box: Box,
    spec: CropSpec,
    encoding: YuvEncoding = "bt601",
) -> NDArray[np.uint8]:
    """Return the part `box` of a frame, scaled to the input of a classifier: BGR levels (H, W, 3)."""
    left, top, right, bottom = box
    part = to_bgr(pixels, pixel_format, encoding)[top:bottom, left:right].astype(np.int64)
    fit = CropFit.of(spec, right - left, bottom - top)
    weights = covering if fit.shrinks else between
    rows, columns = weights(fit.height, bottom - top), weights(fit.width, right - left)
    sums = np.einsum("ij,jkc,lk->ilc", rows, part, columns)
    total = int(rows[0].sum() * columns[0].sum())
    canvas = np.full((spec.height, spec.width, 3), spec.fill, np.uint8)
    canvas[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width] = (2 * sums + total) // (2 * total)
    return canvas


def covering(scaled: int, side: int) -> NDArray[np.int64]:
    """Return weights (scaled, side): `scaled` times the part of each source pixel that each scaled pixel covers."""
    at, pixel = np.arange(scaled)[:, None], np.arange(side)[None]
    overlap = np.minimum((pixel + 1) * scaled, (at + 1) * side) - np.maximum(pixel * scaled, at * side)
    return np.asarray(np.maximum(overlap, 0), np.int64)


def between(scaled: int, side: int) -> NDArray[np.int64]:
    """Return weights (scaled, side) of the bilinear interpolation between pixel centers, times 2 * `scaled`."""
    position = np.clip((2 * np.arange(scaled) + 1) * side - scaled, 0, (side - 1) * 2 * scaled)
    whole, rest = np.divmod(position, 2 * scaled)
    weights = np.zeros((scaled, side), np.int64)
    np.add.at(weights, (np.arange(scaled), whole), 2 * scaled - rest)
    np.add.at(weights, (np.arange(scaled), np.minimum(whole + 1, side - 1)), rest)
    return weights


def crop_tensor(levels: NDArray[np.uint8], spec: CropSpec) -> NDArray[np.float64]:
    """Normalize BGR levels (H, W, 3) to a tensor (3, H, W), with the channels in the order of `spec.color`."""
    ordered = levels if spec.color == "bgr" else levels[..., ::-1]
    tensor = (ordered.astype(np.float64) * spec.scale - spec.mean) / spec.std
    return np.asarray(tensor.transpose(2, 0, 1), np.float64)
