"""Tests that the archive returns exactly the published frames, tracks, events, and counts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from tests.archive_simulation import START_UTC_NS, Recorder, Site, detections_of, live_results, record, site
from vision.config.rules import RuleConfig
from vision.messaging import codec
from vision.messaging.schema import AnyMessage
from vision.outputs.archive import compaction
from vision.outputs.archive.compaction import compact, write_parquet
from vision.outputs.archive.reader import Archive
from vision.outputs.archive.tables import COLUMNS, DAY_US, HOUR_US, SCHEMAS, archive_files
from vision.outputs.archive.writer import ArchiveWriter
from vision.types import Counts, Detections, Event, FrameMeta, Result, Timing, Tracks

FROM_US, UNTIL_US = 0, 1 << 61
START_US = START_UTC_NS // 1000
RULES = (RuleConfig(name="any", when="line_crossed line-1", cooldown="5s"),)


@pytest.fixture(scope="module")
def waiting() -> Site:
    return site("gate", "waiting", 1)


def first_results(one: Site, folder: Path, number: int) -> list[Result]:
    """Store the first `number` results of a camera. Return these results."""
    recorder, results = Recorder(folder), list(live_results(one, islice(detections_of(one), number)))
    for result in results:
        recorder.add(result)
    recorder.close()
    return results


def hidden_px(tracks: Tracks) -> list[float]:
    return [0.0] * len(tracks) if tracks.hidden_px is None else tracks.hidden_px.tolist()


def assert_equals(archive: Archive, results: list[Result]) -> None:
    """Check that `results` equal the frames in the archive: the events, and all values that the analytics reads."""
    archived = [each.result for each in archive.frames("gate", FROM_US, UNTIL_US)]
    assert len(archived) == len(results)
    for found, live in zip(archived, results, strict=True):
        a, b = found.meta, live.meta
        assert (a.camera_id, a.index, a.epoch, a.captured_ns) == (b.camera_id, b.index, b.epoch, b.captured_ns)
        assert (a.width_px, a.height_px, a.clock) == (b.width_px, b.height_px, b.clock)
        assert a.captured_utc_ns == b.captured_utc_ns // 1000 * 1000
        assert isinstance(found.objects, Tracks) and isinstance(live.objects, Tracks)
        for name in ("boxes_xyxy", "class_ids", "track_ids", "previous_xyxy"):
            values = getattr(found.objects, name), getattr(live.objects, name)
            np.testing.assert_array_equal(*values)
        np.testing.assert_array_equal(hidden_px(found.objects), hidden_px(live.objects))
        if found.objects.previous_xyxy is None:
            continue
        is_new = ~np.isnan(found.objects.previous_xyxy[:, 0])  # each new track has a score
        np.testing.assert_allclose(found.objects.scores[is_new], live.objects.scores[is_new], atol=0.00501)
    events = [each.event for each in archive.events("gate", FROM_US, UNTIL_US)]
    assert events == [event for result in results for event in result.events]


def test_live_rows_parts_and_days_contain_the_same(waiting: Site, tmp_path: Path) -> None:
    results: list[Result] = []
    record(tmp_path, waiting, watch=results.append)
    assert sum(len(result.events) for result in results) > 50
    archive = Archive(tmp_path)
    assert archive.cameras() == ["gate"]
    assert_equals(archive, results)
    counts = archive.counts("gate", FROM_US, UNTIL_US)
    limits = {"keep_days": 10, "max_mb": 100}

    compact(tmp_path, START_US + HOUR_US + compaction.LATE_US, **limits)
    parts = archive_files(tmp_path)
    assert {part.table for part in parts} == {"frames", "tracks", "events", "counts"}
    assert not any(part.is_final for part in parts)
    assert_equals(archive, results)

    compact(tmp_path, START_US + DAY_US + compaction.LATE_US, **limits)
    days = archive_files(tmp_path)
    assert len(days) == len(parts) and all(day.is_final for day in days)
    assert_equals(archive, results)
    assert archive.counts("gate", FROM_US, UNTIL_US) == counts
    assert archive.cameras() == ["gate"]

    compact(tmp_path, START_US + 30 * DAY_US, **limits)
    assert not archive_files(tmp_path)


@pytest.mark.parametrize("step", ["write_parquet", "_finish_moves", "_give_name"])
def test_crash_during_compaction_loses_and_duplicates_nothing(
    waiting: Site, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = first_results(waiting, tmp_path, 150)
    archive, limits, now_us = Archive(tmp_path), {"keep_days": 10, "max_mb": 100}, START_US + 2 * DAY_US
    for crash_at in range(1, 20):
        calls, real = 0, getattr(compaction, step)

        def crash(*arguments: object, real: object = real, crash_at: int = crash_at, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == crash_at:
                raise KeyboardInterrupt
            assert callable(real)
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(compaction, step, crash)
            try:
                compact(tmp_path, now_us, **limits)
            except KeyboardInterrupt:
                continue
        break
    compact(tmp_path, now_us, **limits)
    assert crash_at > 1
    assert all(file.is_final for file in archive_files(tmp_path))
    assert_equals(archive, results)


@pytest.mark.parametrize("days_later", [0, 2])
def test_rows_that_are_moved_while_frames_are_read_are_read_once(
    waiting: Site, tmp_path: Path, days_later: int
) -> None:
    """Read live rows of five hours. After the first hour, move the rows to files, and optionally merge the files."""
    recorder, results = Recorder(tmp_path), list[Result]()
    for number, result in enumerate(live_results(waiting, islice(detections_of(waiting), 250))):
        later_ns = number // 50 * HOUR_US * 1000
        meta = replace(result.meta, captured_utc_ns=result.meta.captured_utc_ns + later_ns)
        results.append(replace(result, meta=meta))
        recorder.add(results[-1])
    recorder.close()
    archive, now_us = Archive(tmp_path), START_US + 5 * HOUR_US + days_later * DAY_US + compaction.LATE_US
    names, frames = archive.class_names("gate", FROM_US, UNTIL_US), archive.frames("gate", FROM_US, UNTIL_US)
    found = [*islice(frames, 40)]
    compact(tmp_path, now_us, keep_days=10, max_mb=100)
    found += frames
    assert all(file.is_final for file in archive_files(tmp_path)) == (days_later > 0)
    assert [each.result.meta.captured_ns for each in found] == [each.meta.captured_ns for each in results]
    for each, live in zip(found, results, strict=True):
        assert isinstance(each.result.objects, Tracks) and isinstance(live.objects, Tracks)
        np.testing.assert_array_equal(each.result.objects.boxes_xyxy, live.objects.boxes_xyxy)
        np.testing.assert_array_equal(each.result.objects.track_ids, live.objects.track_ids)
    assert names == archive.class_names("gate", FROM_US, UNTIL_US) != {}


def test_uncommitted_rows_are_lost_in_a_crash_and_the_rest_stays(waiting: Site, tmp_path: Path) -> None:
    recorder, results = Recorder(tmp_path), list(live_results(waiting, islice(detections_of(waiting), 600)))
    for result in results:
        recorder.add(result)
    # The recorder commits every 500 frames, and is not closed.
    assert len(list(Archive(tmp_path).frames("gate", FROM_US, UNTIL_US))) == len(results) // 500 * 500


def test_full_disk_is_a_gap(waiting: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, is_full = Recorder(tmp_path), True
    monkeypatch.setattr(recorder._writer._disk, "is_low", lambda **_: is_full)
    results = list(live_results(waiting, islice(detections_of(waiting), 600)))
    for result in results[:500]:
        recorder.add(result)
    is_full = False
    for result in results[500:]:
        recorder.add(result)
    recorder.close()
    archive = Archive(tmp_path)
    assert [(gap.kind, gap.messages) for gap in archive.gaps("gate", FROM_US, UNTIL_US)] == [("disk", 500)]
    assert len(list(archive.frames("gate", FROM_US, UNTIL_US))) == 100


def test_late_parts_of_an_hour_are_read_in_their_order(waiting: Site, tmp_path: Path) -> None:
    results = list(live_results(waiting, islice(detections_of(waiting), 360)))
    for part in range(12):
        recorder = Recorder(tmp_path, instance=f"start-{part}")
        for result in results[30 * part : 30 * part + 30]:
            recorder.add(result)
        recorder.close()
        compact(tmp_path, START_US + HOUR_US + compaction.LATE_US, keep_days=10, max_mb=100)
    assert [file.part[1] for file in archive_files(tmp_path, "tracks")] == list(range(1, 13))
    assert_equals(Archive(tmp_path), results)
    compact(tmp_path, START_US + DAY_US + compaction.LATE_US, keep_days=10, max_mb=100)
    assert_equals(Archive(tmp_path), results)


def test_frames_are_in_the_order_of_publication_if_the_clock_was_set_back(waiting: Site, tmp_path: Path) -> None:
    recorder, results = Recorder(tmp_path), []
    shifts_us = (0, HOUR_US, 0, HOUR_US // 2, HOUR_US)  # the hours of the clock are then mixed
    for number, result in enumerate(live_results(waiting, islice(detections_of(waiting), 500))):
        shift_ns = 1000 * shifts_us[number // 100]
        meta = replace(result.meta, captured_utc_ns=result.meta.captured_utc_ns + shift_ns)
        results.append(replace(result, meta=meta))
        recorder.add(results[-1])
    recorder.close()
    assert any(result.events for result in results)
    assert_equals(Archive(tmp_path), results)
    for now_us in (2 * HOUR_US, DAY_US):
        compact(tmp_path, START_US + now_us + compaction.LATE_US, keep_days=10, max_mb=100)
        assert_equals(Archive(tmp_path), results)
    assert len(archive_files(tmp_path, "frames")) == 1


def messages(seqs: list[int], kind: str, instance: str) -> list[AnyMessage]:
    """Return messages of a camera with the sequence numbers `seqs`."""
    found: list[AnyMessage] = []
    for seq in seqs:
        numbering, topic = codec.Numbering("node", instance), f"{kind}/gate"
        numbering.continue_after(topic, seq - 1)
        header = numbering.header(topic)
        result = Result(FrameMeta("gate", seq, 0, 1, START_UTC_NS, 640, 480), Detections.empty(), Timing(1, 1, 1))
        if kind == "counts":
            found.append(codec.status(header, codec.counts("gate", Counts({}, {}, {}), 1, START_UTC_NS)))
        elif kind == "events":
            found.append(codec.event(header, Event("line_crossed", "door", "gate", 1, 1), result))
        else:
            found.append(codec.detections(header, result, (), 1))
    return found


@pytest.mark.parametrize("kind", ["detections", "events", "counts"])
def test_gap_of_a_restarted_process_contains_only_what_no_process_stored(kind: str, tmp_path: Path) -> None:
    for seqs, instance in (([3, 4, 5], "first"), ([6, 7], "first"), ([11], "first"), ([1], "second"), ([4], "second")):
        writer = ArchiveWriter(tmp_path)
        for message in messages(seqs, kind, instance):
            writer.add(message)
        writer.close()
    crashed = ArchiveWriter(tmp_path)
    crashed.add(messages([5], kind, "second")[0])  # not committed
    writer = ArchiveWriter(tmp_path)
    writer.add(messages([6], kind, "second")[0])
    writer.close()
    gaps = [(gap.kind, gap.messages) for gap in Archive(tmp_path).gaps("gate", FROM_US, UNTIL_US)]
    assert gaps == [(kind, 2), (kind, 3), (kind, 2), (kind, 1)]


def test_requested_events_leave_no_gap(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path, recovers_events=True)
    for message in messages([3, 9], "events", "first"):
        writer.add(message)
    writer.close()
    assert Archive(tmp_path).gaps("gate", FROM_US, UNTIL_US) == []


def test_live_database_is_readable_without_this_package(waiting: Site, tmp_path: Path) -> None:
    results = first_results(waiting, tmp_path, 300)
    with closing(sqlite3.connect(tmp_path / "live.sqlite")) as connection:
        (frames,) = connection.execute("SELECT count(*) FROM frames").fetchone()
        (objects,) = connection.execute("SELECT sum(objects) FROM frames").fetchone()
        (rows,) = connection.execute("SELECT count(*) FROM tracks").fetchone()
    assert frames == len(results) and objects == rows > 1000


def test_column_of_a_file_is_compressed_as_a_whole(tmp_path: Path) -> None:
    once = np.random.default_rng(1).integers(0, 256, 25_000, np.int32)
    sizes = []
    for number, values in enumerate((once, np.tile(once, 2))):
        schema = SCHEMAS["tracks"]
        columns = {name: pa.nulls(len(values), kind) for name, kind in COLUMNS["tracks"].items()}
        rows = pa.table({**columns, "x": values}, schema=schema)
        path = tmp_path / str(number) / "2026-11-29.parquet"
        write_parquet(path, "tracks", [rows], is_final=False)
        group = pq.read_metadata(path.with_suffix(".tmp")).row_group(0)
        sizes.append(group.column(schema.names.index("x")).total_compressed_size)
    assert sizes[0] > 24_000
    assert sizes[1] < 1.1 * sizes[0]  # the second half, in the same page, repeats the first
