"""Test that a recorded clip plays in the browser from the time of its event on."""

from __future__ import annotations

import time
from pathlib import Path

import av
import msgspec

from tests.page.conftest import OpenInBrowser
from tests.page.harness import serve
from tests.page.samples import event, node, status
from tests.paths import ROOT
from vision.messaging import codec
from vision.messaging.times import rfc3339
from vision.outputs.page.state import PageState
from vision.outputs.recording.index import RecordedFile, RecordingIndex
from vision.state.database import StateDatabase

NAME = "gate/gate-20260101T000000.000Z-clip-1.mp4"


def write_clip(path: Path) -> None:
    """Write the coded video of the demo as a fragmented MP4 file, as the recorder does."""
    path.parent.mkdir(parents=True)
    options = {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(ROOT / "configs" / "vtest.mp4")) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def test_clip_of_an_event_plays_from_shortly_before_it(tmp_path: Path, open_page: OpenInBrowser) -> None:
    write_clip(tmp_path / "recordings" / NAME)
    start_ns = time.time_ns() - 60_000_000_000
    index = RecordingIndex(tmp_path / "state")
    recording = index.add_recording("gate", "clip")
    index.put_file(RecordedFile(recording, NAME, start_ns, start_ns + 60_000_000_000, 1, 1, 0))
    index.close()
    journal = StateDatabase(tmp_path / "state")
    stored = msgspec.structs.replace(event(0, "gate"), number=1, journal=journal.events.journal)
    stored = msgspec.structs.replace(stored, at=rfc3339(start_ns + 10_000_000_000))
    assert journal.events.append([codec.encode(stored)])
    state = PageState(3600.0)
    state.add(node())
    state.add(status("gate"))
    with serve(state, state_dir=str(tmp_path / "state"), recordings=str(tmp_path / "recordings")) as url:
        opened = open_page(f"{url}/#/events")
        opened.page.locator(".event summary").click()
        opened.wait_until("document.querySelector('video')?.readyState >= 2")
        assert 6.5 <= opened.page.evaluate("document.querySelector('video').currentTime") <= 7.5
        opened.page.evaluate("document.querySelector('video').play()")
        opened.wait_until("document.querySelector('video').currentTime > 8")
        assert opened.page.evaluate("document.querySelector('video').videoWidth") == 768
    journal.close()
