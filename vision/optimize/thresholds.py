"""Four calibration algorithms. From a histogram, each chooses the largest absolute value that int8 represents.

ONNX Runtime (`onnxruntime.quantization`) computes `entropy` and `percentile`. This module computes `minmax`, with the
same result as ONNX Runtime's MinMax method, and `mse`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from vision.optimize.histogram import Histogram
from vision.optimize.onnx_graph import require_onnxruntime
from vision.optimize.quantize import LEVELS

Algorithm: TypeAlias = Literal["minmax", "entropy", "percentile", "mse"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)

PERCENTILE: Final = 99.99
"""Percentage of the absolute values that the algorithm `percentile` represents without clipping."""

_ENTROPY_BINS: Final = 512  # on each side of 0; with more bins, the search takes minutes
_QUANTIZED_BINS: Final = 128
_CANDIDATES: Final = 200  # thresholds that the algorithm `mse` tries
_LOWEST: Final = 0.1  # lowest threshold that the algorithm `mse` tries, as a fraction of the largest value


def thresholds(histograms: Mapping[str, Histogram], algorithm: Algorithm) -> dict[str, float]:
    """Return the largest absolute value that int8 represents, for each tensor in `histograms`."""
    if algorithm == "minmax":
        return {name: histogram.largest for name, histogram in histograms.items()}
    if algorithm == "mse":
        return {name: least_error_threshold(histogram) for name, histogram in histograms.items()}
    if algorithm == "entropy":
        ends = _collected(histograms, "entropy", symmetric=False)
    else:
        ends = _collected(histograms, "percentile", symmetric=True)
    found = {name: max(abs(float(low)), abs(float(high))) for name, (low, high, *_) in ends.items()}
    return {name: found.get(name, 0.0) for name in histograms}


def _collected(histograms: Mapping[str, Histogram], method: str, *, symmetric: bool) -> Mapping[str, Any]:
    """Return the range (low, high, ...) of each tensor that is not always 0.

    ONNX Runtime's `HistogramCollector` computes the ranges by the method `method`.
    """
    require_onnxruntime()
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method,
        symmetric=symmetric,
        num_bins=2 * _ENTROPY_BINS,
        num_quantized_bins=_QUANTIZED_BINS,
        percentile=PERCENTILE,
        scenario="same",
    )
    for name, histogram in histograms.items():
        if not histogram.limit:
            continue
        counts, edges = histogram.magnitudes() if symmetric else histogram.trimmed(_ENTROPY_BINS)
        ends = np.float32(histogram.low), np.float32(histogram.high)
        collector.histogram_dict[name] = (counts, edges, *ends, np.float32(histogram.largest))
    if not collector.histogram_dict:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):  # the collector prints its progress
        result: Mapping[str, Any] = collector.compute_collection_result()
    return result


def least_error_threshold(histogram: Histogram) -> float:
    """Return the threshold t with the smallest mean squared error of quantization.

    With the counts n and the centers c of the bins of absolute values, and the step s = t / 127, the error is
    ``sum(n * (c - s * min(round(c / s), 127)) ** 2)``. The result is the best of 200 values of t, from a tenth of the
    largest absolute value to that value. Clipping by squared error is described by Choukroun et al.,
    "Low-bit Quantization of Neural Networks for Efficient Inference" (2019), arXiv:1902.06822.
    """
    counts, edges = histogram.magnitudes()
    centers = ((edges[1:] + edges[:-1]) / 2).astype(np.float64)
    tried = np.linspace(_LOWEST, 1.0, _CANDIDATES) * (histogram.largest or 1.0)
    errors = [_squared_error(counts, centers, threshold / LEVELS) for threshold in tried]
    return float(tried[int(np.argmin(errors))])


def _squared_error(counts: np.ndarray, centers: np.ndarray, step: float) -> float:
    rounded = step * np.minimum(np.rint(centers / step), LEVELS)
    return float((counts * (centers - rounded) ** 2).sum())
