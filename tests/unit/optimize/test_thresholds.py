"""Tests of histograms, and of the four algorithms that choose thresholds from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.optimize.models import SIDE, model, node, random
from vision.optimize.histogram import BINS, Histogram
from vision.optimize.thresholds import ALGORITHMS, PERCENTILE, thresholds


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram.empty()
    for part in parts:
        assert histogram.add(part)
    return histogram


def test_histogram_counts_every_value_however_its_range_grows() -> None:
    parts = [random(1000, seed=index) * 10**index for index in range(5)]
    histogram = histogram_of(*parts)
    values = np.concatenate(parts)
    assert histogram.counts.sum() == len(values)
    assert histogram.counts.shape == (2 * BINS,)
    assert histogram.low == values.min() and histogram.high == values.max()
    assert histogram.limit / 2 < histogram.largest <= histogram.limit


def test_histogram_equals_that_of_all_values_together() -> None:
    parts = [random(5000, seed=1) * 0.1, random(5000, seed=2)]
    counts, edges = histogram_of(*parts).magnitudes()
    expected, _ = np.histogram(np.abs(np.concatenate(parts)), edges)
    assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 10  # rounding at the edges of bins
    assert counts.sum() == 10_000


def test_trimmed_histogram_has_at_most_the_requested_bins() -> None:
    counts, edges = histogram_of(random(10_000)).trimmed(100)
    assert len(counts) <= 200 and len(edges) == len(counts) + 1
    assert counts.sum() == 10_000
    assert edges[-1] >= np.abs(random(10_000)).max()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    histogram = histogram_of(np.ones(3, np.float32))
    assert not histogram.add(np.array([1.0, bad], np.float32))
    assert histogram.counts.sum() == 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tensor_of_zeros_has_a_threshold(algorithm: Any) -> None:
    found = thresholds({"x": histogram_of(np.zeros(100, np.float32))}, algorithm)["x"]
    assert np.isfinite(found) and found >= 0


def test_percentile_clips_the_largest_values_only() -> None:
    values = random(1_000_000)
    found = thresholds({"x": histogram_of(values)}, "percentile")["x"]
    assert found == pytest.approx(float(np.percentile(np.abs(values), PERCENTILE)), rel=0.01)


def squared_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / 127
    return float(np.square(values - step * np.clip(np.rint(values / step), -127, 127)).mean())


@pytest.mark.parametrize("outlier", [0.0, 3.0, 20.0])
def test_mse_is_the_smallest_error_of_the_values_themselves(outlier: float) -> None:
    values = np.append(random(100_000), np.float32(outlier))
    found = thresholds({"x": histogram_of(values)}, "mse")["x"]
    best = min(squared_error(values, threshold) for threshold in np.linspace(0.1, 1, 300) * np.abs(values).max())
    assert squared_error(values, found) <= 1.02 * best


def test_entropy_clips_rare_outliers_but_not_an_even_distribution() -> None:
    rare = np.append(random(200_000), np.float32(40))
    even = np.linspace(-1, 1, 100_001, dtype=np.float32)
    assert 3 < thresholds({"x": histogram_of(rare)}, "entropy")["x"] < 20
    assert thresholds({"x": histogram_of(even)}, "entropy")["x"] > 0.85


class Reader:
    """Reader of calibration data with the interface that ONNX Runtime expects."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def test_minmax_equals_that_of_onnxruntime(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    made = model([node("Conv", ["images", "w"], "output")], {"w": random(4, 3, 3, 3)})
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    batches = [random(1, 3, SIDE, SIDE, seed=index) for index in range(3)]
    calibrator = create_calibrator(
        tmp_path / "m.onnx", ["Conv"], str(tmp_path / "augmented.onnx"), CalibrationMethod.MinMax,
        extra_options={"symmetric": True},
    )  # fmt: skip
    calibrator.collect_data(Reader(batches))
    theirs = calibrator.compute_data()["images"].range_value
    found = thresholds({"images": histogram_of(*batches)}, "minmax")["images"]
    assert found == pytest.approx(float(np.max(theirs)))
