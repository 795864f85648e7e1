"""Tests of the selection of a profile for a shape, and of the profiles of a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engine_models import spec
from vision.engine.build_plan import BuildPlan
from vision.engine.profiles import (
    NetworkInput,
    Profile,
    Range,
    batch_bands,
    batch_sizes,
    choose_profile,
    frame_input,
    make_profiles,
)
from vision.errors import ModelError


def batches(*bands: tuple[int, int, int]) -> list[Profile]:
    return [Profile({"x": Range((low, 3), (best, 3), (high, 3))}, {}) for low, best, high in bands]


BANDS = ((1, 4, 4), (4, 8, 16), (16, 64, 64))


@pytest.mark.parametrize(
    ("bands", "batch", "chosen"),
    [
        (BANDS, 1, 0),
        (BANDS, 3, 0),
        (BANDS, 4, 0),  # at the edge of two profiles: the one that is tuned for 4
        (BANDS, 5, 1),
        (BANDS, 16, 1),  # 8 is nearer than 64
        (BANDS, 17, 2),
        (BANDS, 64, 2),
        (((1, 64, 64), (1, 2, 64)), 3, 1),  # the first profile that fits would be wide and slow
        (((1, 64, 64), (1, 2, 64)), 40, 0),
        (((1, 1, 8), (8, 8, 8)), 8, 1),
        (((1, 2, 64), (1, 2, 4)), 2, 1),  # of two equally near profiles, the smaller one
        (((1, 2, 4), (1, 2, 4)), 2, 0),  # of two equal profiles, the first one
        (((1, 2, 4), (1, 8, 8)), 4, 0),  # 2 and 8 have equal ratios to 4
    ],
)
def test_nearest_tuned_profile_is_chosen(bands: tuple[tuple[int, int, int], ...], batch: int, chosen: int) -> None:
    assert choose_profile(batches(*bands), {"x": (batch, 3)}) == chosen


def test_distance_counts_every_dimension_of_every_input() -> None:
    def profile(height: int, queries: int) -> Profile:
        return Profile(
            {"x": Range((1, 3, 32), (1, 3, height), (4, 3, 1024)), "q": Range((1,), (queries,), (1000,))}, {}
        )

    profiles = [profile(640, 100), profile(320, 100), profile(320, 900)]
    assert choose_profile(profiles, {"x": (1, 3, 384), "q": (120,)}) == 1
    assert choose_profile(profiles, {"x": (1, 3, 384), "q": (800,)}) == 2
    assert choose_profile(profiles, {"x": (1, 3, 700), "q": (100,)}) == 0


@pytest.mark.parametrize("shape", [(65, 3), (0, 3), (4, 4), (4,), (4, 3, 1)])
def test_shape_outside_every_profile_is_refused_with_their_ranges(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        choose_profile(batches(*BANDS), {"x": shape})
    assert caught.value.code == "no-profile"
    assert f"x {'x'.join(map(str, shape))}" in str(caught.value)
    assert "16x3 .. 64x3" in str(caught.value)
    assert "max_batch" in caught.value.hint


def test_input_that_the_engine_does_not_have_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        choose_profile(batches(*BANDS), {"other": (1, 3)})
    assert caught.value.code == "no-profile"
    with pytest.raises(ModelError) as caught:
        choose_profile([], {"x": (1, 3)})
    assert caught.value.code == "no-profile"


@given(
    bands=st.lists(st.tuples(*[st.integers(1, 64)] * 3).map(lambda t: tuple(sorted(t))), min_size=1, max_size=6),
    batch=st.integers(1, 64),
)
def test_chosen_profile_is_the_nearest_that_contains_the_shape(bands: list[tuple[int, int, int]], batch: int) -> None:
    profiles = batches(*bands)
    shapes = {"x": (batch, 3)}
    if not any(low <= batch <= high for low, _, high in bands):
        with pytest.raises(ModelError):
            choose_profile(profiles, shapes)
        return
    chosen = profiles[choose_profile(profiles, shapes)]
    assert chosen.contains(shapes)
    assert all(chosen.cost(shapes) <= other.cost(shapes) for other in profiles if other.contains(shapes))


@pytest.mark.parametrize(
    ("max_batch", "bands"),
    [
        (1, ((1, 1, 1),)),
        (3, ((1, 3, 3),)),
        (4, ((1, 4, 4),)),
        (5, ((1, 4, 4), (4, 5, 5))),
        (8, ((1, 4, 4), (4, 8, 8))),
        (16, ((1, 4, 4), (4, 16, 16))),
        (64, ((1, 4, 4), (4, 16, 16), (16, 64, 64))),
        (100, ((1, 4, 4), (4, 16, 16), (16, 64, 64), (64, 100, 100))),
        (300, ((1, 4, 4), (4, 16, 16), (16, 64, 64), (64, 300, 300))),
    ],
)
def test_bands_end_at_max_batch(max_batch: int, bands: tuple[tuple[int, int, int], ...]) -> None:
    assert batch_bands(max_batch) == bands


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8)), (9, (1, 2, 4, 8, 9))]
)
def test_batch_sizes_are_powers_of_two_and_the_greatest(max_batch: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(max_batch) == sizes


# ------------------------------------------------------------------------------------------------ creation of profiles

OPEN_BATCH = NetworkInput("images", (-1, 3, 16, 16))
OPEN = NetworkInput("images", (-1, 3, -1, -1))
FIXED = NetworkInput("images", (4, 3, 16, 16))


def test_profiles_follow_from_max_batch() -> None:
    made = make_profiles([OPEN_BATCH], spec(), BuildPlan("fp16", 8))
    assert [str(each) for each in made] == [
        "images 1x3x16x16 .. 4x3x16x16 (best 4x3x16x16)",
        "images 4x3x16x16 .. 8x3x16x16 (best 8x3x16x16)",
        "images 1x3x16x16",
    ]
    chosen = [choose_profile(made, {"images": (size, 3, 16, 16)}) for size in (1, 2, 4, 8)]
    assert chosen == [2, 0, 0, 1], "one frame runs in the profile that is tuned for it"


def test_shape_input_takes_its_values_from_the_profile_or_the_constants() -> None:
    inputs = [OPEN_BATCH, NetworkInput("size", (2,), is_shape_tensor=True)]
    frames = {"width": 16, "height": 16, "constants": {"size": [8, 12]}}
    for made in make_profiles(inputs, spec(input=frames), BuildPlan("fp16", 8)):
        assert made.values == {"size": Range((8, 12), (8, 12), (8, 12))}
    wide = [{"batch": [1, 4, 8], "values": {"size": [[4, 4], [8, 8], [16, 16]]}}]
    (made,) = make_profiles(inputs, spec(input=frames, profiles=wide), BuildPlan("fp16", 8))
    assert made.values == {"size": Range((4, 4), (8, 8), (16, 16))}
    with pytest.raises(ModelError) as caught:
        make_profiles(inputs, spec(), BuildPlan("fp16", 8))
    assert caught.value.code == "profile-missing"
    with pytest.raises(ModelError) as caught:
        make_profiles(inputs, spec(input={**frames, "constants": {"size": [8.5, 12]}}), BuildPlan("fp16", 8))
    assert caught.value.code == "shape-values"


def test_every_batch_size_gets_a_separate_profile() -> None:
    made = make_profiles([OPEN_BATCH], spec(), BuildPlan("fp16", 6, fixed_batches=True))
    ranges = [(each.shapes["images"].min[0], each.shapes["images"].max[0]) for each in made]
    assert ranges == [(1, 4), (4, 6), (1, 1), (2, 2), (4, 4), (6, 6)]
    chosen = {size: ranges[choose_profile(made, {"images": (size, 3, 16, 16)})] for size in range(1, 7)}
    assert chosen == {1: (1, 1), 2: (2, 2), 3: (1, 4), 4: (4, 4), 5: (4, 6), 6: (6, 6)}
    given = [{"batch": [1, 2, 4]}]
    (alone,) = make_profiles([OPEN_BATCH], spec(profiles=given), BuildPlan("fp16", 4, fixed_batches=True))
    assert alone.shapes["images"].max[0] == 4, "model.yaml decides"
    assert len(make_profiles([FIXED], spec(), BuildPlan("fp16", 4, fixed_batches=True))) == 1
    assert len(make_profiles([OPEN_BATCH], spec(), BuildPlan("fp16", 1, fixed_batches=True))) == 1


def test_free_height_and_width_follow_the_spec() -> None:
    (made,) = make_profiles([OPEN], spec(size=64), BuildPlan("fp16", 1))
    assert str(made) == "images 1x3x64x64"


def test_profiles_of_the_spec_come_first() -> None:
    given = [
        {"batch": [1, 2, 4]},
        {"batch": [4, 8, 8], "height": [32, 64, 96], "width": [64, 64, 128]},
    ]
    made = make_profiles([OPEN], spec(size=64, profiles=given), BuildPlan("fp16", 8))
    assert made[0].shapes["images"] == Range((1, 3, 64, 64), (2, 3, 64, 64), (4, 3, 64, 64))
    assert made[1].shapes["images"] == Range((4, 3, 32, 64), (8, 3, 64, 64), (8, 3, 96, 128))


def test_fixed_batch_is_the_only_one() -> None:
    (made,) = make_profiles([FIXED], spec(), BuildPlan("fp16", 4))
    assert str(made) == "images 4x3x16x16"


def test_other_inputs_follow_the_batch_or_their_own_ranges() -> None:
    given = [{"batch": [1, 2, 4], "shapes": {"tokens": [[1, 8], [2, 16], [4, 77]]}}]
    inputs = [OPEN_BATCH, NetworkInput("sizes", (-1, 2)), NetworkInput("tokens", (-1, -1)), NetworkInput("k", (5,))]
    (made,) = make_profiles(inputs, spec(profiles=given), BuildPlan("fp16", 4))
    assert made.shapes["sizes"] == Range((1, 2), (2, 2), (4, 2))
    assert made.shapes["tokens"] == Range((1, 8), (2, 16), (4, 77))
    assert made.shapes["k"] == Range((5,), (5,), (5,))


def test_shape_tensors_get_values_and_no_shapes() -> None:
    given = [{"batch": [1, 2, 4], "values": {"size": [[8, 8], [16, 16], [32, 32]]}}]
    (made,) = make_profiles([OPEN_BATCH, NetworkInput("size", (2,), True)], spec(profiles=given), BuildPlan("fp16", 4))
    assert made.values == {"size": Range((8, 8), (16, 16), (32, 32))}
    assert set(made.shapes) == {"images"}


@pytest.mark.parametrize(
    ("inputs", "profiles", "max_batch", "code"),
    [
        ([FIXED], None, 8, "batch-fixed"),
        ([FIXED], [{"batch": [1, 4, 4]}], 4, "dimension-fixed"),
        ([OPEN_BATCH], [{"batch": [1, 4, 4]}], 8, "batch-too-large"),
        ([OPEN_BATCH], [{"batch": [1, 4, 4], "height": [16, 32, 64]}], 4, "dimension-fixed"),
        ([NetworkInput("images", (-1, 3, 16, 32))], None, 4, "dimension-fixed"),
        ([NetworkInput("images", (-1, 1, 16, 16))], None, 4, "dimension-fixed"),
        ([NetworkInput("x", (-1, 10))], None, 4, "no-frame-input"),
        ([OPEN_BATCH, NetworkInput("t", (-1, -1))], None, 4, "profile-missing"),
        ([OPEN_BATCH, NetworkInput("s", (2,), True)], None, 4, "profile-missing"),
        ([OPEN_BATCH], [{"batch": [1, 4, 4], "shapes": {"z": [[1], [1], [1]]}}], 4, "unknown-input"),
        (
            [OPEN_BATCH, NetworkInput("t", (-1, 7))],
            [{"batch": [1, 4, 4], "shapes": {"t": [[1, 8], [1, 8], [1, 8]]}}],
            4,
            "dimension-fixed",
        ),
    ],
)
def test_profile_outside_the_models_range_is_refused(
    inputs: list[NetworkInput], profiles: list[dict[str, object]] | None, max_batch: int, code: str
) -> None:
    with pytest.raises(ModelError) as caught:
        make_profiles(inputs, spec(profiles=profiles), BuildPlan("fp16", max_batch))
    assert caught.value.code == code


def test_frame_input_is_found_among_others() -> None:
    assert frame_input([NetworkInput("sizes", (-1, 2)), OPEN]) is OPEN
