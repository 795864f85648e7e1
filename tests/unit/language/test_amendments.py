"""Tests that an amendment is not a new event for the parts of the program that count or record events."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.messages.samples import HEADER, result
from vision.config.recording import RecordingConfig
from vision.messaging import codec
from vision.messaging.schema import EventMessage, Verdict
from vision.outputs.archive.live import LiveDatabase
from vision.outputs.recording.index import RecordingIndex
from vision.outputs.recording.recorder import Recorder, RecorderOptions
from vision.runtime.monitoring.metrics import ProgramState
from vision.types import Event

pytestmark = pytest.mark.unit

EVENT = msgspec.structs.replace(
    codec.event(HEADER, Event("rule", "intruder", "gate", 1, 0, id="a1"), result()), journal="j", number=7
)
VERDICT = Verdict(check="real", answer="yes", model="m", latency_ms=600.0)
AMENDMENT = msgspec.structs.replace(EVENT, amends=EVENT.seq, seq=EVENT.seq + 1, number=8, verdict=VERDICT)


def test_metrics_count_one_event() -> None:
    state = ProgramState()
    for message in (EVENT, AMENDMENT):
        state.add(message)
    assert b'vision_events_total{camera="gate",kind="rule"} 1.0' in state.exposition()


def test_the_archive_keeps_one_event(tmp_path: Path) -> None:
    with closing(LiveDatabase(tmp_path)) as database:
        for message in (EVENT, AMENDMENT):
            database.add_event(message)
        assert database.commit() == 1
        assert database.last_event == ("j", 8)


def test_one_clip_is_recorded(tmp_path: Path) -> None:
    config = RecordingConfig(folder=str(tmp_path))
    options = RecorderOptions(config, tmp_path, ["gate"], [], "", None)
    with closing(RecordingIndex(tmp_path)) as index:
        recorder = Recorder(options, index)
        for message in (EVENT, AMENDMENT):
            recorder.add_event(message)
        assert recorder._events.qsize() == 1


def test_an_amendment_survives_encoding() -> None:
    for payload in (codec.encode(AMENDMENT, "json"), codec.encode(AMENDMENT, "msgpack")):
        decoded = codec.decode("events/gate", payload)
        assert isinstance(decoded, EventMessage)
        assert decoded == AMENDMENT
