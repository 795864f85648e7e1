"""Tests of the cameras' shares if the server can answer only a third of the questions, with real processes and HTTP.

The server answers only when the test permits it, so that the shares do not depend on the speed of the machine.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from tests.chat_server import Handler, chat_server, json_answer
from tests.messages.processes import wait_until
from tests.unit.language.test_end_to_end import Published
from vision.config import AppConfig
from vision.language.parallel_limit import MOST
from vision.language.process import LanguageProcess
from vision.stages.inquiries import InquiryStage
from vision.types import Detections, Event, Frame, FrameMeta, Result, Timing

pytestmark = pytest.mark.integration

CAMERAS = [f"c{number}" for number in range(12)]
BUSY = CAMERAS[0]
ROUNDS = 24
ROUND = [BUSY] * 10 + CAMERAS[1:] + [BUSY] * 10
"""The cameras of the events of a round: `BUSY` has 20 times as many events as each other camera."""


class Overload:
    """Stage that asks about events, and a server that sends as many answers as the test permits."""

    def __init__(self, parallel: int | None) -> None:
        self.parallel = parallel
        self.asked: list[tuple[str, int]] = []  # camera and number of the event of each request
        self.sent: list[tuple[str, int]] = []
        self.newest: list[bool] = []  # for each request, True if no newer event of the camera waited
        self.answered: Counter[str] = Counter()
        self._permits, self._lock = threading.Semaphore(0), threading.Lock()

    def respond(self, handler: Handler) -> None:
        """Respond to a request as soon as the test permits it."""
        match = re.search(r'"camera":"(c\d+)".*"number":(\d+)', handler.received.prompt)
        assert match is not None
        question = match[1], int(match[2])
        with self._lock:
            waiting = [each for each in self.sent if each[0] == question[0] and each not in self.asked]
            self.newest.append(max(waiting, default=question) == question)
            self.asked.append(question)
        self._permits.acquire()
        with self._lock:
            self.answered[question[0]] += 1
        handler.send(json_answer("yes"))

    def run(self) -> None:
        """Ask about the events of all rounds. After each round, permit answers to a third of its events."""
        content = {
            "pipeline": "count",
            "cameras": [{"id": camera, "source": "synthetic:64x48"} for camera in CAMERAS],
            "verify": [{"name": "real", "prompt": "?"}],
        }
        with chat_server(self.respond) as server:
            language = {"url": server.url, "max_age_s": 3600, "timeout_s": 600} | (
                {"parallel": self.parallel} if self.parallel else {}
            )
            config = AppConfig.model_validate(content | {"language": language})
            with LanguageProcess(config) as process:
                process.start(Published())
                with closing(InquiryStage(config, process.address, lambda _frame, _box: b"jpeg")) as asks:
                    for number in range(1, ROUNDS + 1):
                        self._round(asks, number)
            for _ in range(len(self.asked)):
                self._permits.release()  # ends the threads of the server

    def _round(self, asks: InquiryStage, number: int) -> None:
        for camera in ROUND:
            self._ask(asks, camera)
        permitted = number * len(ROUND) // 3
        for _ in range(permitted - (number - 1) * len(ROUND) // 3):
            self._permits.release()
        wait_until(lambda: sum(self.answered.values()) == permitted, "the answers", 60)
        wait_until(lambda: len(self.asked) > permitted, "the next request", 60)

    def _ask(self, asks: InquiryStage, camera: str) -> None:
        number = len(self.sent)
        meta = FrameMeta(camera, number, 0, number, 10**18, 64, 48)
        event = Event("rule", "intruder", camera, None, 1, {"number": number})
        frame = Frame.wrap(meta, np.zeros((48, 64, 3), np.uint8), "bgr")
        none = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32))
        with self._lock:
            self.sent.append((camera, number))
        asks.with_frame(Result(meta, none, Timing(0, 0, 0), events=(event,)), frame)
        wait_until(lambda: asks.counters()["language.questions.sent"] > number, "the question", 60)


@pytest.mark.parametrize("parallel", [1, None])
def test_no_camera_starves_if_the_server_can_answer_a_third(parallel: int | None) -> None:
    overload = Overload(parallel)
    overload.run()
    total = ROUNDS * len(ROUND) // 3
    share = total / len(CAMERAS)
    assert sum(overload.answered.values()) >= total
    shares = [overload.answered[camera] for camera in CAMERAS]
    first = 0 if parallel else MOST  # questions that can be sent before the other cameras have events
    assert min(shares) >= share - 3 - first / len(CAMERAS), shares
    assert max(shares) <= share + 3 + first, shares
    if parallel == 1:
        assert all(overload.newest[1:])  # the first question is sent before the other events of the first round
