"""Tests that compare histograms and rates with exact values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.metrics import LatencyHistogram, Rate, enable_nvtx, send_spans, span


@given(st.lists(st.integers(1_000, 100_000_000_000), min_size=1, max_size=300))
def test_percentiles_are_within_a_bucket_of_the_exact_ones(durations_ns: list[int]) -> None:
    histogram = LatencyHistogram()
    for duration_ns in durations_ns:
        histogram.observe(duration_ns)
    snapshot = histogram.snapshot()
    exact = np.quantile(durations_ns, [0.5, 0.99], method="inverted_cdf") / 1e6
    assert snapshot.count == len(durations_ns)
    assert exact[0] <= snapshot.p50_ms * 1.0001 <= exact[0] * 1.06
    assert exact[1] <= snapshot.p99_ms * 1.0001 <= exact[1] * 1.06
    assert snapshot.max_ms == max(durations_ns) / 1e6


def test_extremes_are_counted() -> None:
    histogram = LatencyHistogram()
    for duration_ns in (0, 10**15):
        histogram.observe(duration_ns)
    assert histogram.snapshot().max_ms == 1e9
    assert histogram.snapshot().p99_ms == 1e9


def test_reset_clears_the_histogram() -> None:
    histogram = LatencyHistogram()
    histogram.observe(5_000_000)
    assert histogram.snapshot(reset=True).count == 1
    assert histogram.snapshot().count == 0
    assert histogram.snapshot().p99_ms == 0.0


@pytest.mark.parametrize("per_s", [1, 10, 100])
def test_rate_counts_a_sliding_window(per_s: int) -> None:
    now_ns = 0
    rate = Rate(lambda: now_ns, window_s=5.0)
    for _ in range(20 * per_s):
        now_ns += 10**9 // per_s
        rate.tick()
    assert rate.per_s() == pytest.approx(per_s, rel=0.21 if per_s == 1 else 0.03)
    now_ns += 10 * 10**9
    assert rate.per_s() == 0.0


def test_spans_enter_the_context_that_is_set() -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def note(name: str) -> Iterator[None]:
        seen.append(f"{name} begins")
        yield
        seen.append(f"{name} ends")

    with span("before"):
        pass
    send_spans(note)
    try:
        with span("outer"), span("inner"):
            pass
    finally:
        send_spans(None)
    with span("after"):
        pass
    assert seen == ["outer begins", "inner begins", "inner ends", "outer ends"]


def test_nvtx_ranges_are_sent_if_nvtx_is_installed() -> None:
    pytest.importorskip("nvtx")
    try:
        assert enable_nvtx()
        with span("submit") as given:
            assert given is not None
    finally:
        send_spans(None)
