"""Tests of non-maximum suppression, with tables and with an implementation that applies the rules literally."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vision.detect.reference.postprocess import Overlaps, best_first, kept_in_order

Floats = NDArray[np.float32]

A = (0, 0, 10, 10)
A_SHIFTED = (2, 0, 12, 10)  # intersection 80, union 120: IoU 2/3
A_FAR = (20, 20, 30, 30)
FLAT = (0, 0, 10, 0)


def naive(
    boxes: Floats,
    scores: Floats,
    class_ids: NDArray[np.int32],
    *,
    iou: float,
    across: float,
    max_candidates: int,
    max_objects: int,
) -> tuple[list[int], int]:
    """Apply the numbered rules of `vision.detect.reference.postprocess`, one pair at a time, in float32."""
    zero = np.float32(0)

    def side(low: np.float32, high: np.float32) -> np.float32:
        length: np.float32 = max(high - low, zero)
        return length

    def area(box: Floats) -> np.float32:
        covered: np.float32 = side(box[0], box[2]) * side(box[1], box[3])
        return covered

    def suppresses(first: int, second: int) -> bool:
        a, b, limit = boxes[first], boxes[second], iou if class_ids[first] == class_ids[second] else across
        width = side(max(a[0], b[0]), min(a[2], b[2]))
        height = side(max(a[1], b[1]), min(a[3], b[3]))
        intersection = width * height
        return bool(intersection > np.float32(limit) * ((area(a) + area(b)) - intersection))

    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    kept: list[int] = []
    for index in order[:max_candidates]:
        if not any(suppresses(other, index) for other in kept):
            kept.append(index)
    return kept[:max_objects], max(0, len(order) - max_candidates) + max(0, len(kept) - max_objects)


def nms(
    boxes: Floats,
    scores: Floats,
    class_ids: NDArray[np.int32],
    *,
    iou: float,
    across: float = 1.0,
    max_candidates: int = 1024,
    max_objects: int = 300,
) -> tuple[NDArray[np.intp], int]:
    """Apply the rules with the functions under test. Return indices, best first, and the number of truncated boxes."""
    order, truncated = best_first(scores, max_candidates)
    survivors = order[kept_in_order(boxes[order], class_ids[order], Overlaps(iou, across))]
    return survivors[:max_objects], truncated + max(0, len(survivors) - max_objects)


def run(
    boxes: list[tuple[float, ...]], scores: list[float], class_ids: list[int], **options: float
) -> tuple[list[int], int]:
    kept, truncated_candidates = nms(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(class_ids, np.int32),
        **{"iou": 0.6, **options},  # type: ignore[arg-type]
    )
    return kept.tolist(), truncated_candidates


@pytest.mark.parametrize(
    ("boxes", "scores", "class_ids", "options", "kept", "truncated_candidates"),
    [
        pytest.param([], [], [], {}, [], 0, id="nothing"),
        pytest.param([A], [0.5], [3], {}, [0], 0, id="one"),
        pytest.param([A, A_SHIFTED], [0.5, 0.9], [0, 0], {}, [1], 0, id="the better one stays"),
        pytest.param([A, A_SHIFTED], [0.5, 0.9], [0, 1], {}, [1, 0], 0, id="classes do not suppress each other"),
        pytest.param([A, A_SHIFTED], [0.5, 0.9], [0, 1], {"across": 0.6}, [1], 0, id="unless they should"),
        pytest.param([A, A_SHIFTED], [0.5, 0.9], [0, 1], {"across": 2 / 3 + 1e-6}, [1, 0], 0, id="just under, across"),
        pytest.param([A, A_SHIFTED], [0.5, 0.9], [0, 0], {"across": 0.7, "iou": 0.7}, [1, 0], 0, id="both overlaps"),
        pytest.param([A, A_SHIFTED, A], [0.9, 0.8, 0.7], [0, 1, 2], {"across": 0.8}, [0, 1], 0, id="the same box"),
        pytest.param([A, A_SHIFTED], [0.9, 0.5], [0, 0], {"iou": 2 / 3 + 1e-6}, [0, 1], 0, id="just under"),
        pytest.param([A, A_SHIFTED], [0.9, 0.5], [0, 0], {"iou": 2 / 3 - 1e-6}, [0], 0, id="just over"),
        pytest.param([A, A], [0.9, 0.5], [0, 0], {"iou": 1.0}, [0, 1], 0, id="equality does not suppress"),
        pytest.param([A, A_FAR], [0.9, 0.5], [0, 0], {"iou": 0.0}, [0, 1], 0, id="no overlap"),
        pytest.param([A, (9, 9, 19, 19)], [0.9, 0.5], [0, 0], {"iou": 0.0}, [0], 0, id="any overlap"),
        pytest.param([A, (10, 0, 20, 10)], [0.9, 0.5], [0, 0], {"iou": 0.0}, [0, 1], 0, id="touching is no overlap"),
        pytest.param([A, A, A], [0.5, 0.5, 0.5], [0, 0, 0], {}, [0], 0, id="ties go by index"),
        pytest.param([A, A_FAR, A], [0.5, 0.7, 0.5], [0, 0, 1], {}, [1, 0, 2], 0, id="best first, then index"),
        pytest.param([FLAT, FLAT, A], [0.9, 0.8, 0.7], [0] * 3, {"iou": 0.0}, [0, 1, 2], 0, id="no area, no say"),
        pytest.param([(9, 9, 1, 1), A], [0.9, 0.8], [0, 0], {"iou": 0.0}, [0, 1], 0, id="inside out has no area"),
        pytest.param(
            [A, (4, 0, 14, 10), (8, 0, 18, 10)], [0.9, 0.8, 0.7], [0] * 3, {"iou": 0.4}, [0, 2], 0,
            id="what is suppressed does not suppress",
        ),
        pytest.param([A, A_FAR, A], [0.1, 0.9, 0.5], [0, 0, 0], {"max_candidates": 2}, [1, 2], 1, id="candidates cut"),
        pytest.param([A, A_FAR], [0.5, 0.5], [0, 0], {"max_candidates": 1}, [0], 1, id="the cut goes by index"),
        pytest.param([A, A_FAR, A], [0.3, 0.9, 0.5], [0, 0, 0], {"max_objects": 1}, [1], 1, id="objects cut"),
        pytest.param([A] * 4, [0.4, 0.3, 0.2, 0.1], [0, 1, 2, 3], {"max_candidates": 3, "max_objects": 2}, [0, 1], 2,
                     id="both cut"),
    ],
)  # fmt: skip
def test_suppression_keeps_the_expected_boxes(
    *,
    boxes: list[tuple[float, ...]],
    scores: list[float],
    class_ids: list[int],
    options: dict[str, float],
    kept: list[int],
    truncated_candidates: int,
) -> None:
    assert run(boxes, scores, class_ids, **options) == (kept, truncated_candidates)


@pytest.mark.integration
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([0, 1, 2, 7, 50, 127, 128, 129, 300]),
    objects=st.sampled_from([1, 3, 40]),
    levels=st.sampled_from([2, 10, 1000]),
    iou=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    across=st.sampled_from([0.3, 0.8, 1.0]),
    max_candidates=st.sampled_from([1, 100, 128, 1024]),
    max_objects=st.sampled_from([1, 20, 300]),
)
def test_nms_equals_the_naive_implementation(
    *,
    seed: int,
    count: int,
    objects: int,
    levels: int,
    iou: float,
    across: float,
    max_candidates: int,
    max_objects: int,
) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (objects, 2))
    truth = np.concatenate([corners, corners + rng.uniform(0, 100, (objects, 2))], axis=1)
    boxes = (truth[rng.integers(0, objects, count)] + rng.normal(0, 3, (count, 4))).astype(np.float32)
    scores = (rng.integers(0, levels, count) / levels).astype(np.float32)  # few levels: many ties
    class_ids = rng.integers(0, 3, count).astype(np.int32)
    kept, truncated_candidates = nms(
        boxes,
        scores,
        class_ids,
        iou=iou,
        across=across,
        max_candidates=max_candidates,
        max_objects=max_objects,
    )
    expected = naive(
        boxes,
        scores,
        class_ids,
        iou=iou,
        across=across,
        max_candidates=max_candidates,
        max_objects=max_objects,
    )
    assert (kept.tolist(), truncated_candidates) == expected


def test_chain_of_suppressions_is_greedy() -> None:
    count = 500  # every second box remains, and each decision depends on that for the previous box
    boxes = np.array([(4 * index, 0, 4 * index + 10, 10) for index in range(count)], np.float32)
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    kept, _ = nms(boxes, scores, np.zeros(count, np.int32), iou=0.4, max_objects=count)
    assert kept.tolist() == list(range(0, count, 2))


def test_huge_and_infinite_boxes_are_compared_without_a_warning() -> None:
    big = np.float32(3e38)
    boxes = np.array([[-big, -big, big, big], [-np.inf, 0, np.inf, 1], [0, 0, 1, 1]], np.float32)
    kept, truncated_candidates = nms(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int32), iou=0.5)
    assert (kept.tolist(), truncated_candidates) == ([0, 1, 2], 0)


@pytest.mark.parametrize(
    ("scores", "limit", "chosen", "truncated_candidates"),
    [
        ([], 3, [], 0),
        ([0.1, 0.9, 0.5], 3, [1, 2, 0], 0),
        ([0.1, 0.9, 0.5], 2, [1, 2], 1),
        ([0.5, 0.5, 0.5, 0.5], 2, [0, 1], 2),
        ([0.5, 0.9, 0.5, 0.9, 0.5], 3, [1, 3, 0], 2),
        ([0.0, 0.0, 1.0], 1, [2], 2),
    ],
)
def test_best_first_returns_the_highest_scores_in_order(
    scores: list[float], limit: int, chosen: list[int], truncated_candidates: int
) -> None:
    found, more = best_first(np.array(scores, np.float32), limit)
    assert (found.tolist(), more) == (chosen, truncated_candidates)


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 70))
def test_best_first_equals_the_head_of_a_stable_sort(levels: list[int], limit: int) -> None:
    found, truncated_candidates = best_first(np.array(levels, np.float32), limit)
    order = sorted(range(len(levels)), key=lambda index: -levels[index])
    assert found.tolist() == order[:limit]
    assert truncated_candidates == max(0, len(levels) - limit)
