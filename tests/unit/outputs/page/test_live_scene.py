"""Tests of the paths that the live view draws for lines, zones, masks, and the objects in a frame."""

from __future__ import annotations

import msgspec

from tests.page.live_site import message_of
from vision.messaging.message_fields import MaskOfObject
from vision.messaging.schema import AttributeOfObject
from vision.outputs.page.live_scene import drawing, scene
from vision.types import FrameMeta

META = FrameMeta("gate", 7, 2, 0, 0, 160, 120)


def test_shapes_are_drawn_in_order_with_holes_and_in_their_units() -> None:
    square = [[10, 10], [50, 10], [50, 50]]
    places = {
        "units": "percent",
        "lines": [{"name": "door", "points": [[0, 50], [100, 50]]}],
        "zones": [{"name": "hall", "polygon": square, "holes": [square[::-1]]}],
    }
    mask, zone, line = scene(places, {"units": "pixels", "masks": [[[0, 0], [9, 0], [0, 9]]]})["shapes"]
    assert (mask["path"], mask["relative"], mask["moves"], mask["name"]) == (
        "M0.0 0.0L9.0 0.0L0.0 9.0Z",
        False,
        False,
        "",
    )
    assert zone["path"] == "M0.1 0.1L0.5 0.1L0.5 0.5ZM0.5 0.5L0.5 0.1L0.1 0.1Z"
    assert (zone["key"], zone["relative"], zone["moves"], zone["at"]) == ("zone hall", True, True, (0.1, 0.1))
    assert (line["key"], line["path"]) == ("line door", "M0.0 0.5L1.0 0.5Z")
    assert scene(None, None) == {"shapes": []}


def test_objects_have_a_path_a_text_and_the_color_of_their_class() -> None:
    message = message_of(META, 5, (10.0, 20.0, 30.0, 60.0))
    (first,) = message.objects
    attribute = AttributeOfObject(model="colors", class_name="red", score=0.9, age_ms=0)
    part = [(10.0, 20.0), (30.0, 20.0), (20.0, 60.0)]
    second = msgspec.structs.replace(
        first, track_id=None, class_id=1, attributes=[attribute], corners=part, mask=MaskOfObject(polygons=[part, part])
    )
    drawn = drawing(msgspec.structs.replace(message, objects=[first, second]))
    assert (drawn["epoch"], drawn["frame"], drawn["width"], drawn["height"]) == (2, 7, 160, 120)
    one, two = drawn["objects"]
    assert (one["text"], one["path"], one["at"]) == ("person 5", "M10.0 20.0H30.0V60.0H10.0Z", (10.0, 20.0))
    assert (one["id"], one["foot"]) == (5, (20.0, 60.0))
    path = "M10.0 20.0L30.0 20.0L20.0 60.0Z"
    assert (two["text"], two["path"], two["areas"]) == ("person red", path, path * 2)
    assert "id" not in two and "areas" not in one and one["color"] != two["color"]
