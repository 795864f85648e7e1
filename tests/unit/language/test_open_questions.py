"""Tests that the program knows the process of a question, whether the question or its event arrives first."""

from __future__ import annotations

import pytest

from tests.unit.language.test_held_events import Clock, event
from vision.config.language import DescribeConfig, VerifyConfig
from vision.language.messages import Purpose, Subject
from vision.language.open_questions import OpenQuestions

pytestmark = pytest.mark.unit


class Questions(OpenQuestions):
    """Open questions, with a clock that the test advances."""

    def __init__(self) -> None:
        self.time = Clock()
        verify = VerifyConfig(name="real", prompt="?", names=("rule",))
        super().__init__([verify], [DescribeConfig(name="words", names=("rule",), kinds=("rule",))], self.time)

    def lost_with(self, *cameras: str) -> list[Subject]:
        self.worker_ended(cameras)
        self.time.now_s += 1
        return self.given_up()


def subject(purpose: Purpose = "verify", id_: str = "1") -> Subject:
    check = "real" if purpose == "verify" else "words"
    return Subject(
        id=id_, purpose=purpose, check=check, camera="gate", at="2026-01-31T12:00:00.000000Z", kind="rule", name="rule"
    )


def test_both_questions_about_an_event_are_open_until_they_leave() -> None:
    open_ = Questions()
    open_.add([event(), event(id_="2")])
    assert open_.lost_with("yard") == []
    open_.remove(subject())
    assert open_.lost_with("yard", "gate") == [subject("describe"), subject(id_="2"), subject("describe", "2")]
    assert open_.lost == 3
    assert open_.lost_with("gate") == []


def test_a_question_that_leaves_a_moment_after_the_end_of_its_worker_is_not_lost() -> None:
    open_ = Questions()
    open_.add([event()])
    open_.worker_ended(["gate"])
    assert open_.given_up() == []
    due_s = open_.next_s()
    assert due_s is not None
    open_.remove(subject())
    open_.time.now_s = due_s
    assert open_.given_up() == [subject("describe")]
    assert open_.next_s() is None


def test_a_question_that_leaves_before_its_event_arrives_is_not_open() -> None:
    open_ = Questions()
    open_.remove(subject())
    open_.add([event()])
    assert open_.lost_with("gate") == [subject("describe")]


def test_questions_that_the_language_process_has_end_with_it_and_not_with_the_worker() -> None:
    open_ = Questions()
    open_.add([event(), event(id_="2")])
    for each in (subject(), subject("describe"), subject(id_="2")):
        open_.received(each)
    open_.answered("1", "describe")
    assert open_.lost_with("gate") == [subject("describe", "2")]
    assert open_.process_ended() == [subject(), subject(id_="2")]
    assert open_.lost == 3
    assert open_.process_ended() == []


def test_an_event_without_a_question_opens_none() -> None:
    open_ = Questions()
    open_.add([event(id_=None), event(name="other"), event(phase="end")])
    assert open_.lost_with("gate") == []


def test_memory_is_bounded() -> None:
    open_ = Questions()
    open_.add([event(id_=str(number)) for number in range(5000)])
    lost = open_.lost_with("gate")
    assert (len(lost), lost[-1]) == (4096, subject("describe", "4999"))
    for number in range(10_000, 15_000):
        open_.remove(subject(id_=str(number)))
    open_.add([event(id_="10000"), event(id_="14999")])
    assert open_.lost_with("gate") == [subject(id_="10000"), subject("describe", "10000"), subject("describe", "14999")]
