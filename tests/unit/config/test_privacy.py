"""Tests of the section `privacy`, and of its conflicts with the cameras, the classes, and recordings."""

from __future__ import annotations

import pytest

from tests.unit.config.faults import config_faults

CAMERAS = "[{id: gate, source: 'rtsp://a/b'}, {id: yard, source: 'rtsp://a/c'}]"
MASK = "[[0, 0], [20, 0], [20, 20]]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"privacy: {{gate: {{masks: [{MASK}], blur: [person]}}}}", []),
        ("privacy: {gat: {blur: [person]}}", [("privacy.gat", "unknown-camera")]),
        ("privacy: {gate: {masks: [[[0, 0], [20, 0]]]}}", [("privacy.gate.masks[0]", "too-short")]),
        ("detect: {classes: [car]}\nprivacy: {gate: {blur: [person]}}", [("privacy.gate.blur[0]", "never-detected")]),
        (
            f"state_dir: s\nrecording: {{folder: r, mode: continuous}}\nprivacy: {{gate: {{masks: [{MASK}]}}}}",
            [("privacy.gate", "recorded-unmasked")],
        ),
        (
            "state_dir: s\nrecording: {folder: r, mode: continuous, cameras: [gate]}\nprivacy: {gate: {blur: [car]}}",
            [("privacy.gate", "recorded-unmasked")],
        ),
        (
            "state_dir: s\nrecording: {folder: r, mode: continuous, cameras: [yard]}\nprivacy: {gate: {blur: [car]}}",
            [],
        ),
    ],
)
def test_privacy_that_does_not_fit_is_refused(text: str, expected: list[tuple[str, str]]) -> None:
    assert [(key, code) for _, key, code in config_faults(f"cameras: {CAMERAS}\n{text}\n")] == expected
