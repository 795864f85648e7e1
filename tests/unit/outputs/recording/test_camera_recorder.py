"""Tests of clips and continuous recordings, from real packets to decoded files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.unit.outputs.recording.streams import FPS, GOP, NS, START_NS, Coded, Decoded, coded, decoded, packets
from vision.config.recording import RecordingConfig
from vision.messaging.packets import CodedPacket
from vision.outputs.recording.camera_recorder import CameraRecorder, Trigger
from vision.outputs.recording.index import RecordedEvent, Recording, RecordingIndex
from vision.outputs.recording.ring import PacketRing
from vision.outputs.recording.store import RecordingStore

EVENT = RecordedEvent("journal", 7, "2027-01-15T08:00:00Z", "rule", "long-queue")


class Desk:
    """Recorder of one camera. Its clock shows the arrival times of the packets."""

    def __init__(self, folder: Path, index: RecordingIndex, **keys: Any) -> None:
        config = RecordingConfig(folder=str(folder), **{"pre_s": 1.0, "post_s": 1.0, **keys})
        self.folder = folder
        self.index = index
        self.now_ns = START_NS
        self.ring = PacketRing(config.ring_mb * 1_000_000, config.pre_s + 15)
        self.store = RecordingStore(config, index, lambda: 1_800_000_100_000_000_000)
        self.camera = CameraRecorder("gate", config, self.store, self.ring, lambda: self.now_ns)

    def play(self, arriving: Sequence[CodedPacket], events_s: Sequence[float] = ()) -> None:
        """Process packets and events in order of arrival. `events_s` are seconds since the start."""
        waiting = [START_NS + round(each * NS) for each in events_s]
        for packet in arriving:
            self.now_ns = packet.header.arrived_ns
            self.ring.add(packet)
            while waiting and waiting[0] <= self.now_ns:
                self.camera.trigger(Trigger(waiting.pop(0), EVENT))
            self.camera.write()

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * NS)
        self.camera.write()

    def recordings(self) -> list[Recording]:
        return self.index.recordings()

    def videos(self) -> list[Decoded]:
        return [decoded(self.folder / file.name) for each in self.recordings() for file in each.files]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[RecordingIndex]:
    with closing(RecordingIndex(tmp_path / "state")) as opened:
        yield opened


def desk(tmp_path: Path, index: RecordingIndex, **keys: Any) -> Desk:
    return Desk(tmp_path / "recordings", index, **keys)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_clip_starts_with_a_key_frame_before_the_event_and_ends_after_it(
    tmp_path: Path, index: RecordingIndex, codec: str, b_frames: int
) -> None:
    made = desk(tmp_path, index)
    made.play(packets(coded(codec, b_frames=b_frames), codec=codec), [2.5])
    made.wait(10)
    (recording,) = made.recordings()
    (video,) = made.videos()
    assert (recording.kind, recording.events) == ("clip", (EVENT,))
    assert video.numbers[0] == GOP  # the key frame at 1.0 s, the last one before 1.5 s
    assert video.numbers[-1] >= 35 - b_frames  # 1 s after the event
    complete = len(video.numbers) - b_frames  # the last frames can be displayed after frames that arrive later
    assert video.numbers[:complete] == list(range(GOP, GOP + complete))
    assert set(video.steps_s[: complete - 1]) == {1 / FPS}
    assert (video.codec, recording.files[0].lost) == (codec, 0)
    assert recording.files[0].frames == len(video.numbers)


def test_key_frame_that_later_frames_refer_across_starts_a_clip_only_if_there_is_no_other(
    tmp_path: Path, index: RecordingIndex
) -> None:
    """In this stream, frames after each key frame except the first refer to frames before this key frame."""
    made = desk(tmp_path, index)
    made.play(packets(coded(b_frames=2, open_gop=True, frames=200)), [5.0, 15.5])
    made.wait(10)
    assert [video.numbers[0] for video in made.videos()] == [0, 140 % 64]


def test_overlapping_events_extend_a_clip_and_later_events_start_a_new_one(
    tmp_path: Path, index: RecordingIndex
) -> None:
    made = desk(tmp_path, index)
    frames = coded(frames=200)
    made.play(packets(frames), [2.0, 2.8, 6.0, 14.0])  # clip 2.8 ends at 4.8, and clip 6.0 begins at 5.0
    made.wait(10)
    found = made.recordings()
    assert [len(each.events) for each in found] == [2, 1, 1]
    assert [len(each.files) for each in found] == [1, 1, 1]
    spans = [(each.files[0].start_utc_ns, each.files[0].end_utc_ns) for each in found]
    assert [round((end - start) / NS) for start, end in spans] == [4, 3, 3]


def test_clip_has_a_maximum_length(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index, max_clip_s=10)
    made.play(packets(coded(frames=300)), [2 + second for second in range(25)])
    made.wait(10)
    lengths = [(each.files[0].end_utc_ns - each.files[0].start_utc_ns) / NS for each in made.recordings()]
    assert len(lengths) == 3
    assert max(lengths) < 10 + 1 + GOP / FPS
    assert sum(len(each.events) for each in made.recordings()) == 25


def test_continuous_recording_is_divided_at_key_frames_without_a_gap(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index, mode="continuous", file_s=10)
    made.play(packets(coded(frames=250)))
    made.camera.close()
    (recording,) = made.recordings()
    assert [file.frames for file in recording.files] == [100, 100, 50]
    numbers = [number for video in made.videos() for number in video.numbers]
    assert numbers == [number % 64 for number in range(250)]


def test_reconnection_continues_the_clip_in_a_new_file(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index, post_s=4)
    first = packets(coded())[:34]
    second = packets(coded(), connection=2, start_s=4.0, offset_ns=0)
    made.play([*first, *second], [3.0])
    made.wait(10)
    (recording,) = made.recordings()
    assert [file.name.rsplit("-", 1)[1] for file in recording.files] == ["1.mp4", "2.mp4"]
    before, after = made.videos()
    assert (before.numbers, after.numbers[0]) == (list(range(20, 34)), 0)


def test_new_frame_size_starts_a_new_file(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index, post_s=5)
    both = [*coded()[:40], *coded(width=192)]
    numbered = [Coded(frame.data, number, frame.key) for number, frame in enumerate(both)]
    made.play(packets(numbered), [3.0])
    made.wait(10)
    assert [video.width_px for video in made.videos()] == [128, 192]


@pytest.mark.parametrize("pace", [0.5, 3.0, 0.0])
def test_wrong_rate_of_the_presentation_times_is_replaced_by_that_of_arrival(
    tmp_path: Path, index: RecordingIndex, pace: float
) -> None:
    made = desk(tmp_path, index, mode="continuous")
    made.play(packets(coded(), pace=pace))
    made.camera.close()
    (video,) = made.videos()
    assert set(video.steps_s) == {1 / FPS}


def test_missing_presentation_times_are_replaced(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index, mode="continuous")
    made.play(packets(coded(), timed=False))
    made.camera.close()
    (video,) = made.videos()
    assert (len(video.numbers), set(video.steps_s)) == (60, {1 / FPS})


@pytest.mark.parametrize("jump_s", [3600, -3, -95_443])
def test_jump_of_the_presentation_times_leaves_no_gap(tmp_path: Path, index: RecordingIndex, jump_s: int) -> None:
    """Times jump if a camera sets its clock, or if the RTP timestamps wrap, which happens every 13 hours."""
    made = desk(tmp_path, index, mode="continuous")
    before = packets(coded())[:33]
    after = packets(coded(), offset_ns=(5 + jump_s) * NS)[33:]
    made.play([*before, *after])
    made.camera.close()
    (recording,) = made.recordings()
    (video,) = made.videos()
    assert (len(video.numbers), recording.files[0].lost) == (60, 0)
    assert video.times_s == sorted(set(video.times_s))
    assert abs(video.times_s[-1] - 5.9) < 0.5


def test_lost_packets_are_counted_and_left_out_until_the_next_key_frame(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index, mode="continuous")
    made.play([packet for packet in packets(coded()) if packet.header.seq not in (33, 34)])
    made.camera.close()
    (recording,) = made.recordings()
    (video,) = made.videos()
    assert recording.files[0].lost == 7  # two are lost, and five cannot be decoded
    assert video.numbers == [*range(33), *range(40, 60)]
    assert made.camera.lost == 7


def test_slow_disk_loses_the_packets_that_the_ring_cannot_keep(tmp_path: Path, index: RecordingIndex) -> None:
    """While the disk hangs, more packets arrive than the ring buffer can hold."""
    made = desk(tmp_path, index, mode="continuous")
    arriving = packets(coded(frames=400))
    made.play(arriving[:50])
    for packet in arriving[50:]:
        made.ring.add(packet)
    made.now_ns = arriving[-1].header.arrived_ns
    made.camera.write()
    made.camera.close()
    (recording,) = made.recordings()
    assert recording.files[0].lost + recording.files[0].frames == 400
    assert recording.files[0].lost > 100
    assert len(made.videos()[0].numbers) == recording.files[0].frames


def test_camera_without_packets_leaves_no_recording(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index)
    made.camera.trigger(Trigger(START_NS, EVENT))
    made.wait(100)
    assert made.recordings() == []


def test_full_disk_is_retried(tmp_path: Path, index: RecordingIndex) -> None:
    made = desk(tmp_path, index, mode="continuous")
    made.play(packets(coded())[:30])
    (tmp_path / "recordings").rename(tmp_path / "gone")  # as if the disk were no longer mounted
    (tmp_path / "recordings").write_text("not a folder")
    made.play(packets(coded(), connection=2, start_s=6.0)[:30])
    assert made.camera.failures > 0
    (tmp_path / "recordings").unlink()
    (tmp_path / "gone").rename(tmp_path / "recordings")
    made.play(packets(coded(), connection=3, start_s=12.0))
    made.camera.close()
    assert made.videos()[-1].numbers == list(range(60))
