"""Tests of the paths that the live view draws for lines, zones, masks, and the objects in a frame."""

from __future__ import annotations

from typing import Any

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
    assert (one["text"], one["at"], one["id"], one["foot"]) == ("person 5", (10.0, 20.0), 5, (20.0, 60.0))
    assert one["paths"] == [("M10.0 20.0H30.0V60.0H10.0Z", {"stroke": one["color"], "width": 1.5})]
    (areas, filled), (outline, stroked) = two["paths"]
    assert (two["text"], outline, areas) == ("person red", "M10.0 20.0L30.0 20.0L20.0 60.0Z", outline * 2)
    assert stroked["stroke"] == two["color"] != one["color"]
    assert filled == {"fill": two["color"].replace(")", " / 0.4)")}
    assert "id" not in two


def shape(**fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the paths of an object with these fields, without the path of its box."""
    message = message_of(META, 5, (10.0, 20.0, 30.0, 60.0))
    drawn = drawing(msgspec.structs.replace(message, objects=[msgspec.structs.replace(message.objects[0], **fields)]))
    paths: list[tuple[str, dict[str, Any]]] = drawn["objects"][0]["paths"]
    return [each for each in paths if each[0] != "M10.0 20.0H30.0V60.0H10.0Z"]


def test_keypoints_are_dots_and_those_of_people_are_connected() -> None:
    people = [(float(index), 2.0 * index, 0.9 if index in (5, 6, 7) else 0.1) for index in range(17)]
    (limbs, thin), (dots, thick) = shape(keypoints=people)
    assert limbs == "M5.0 10.0L6.0 12.0M5.0 10.0L7.0 14.0"
    assert dots == "M5.0 10.0h.01M6.0 12.0h.01M7.0 14.0h.01"
    assert thick["width"] > thin["width"] and thick["stroke"] == thin["stroke"]
    assert [path for path, _ in shape(keypoints=[(1.0, 2.0, 1.0), (3.0, 4.0, 0.2)])] == ["", "M1.0 2.0h.01"]


def test_run_lengths_of_a_mask_are_drawn_column_by_column() -> None:
    counts = [11, 4, 0, 0, 4, 6, 0, 5]  # columns of 10 pixels; the last runs continue in the next columns
    ((path, _),) = shape(mask=MaskOfObject(size=(10, 160), counts=counts))
    assert path == "M1 1h1V5h-1ZM1 9h1V10h-1ZM2 0h1V5h-1ZM2 5h1V10h-1Z"
    wide = shape(mask=MaskOfObject(size=(10, 160), counts=[0, 100]), box=(10.0, 0.0, 410.0, 10.0))
    assert wide[0][0].startswith("M0 0h4V10h-4ZM4 0h4")
