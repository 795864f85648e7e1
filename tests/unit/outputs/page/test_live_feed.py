"""Tests of `CameraFeed`, which selects the packets, results, and images for each viewer."""

from __future__ import annotations

import struct
from typing import Any, Final

import av
import msgspec
import numpy as np
import pytest

from tests.page.live_site import message_of
from vision.messaging import codec
from vision.messaging.packets import CodedPacket, FrameTime, Image, ImageRequest, PacketHeader
from vision.messaging.schema import CountsMessage, DetectionsMessage
from vision.outputs.page.live_feed import CameraFeed
from vision.types import Counts, FrameMeta

pytestmark = pytest.mark.unit

SECOND: Final = 1_000_000_000


class Viewer:
    """Viewer that either stores its records or accepts no records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.accepts = True

    def push(self, record: bytes) -> bool:
        if self.accepts:
            head, length = struct.unpack_from("!II", record)
            assert len(record) == 8 + head + length
            self.records.append({**msgspec.json.decode(record[8 : 8 + head]), "data": record[8 + head :]})
        return self.accepts

    def flush(self) -> None:
        pass

    def kinds(self) -> list[str]:
        """Return the kinds of the records since the previous call, except the scene."""
        kinds = [record["kind"] for record in self.records if record["kind"] != "scene"]
        self.records.clear()
        return kinds


class Rig:
    """Feed, and the camera that supplies the feed."""

    def __init__(self, *, is_private: bool = False) -> None:
        self.requests: list[ImageRequest] = []
        self.now_ns = 100 * SECOND
        self.feed = CameraFeed(
            "gate",
            request=self.requests.append,
            scene=dict,
            is_private=is_private,
            clock=lambda: self.now_ns,
        )
        self.connection = 1
        self._seq = -1
        self._packets = h264()

    def viewer(self, *codecs: str) -> Viewer:
        viewer = Viewer()
        self.feed.add(viewer, codecs)
        viewer.records.clear()
        return viewer

    def packet(self, *, key: bool = False, pts: int | None = None, lost: int = 0) -> int:
        """Send the next packet. Return its presentation time in ns."""
        self._seq += 1 + lost
        pts_ns = self._seq * 40_000_000 if pts is None else pts
        header = PacketHeader(self.connection, self._seq, "h264", key, pts_ns, self.now_ns, 0)
        self.feed.packet(CodedPacket("gate", header, self._packets[0 if key else 1]))
        return pts_ns

    def result(self, pts_ns: int, *, captured_ns: int | None = None) -> DetectionsMessage:
        """Send the result of a packet. Return the message."""
        captured_ns = pts_ns + 7 if captured_ns is None else captured_ns
        self.feed.frame_time(FrameTime("gate", self.connection, pts_ns, captured_ns))
        return self.message(captured_ns)

    def message(self, captured_ns: int) -> DetectionsMessage:
        message = message_of(FrameMeta("gate", 0, 0, captured_ns, 0, 160, 128), 5)
        self.feed.detections(message)
        return message

    def reconnect(self) -> None:
        self.connection += 1
        self._seq = -1


def h264() -> list[bytes]:
    """Return a key frame, and a frame that depends on the key frame, in Annex B."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = 160, 128, "yuv420p"
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency"}
    image = np.zeros((192, 160), np.uint8)
    return [bytes(packet) for _ in range(2) for packet in encoder.encode(av.VideoFrame.from_ndarray(image, "yuv420p"))]


def test_a_viewer_receives_packets_from_a_key_frame_on_and_their_results() -> None:
    rig = Rig()
    viewer = rig.viewer("h264")
    rig.result(rig.packet())
    assert viewer.kinds() == []
    pts_ns = rig.packet(key=True)
    rig.result(pts_ns)
    assert [record["time"] for record in viewer.records] == [pts_ns // 1000, pts_ns // 1000]
    assert viewer.records[0]["codec"].startswith("avc1.42")
    assert viewer.records[1]["result"]["objects"][0]["id"] == 5
    assert viewer.kinds() == ["packet", "result"]
    rig.packet()
    assert viewer.kinds() == ["packet"]


@pytest.mark.parametrize("late", [True, False])
def test_a_result_is_sent_with_the_time_of_its_packet_whichever_arrives_first(*, late: bool) -> None:
    rig = Rig()
    viewer = rig.viewer("h264")
    first, second = rig.packet(key=True), rig.packet()
    viewer.kinds()
    if late:
        rig.message(captured_ns=20)
        assert viewer.kinds() == []
    rig.feed.frame_time(FrameTime("gate", 1, first, 10))
    rig.feed.frame_time(FrameTime("gate", 1, second, 20))
    if not late:
        rig.message(captured_ns=20)
    assert [record["time"] for record in viewer.records] == [second // 1000]


@pytest.mark.parametrize("break_", ["loss", "connection", "stalled"])
def test_a_viewer_waits_for_a_key_frame_after(break_: str) -> None:
    rig = Rig()
    viewer, other = rig.viewer("h264"), rig.viewer("h264")
    rig.packet(key=True)
    if break_ == "connection":
        rig.reconnect()
    viewer.accepts = break_ != "stalled"
    rig.packet(lost=int(break_ == "loss"))
    viewer.accepts = True
    viewer.kinds(), other.kinds()
    rig.packet()
    assert viewer.kinds() == []
    assert other.kinds() == (["packet"] if break_ == "stalled" else [])
    rig.packet(key=True)
    assert viewer.kinds() == ["packet"]


def test_a_waiting_viewer_receives_images_at_a_limited_rate() -> None:
    rig = Rig()
    viewer = rig.viewer()
    message = rig.message(captured_ns=1)
    rig.message(captured_ns=2)
    assert [request.captured_ns for request in rig.requests] == [1]
    rig.feed.image(Image("gate", 2, b"other"))
    rig.feed.image(Image("gate", message.captured_monotonic_ns, b"jpeg"))
    assert [record["data"] for record in viewer.records] == [b"jpeg"]
    rig.now_ns += SECOND // 20
    rig.message(captured_ns=3)
    rig.now_ns += SECOND // 10
    rig.message(captured_ns=4)
    assert [request.captured_ns for request in rig.requests] == [1, 4]
    rig.now_ns += SECOND  # the image does not arrive
    rig.message(captured_ns=5)
    assert rig.requests[-1].captured_ns == 5


def test_a_frame_that_is_not_in_memory_does_not_delay_the_first_image() -> None:
    rig = Rig()
    viewer = rig.viewer()
    rig.message(captured_ns=1)
    rig.feed.image(Image("gate", 1, b""))
    rig.now_ns += SECOND // 25
    rig.message(captured_ns=2)
    assert [request.captured_ns for request in rig.requests] == [1, 2]
    rig.feed.image(Image("gate", 2, b"jpeg"))
    assert [record["data"] for record in viewer.records] == [b"jpeg"]


def test_images_end_with_the_key_frame_of_a_viewer_that_decodes_it() -> None:
    rig = Rig()
    decoding, showing = rig.viewer("h264"), rig.viewer("hevc")
    rig.packet()
    assert rig.feed.wants_images
    rig.packet(key=True)
    rig.message(captured_ns=9)
    rig.feed.image(Image("gate", 9, b"jpeg"))
    assert (decoding.kinds(), showing.kinds()) == (["packet"], ["image"])
    rig.feed.remove(showing)
    assert not rig.feed.wants_images


def test_packets_with_equal_times_are_not_sent_because_their_results_are_ambiguous() -> None:
    rig = Rig()
    viewer = rig.viewer("h264")
    rig.packet(key=True, pts=5000)
    rig.packet(pts=5000)
    rig.packet(key=True, pts=9000)
    assert viewer.kinds() == ["packet"]
    assert rig.feed.wants_images


def test_a_viewer_receives_images_if_packets_stop_but_results_arrive() -> None:
    rig = Rig()
    rig.viewer("h264")
    rig.packet(key=True)
    assert not rig.feed.wants_images
    rig.now_ns += 10 * SECOND
    rig.message(captured_ns=1)
    assert len(rig.requests) == 1


def test_a_private_camera_wants_no_packets_and_whole_frames() -> None:
    rig = Rig(is_private=True)
    rig.viewer("h264", "hevc")
    rig.message(captured_ns=1)
    assert not rig.feed.wants_packets
    assert rig.requests[0].max_width_px > 4096
    assert not Rig().feed.wants_images


def test_viewers_receive_the_view_of_a_camera_that_was_moved() -> None:
    """Viewers use the view of the camera to draw lines and zones at the places where objects are counted."""
    rig = Rig()
    viewer = rig.viewer("h264")
    counts = Counts({"door": {"in": 1, "out": 0}}, {}, {}, view=(1.0, 0.2, 40.0, 0.1, 1.0, 7.0))
    report = codec.status({"node": "n", "instance": "i", "boot": "b", "seq": 1}, codec.counts("gate", counts, 0, 0))
    assert isinstance(report, CountsMessage)
    rig.feed.report(report)
    (record,) = viewer.records
    assert record["view"] == [1.0, 0.1, 0.2, 1.0, 40.0, 7.0]  # as in the CSS function matrix()
