"""Tests of the questions of `InquiryStage`: selected events, frames and parts of frames, statements, and limits."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import cv2
import numpy as np
import pytest
import zmq

from tests.messages.processes import wait_until
from vision.config import AppConfig
from vision.language.messages import (
    LARGEST_IMAGE_BYTES,
    LARGEST_QUESTION_BYTES,
    Question,
    Unasked,
    decode_line,
    failures_address,
)
from vision.language.question_channel import receive_questions
from vision.runtime.builder import RunOptions
from vision.runtime.event_frames import open_inquiries
from vision.stages.inquiries import Box, InquiryStage
from vision.types import Event, Frame, FrameMeta, Result, Timing, Tracks

pytestmark = pytest.mark.unit


class Receiver:
    """Receiver of the stage's questions, in place of the process that asks the language model."""

    def __init__(self) -> None:
        self.address = f"vision-test-{secrets.token_hex(8)}"
        self._questions: queue.SimpleQueue[tuple[Question, list[bytes]]] = queue.SimpleQueue()

    def open(self) -> None:
        def add(question: Question, images: Sequence[bytes]) -> None:
            self._questions.put((question, list(images)))

        threading.Thread(target=receive_questions, args=(self.address, add), daemon=True).start()

    def next(self) -> tuple[Question, list[bytes]]:
        return self._questions.get(timeout=60)

    def failures(self, number: int) -> list[Unasked]:
        """Return the next `number` reports about questions that were not sent."""
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.bind(failures_address(self.address))
            found = []
            for _ in range(number):
                assert socket.poll(60_000)
                line = decode_line(socket.recv().decode())
                assert isinstance(line, Unasked)
                found.append(line)
            return found

    def is_empty(self) -> bool:
        with contextlib.suppress(queue.Empty):
            self._questions.get(timeout=0.2)
            return False
        return True


@pytest.fixture
def receiver() -> Receiver:
    made = Receiver()
    made.open()
    return made


def encode(frame: Frame, box: Box | None) -> bytes:
    """Return a text that replaces the contents of a JPEG file."""
    return f"{frame.meta.index} {frame.pixels[0, 0, 0]} {box}".encode()


def stage(receiver: Receiver, encoder: Any = encode, *, budget: int = 64 << 20, **top: Any) -> InquiryStage:
    cameras = [{"id": name, "source": f"{name}.mp4"} for name in ("gate", "yard")]
    language = {"url": "http://127.0.0.1:1/v1"}
    config = AppConfig.model_validate({"cameras": cameras, "pipeline": "count", "language": language} | top)
    return InquiryStage(config, receiver.address, encoder, most_bytes=budget)


def check(**keys: Any) -> dict[str, Any]:
    return {"verify": [{"name": "real", "prompt": "?"} | keys]}


def show(
    inquiries: InquiryStage,
    index: int,
    *events: Event,
    camera: str = "gate",
    epoch: int = 0,
    box: Any = (10, 20, 30, 40),
) -> Result:
    """Pass a frame with events to the stage. The interval between frames is 100 ms."""
    meta = FrameMeta(camera, index, epoch, index * 100_000_000, 10**18 + index * 100_000_000, 64, 48)
    tracks = Tracks(
        np.array([box], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32), np.array([7]), np.array([0])
    )
    frame = Frame.wrap(meta, np.full((48, 64, 3), index, np.uint8), "bgr")
    result = inquiries.with_frame(Result(meta, tracks, Timing(0, 0, 0), events=events), frame)
    frame.pixels[:] = 255  # the lease has ended
    return result


def event(kind: str = "rule", name: str = "intruder", camera: str = "gate", **data: Any) -> Event:
    return Event(kind, name, camera, 7, 0, {"class": "person"} | data)


def test_an_event_gets_an_id_and_becomes_a_question(receiver: Receiver) -> None:
    inquiries = stage(receiver, **check(names=["intruder"]))
    after = show(inquiries, 3, event(), event(name="other"))
    asked, images = receiver.next()
    assert [bool(each.id) for each in after.events] == [True, False]
    assert (asked.id, asked.check, asked.camera, asked.frame) == (after.events[0].id, "real", "gate", 3)
    assert asked.facts == {"kind": "rule", "name": "intruder", "class": "person"}
    assert images == [b"3 3 None"]
    inquiries.close()
    assert inquiries.counters() == {f"language.questions.{key}": n for key, n in
                                    (("sent", 1), ("skipped", 0), ("failed", 0))}  # fmt: skip


def test_a_mask_applies_to_the_images_of_later_questions(receiver: Receiver) -> None:
    cameras = [{"id": "gate", "source": "gate.mp4"}]
    keys: dict[str, Any] = {"cameras": cameras, "pipeline": "count", "language": {"url": "http://127.0.0.1:1/v1"}}
    config = AppConfig.model_validate(keys | check())
    mask = {"units": "fraction", "masks": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}
    brightness = []
    with ExitStack() as resources:
        options = RunOptions(stop=threading.Event(), inquiries=receiver.address)
        (inquiries,) = open_inquiries(config, options, resources)
        for index, masks in ((200, {}), (210, {"gate": mask}), (220, {})):
            inquiries.reconfigure(AppConfig.model_validate(keys | check() | {"privacy": masks}))
            show(inquiries, index, event())
            image = cv2.imdecode(np.frombuffer(receiver.next()[1][0], np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            brightness.append(round(float(image.mean()), -1))
    assert brightness == [200, 0, 220]


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ({}, True),
        ({"kinds": ["rule"], "classes": ["person"], "cameras": ["gate"]}, True),
        ({"kinds": ["crowded"]}, False),
        ({"names": ["door"]}, False),
        ({"classes": ["car"]}, False),
        ({"cameras": ["yard"]}, False),
    ],
)
def test_chosen_events(receiver: Receiver, keys: dict[str, Any], chosen: bool) -> None:
    inquiries = stage(receiver, **{"pipeline": "mine.py", **check(**keys)})
    assert bool(show(inquiries, 0, event()).events[0].id) == chosen
    assert not show(inquiries, 1, event(phase="end")).events[0].id
    inquiries.close()


def test_several_frames_at_their_times(receiver: Receiver) -> None:
    inquiries = stage(receiver, **check(frames=3, spacing_s=0.25))
    show(inquiries, 0, event())
    for index in range(1, 10):
        show(inquiries, index)
        show(inquiries, index, camera="yard")
    asked, images = receiver.next()
    assert asked.offsets_ms == [0, 300, 600]
    assert [image.split()[0] for image in images] == [b"0", b"3", b"6"]
    inquiries.close()


def test_the_object_is_cut_out_where_it_is(receiver: Receiver) -> None:
    inquiries = stage(receiver, **check(frames=2, spacing_s=0.1, crop=True, margin=0.5))
    show(inquiries, 0, event())
    show(inquiries, 1, box=(0, 0, 10, 20))
    asked, images = receiver.next()
    assert asked.cropped
    assert images == [b"0 0 (0.0, 10.0, 40.0, 50.0)", b"1 1 (-5.0, -10.0, 15.0, 30.0)"]
    inquiries.close()


def test_an_event_is_verified_and_described(receiver: Receiver) -> None:
    inquiries = stage(receiver, **check(), describe=[{"name": "words"}])
    after = show(inquiries, 0, event())
    asked = [receiver.next()[0] for _ in range(2)]
    assert {(each.check, each.purpose, each.id) for each in asked} == {
        ("real", "verify", after.events[0].id), ("words", "describe", after.events[0].id),
    }  # fmt: skip
    inquiries.close()


def test_a_statement_is_asked_at_intervals(receiver: Receiver) -> None:
    watch = {"name": "open", "statement": "It is open.", "every_s": 1.0, "cameras": ["gate"]}
    inquiries = stage(receiver, describe=[watch])
    for index in range(25):
        show(inquiries, index)
        show(inquiries, index, camera="yard")
    asked = [receiver.next()[0] for _ in range(3)]
    assert sorted((each.frame, each.id, each.camera) for each in asked) == [
        (0, "", "gate"),
        (10, "", "gate"),
        (20, "", "gate"),
    ]
    assert receiver.is_empty()
    inquiries.close()


def test_without_a_free_copy_the_next_frame_is_used(receiver: Receiver) -> None:
    go = threading.Event()

    def encode_later(frame: Frame, box: Box | None) -> bytes:
        assert go.wait(60)
        return encode(frame, box)

    inquiries = stage(receiver, encode_later, **check())
    for index in range(8):
        show(inquiries, index, event())
    show(inquiries, 8, event())
    assert inquiries._worker.skipped == 1
    go.set()
    wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    show(inquiries, 9)
    asked = [receiver.next()[0] for _ in range(9)]
    assert (8, [100]) in [(each.frame, each.offsets_ms) for each in asked]  # the queue can change their order
    inquiries.close()


def test_a_failure_to_encode_is_counted_and_ends_nothing(receiver: Receiver) -> None:
    def fail(_frame: Frame, _box: Box | None) -> bytes:
        raise ValueError("no codec")

    inquiries = stage(receiver, fail, **check())
    show(inquiries, 0, event())
    wait_until(lambda: inquiries.counters()["language.questions.failed"] == 1, "the failure", 60)
    assert show(inquiries, 1, event()).events[0].id
    inquiries.close()


def test_a_process_that_does_not_receive_is_not_waited_for() -> None:
    inquiries = stage(Receiver(), **check())
    for index in range(100):
        show(inquiries, index, event())
        wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    assert inquiries.counters()["language.questions.skipped"] == 36
    inquiries.close()
    assert inquiries.counters() == {"language.questions.sent": 0, "language.questions.skipped": 100,
                                    "language.questions.failed": 0}  # fmt: skip


def test_the_first_questions_after_a_pause_of_the_process_come_from_all_cameras() -> None:
    absent = Receiver()
    inquiries = stage(absent, **check())
    for index in range(100):
        show(inquiries, index, event())
        wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    show(inquiries, 100, event(camera="yard"), camera="yard")
    wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    absent.open()
    asked = [absent.next()[0] for _ in range(3)]
    assert [(each.camera, each.frame) for each in asked] == [("yard", 100), ("gate", 99), ("gate", 98)]
    inquiries.close()


def test_images_that_wait_are_limited_in_bytes_and_each_camera_keeps_its_newest() -> None:
    absent = Receiver()
    inquiries = stage(absent, lambda _frame, _box: bytes(2 << 20), budget=8 << 20, **check(wait_s=3600))
    ids = []
    for index in range(10):
        ids.append(show(inquiries, index, event()).events[0].id)
        wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
        assert inquiries._budget.nbytes <= 8 << 20
    other = show(inquiries, 10, event(camera="yard"), camera="yard").events[0].id
    wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    failures = absent.failures(7)
    assert [(each.subject.id, each.reason) for each in failures] == [(id_, "image-budget") for id_ in ids[:7]]
    absent.open()
    assert {absent.next()[0].id for _ in range(4)} == {*ids[7:], other}
    inquiries.close()
    assert inquiries._budget.nbytes == 0


def test_images_of_incomplete_questions_are_limited_in_bytes(receiver: Receiver) -> None:
    inquiries = stage(
        receiver, lambda _frame, _box: bytes(3 << 20), budget=8 << 20, **check(wait_s=3600, frames=2, spacing_s=1.0)
    )
    ids = []
    for index in range(3):
        ids.append(show(inquiries, index, event()).events[0].id)
        wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    assert [(each.subject.id, each.reason) for each in receiver.failures(1)] == [(ids[0], "image-budget")]
    assert inquiries._budget.nbytes == 6 << 20
    inquiries.close()


def test_the_images_of_one_question_are_limited(receiver: Receiver) -> None:
    inquiries = stage(receiver, lambda _frame, _box: bytes(3 << 20), **check(frames=3, spacing_s=0.1, wait_s=3600))
    id_ = show(inquiries, 0, event()).events[0].id
    for index in (1, 2):
        show(inquiries, index)
    assert [(each.subject.id, each.reason) for each in receiver.failures(1)] == [(id_, "image-failed")]
    assert LARGEST_QUESTION_BYTES < 9 << 20
    inquiries.close()


def test_an_image_that_is_too_large_is_reported_for_each_event_and_logged_once(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    inquiries = stage(receiver, lambda _frame, _box: bytes(LARGEST_IMAGE_BYTES + 1), **check(wait_s=3600, frames=2))
    ids = []
    for index in range(5):
        ids.append(show(inquiries, 20 * index, event()).events[0].id)
        show(inquiries, 20 * index + 10)
        wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    failures = receiver.failures(5)
    assert [(each.subject.id, each.subject.purpose, each.reason) for each in failures] == [
        (id_, "verify", "image-failed") for id_ in ids
    ]
    assert inquiries.counters()["language.questions.failed"] == 5
    assert len(caplog.records) == 1
    inquiries.close()


def test_a_question_that_the_process_does_not_receive_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    absent = Receiver()
    inquiries = stage(absent, **check(wait_s=3600))
    ids = []
    for index in range(80):
        ids.append(show(inquiries, index, event()).events[0].id)
        wait_until(lambda: inquiries._worker.progress() is None, "free copies", 60)
    failures = absent.failures(16)
    assert {each.reason for each in failures} == {"process-busy"}
    assert [each.subject.id for each in failures] == ids[:16]
    assert len(caplog.records) == 1
    inquiries.close()


def test_a_question_that_expires_while_the_process_is_absent_is_reported() -> None:
    absent = Receiver()
    inquiries = stage(absent, **check(wait_s=0.3))
    id_ = show(inquiries, 0, event()).events[0].id
    assert [(each.subject.id, each.reason) for each in absent.failures(1)] == [(id_, "process-busy")]
    inquiries.close()


def test_a_question_whose_images_are_late_is_reported(receiver: Receiver) -> None:
    inquiries = stage(receiver, **check(wait_s=0.2, frames=2, spacing_s=0.1))
    id_ = show(inquiries, 10, event()).events[0].id

    def is_late() -> bool:
        show(inquiries, 10)  # too early for the second image
        return inquiries.counters()["language.questions.skipped"] == 1

    wait_until(is_late, "the question to expire", 60)
    (failure,) = receiver.failures(1)
    subject = failure.subject
    assert (subject.id, subject.check, subject.camera, failure.reason) == (id_, "real", "gate", "image-late")
    inquiries.close()


def test_open_questions_of_a_camera_are_limited(receiver: Receiver) -> None:
    inquiries = stage(receiver, **check(frames=16, spacing_s=60))
    ids = [bool(show(inquiries, index, event()).events[0].id) for index in range(12)]
    assert ids == [True] * 8 + [False] * 4
    failures = receiver.failures(4)
    assert {(each.subject.id, each.subject.kind, each.reason) for each in failures} == {("", "rule", "not-asked")}
    assert inquiries.counters()["language.questions.skipped"] == 4
    assert show(inquiries, 12, event(camera="yard"), camera="yard").events[0].id
    inquiries.close()
