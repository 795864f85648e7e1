"""Tests of `profiles` in model.yaml. The ranges must be in ascending order."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from vision.config import ProfileSpec


def test_range_is_accepted() -> None:
    values = {"batch": [1, 4, 8], "height": [320, 416, 640], "values": {"size": [[8, 8], [16, 16], [32, 32]]}}
    profile = ProfileSpec.model_validate(values)
    assert (profile.batch, profile.height, profile.width) == ((1, 4, 8), (320, 416, 640), None)
    assert profile.values == {"size": ((8, 8), (16, 16), (32, 32))}
    assert profile.shapes == {}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"batch": [4, 1, 8]}, "batch"),
        ({"batch": [1, 8, 4]}, "batch"),
        ({"batch": [0, 1, 4]}, "batch"),
        ({"batch": [1, 4, 99999]}, "batch"),
        ({"batch": [1, 4]}, "batch"),
        ({}, "batch"),
        ({"batch": [1, 1, 1], "depth": 3}, "depth"),
        ({"batch": [1, 1, 1], "shapes": {"t": [[1], [1, 2], [1]]}}, "shapes"),
        ({"batch": [1, 1, 1], "shapes": {"t": [[2], [1], [3]]}}, "shapes"),
    ],
)
def test_invalid_range_is_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ProfileSpec.model_validate(values)
    assert {error["loc"][0] for error in caught.value.errors()} == {part}
