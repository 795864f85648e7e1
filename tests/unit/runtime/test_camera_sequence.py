"""Tests of the numbers of a camera, which continue after its result worker has ended."""

from __future__ import annotations

from vision.runtime.camera_sequence import SKIPPED_IDS, CameraSequence


def test_ids_that_the_worker_has_not_reported_yet_are_not_given_again() -> None:
    """A worker that ends within one second has reported no track ids, but may have assigned some."""
    sequence = CameraSequence()
    sequence.lost({}, unanswered=0)
    assert sequence.last_id == SKIPPED_IDS
