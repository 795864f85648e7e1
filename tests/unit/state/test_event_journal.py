"""The journal of events: nothing written is lost, nothing damaged is believed, no number is given twice."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.messages.processes import python, wait_until
from vision.errors import Closed, ConfigError
from vision.state.event_journal import SKIPPED, EventJournal


def opened(folder: Path, **options: Any) -> closing[EventJournal]:
    given: dict[str, Any] = {"boot": "boot-1", "keep": 1000}
    return closing(EventJournal(folder, **(given | options)))


def payload(number: int) -> bytes:
    return b'{"event":%d}' % number


def fill(journal: EventJournal, count: int) -> None:
    for _ in range(count):
        assert journal.append([payload(journal.newest + 1)])


def numbers(journal: EventJournal, since: int = 0) -> list[int]:
    """Everything since a number, page by page; each event is the one that its number says."""
    found: list[int] = []
    while True:
        page = journal.read(since, most=7)
        assert list(page.payloads) == [payload(number) for number in page.numbers]
        found += page.numbers
        if not page.more:
            return found
        since = found[-1]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.events"))


def test_what_was_appended_is_read_in_order(tmp_path: Path) -> None:
    with opened(tmp_path / "made" / "here") as journal:
        assert journal.read(0).newest == 0
        assert journal.append([payload(1), payload(2)])
        assert journal.append([payload(3)])
        assert journal.newest == 3
        assert numbers(journal) == [1, 2, 3]
        assert numbers(journal, since=2) == [3]
        assert numbers(journal, since=3) == []
        assert journal.counters() == {"journal.kept": 3, "journal.lost": 0}


def test_pages_are_limited_by_number_and_size(tmp_path: Path) -> None:
    with opened(tmp_path, keep=40) as journal:
        fill(journal, 40)
        page = journal.read(10, most=3)
        assert (page.numbers, page.oldest, page.newest, page.more) == ((11, 12, 13), 1, 40, True)
        assert len(journal.read(0, most_bytes=30).numbers) == 2
        assert journal.read(5, most_bytes=1).numbers == (6,)  # one at least, however large
        assert not journal.read(37, most=3).more


@pytest.mark.parametrize("sizes", [{}, {"most_bytes": 5000}])
def test_the_oldest_go_and_at_least_the_newest_stay(tmp_path: Path, sizes: dict[str, int]) -> None:
    with opened(tmp_path, keep=80, **sizes) as journal:
        fill(journal, 1000)
        kept = numbers(journal)
        assert kept == list(range(kept[0], 1001))
        assert journal.read(0).oldest == kept[0]
        assert sum(path.stat().st_size for path in segments(tmp_path)) < 5000 * 1.3
        if not sizes:
            assert 80 <= len(kept) <= 80 * 9 / 8 + 1


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    names = set()
    for run in range(3):
        with opened(tmp_path) as journal:
            assert journal.newest == 10 * run
            fill(journal, 10)
            names.add(journal.journal)
            assert numbers(journal) == list(range(1, 10 * run + 11))
            assert journal.notice is None
    assert len(names) == 1


def test_runs_without_events_leave_no_files_behind(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 5)
        name = journal.journal
    for _ in range(5):
        with opened(tmp_path) as journal:
            assert (journal.journal, journal.newest) == (name, 5)
    assert len(segments(tmp_path)) == 2


def test_a_smaller_limit_holds_from_the_start(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 1000)
    with opened(tmp_path, keep=100) as journal:
        kept = numbers(journal)
        assert kept[-1] == 1000
        assert len(kept) < 300


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(ConfigError, match="in use by another process"):
        opened(tmp_path)
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep events in"):
        opened(tmp_path / name)


def test_after_its_end_nothing_is_appended(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.append([payload(1)])
    journal.close()
    with pytest.raises(Closed):
        journal.append([payload(2)])


# --- crashes ----------------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from vision.state.event_journal import EventJournal
journal = EventJournal(Path(sys.argv[1]), boot=sys.argv[2], keep=100000)
print(journal.newest, flush=True)
while True:
    assert journal.append([b'{"event":%d}' % (journal.newest + 1)])
    os.write(1, b"%d\\n" % journal.newest)
"""


def test_what_a_killed_process_wrote_is_there(tmp_path: Path) -> None:
    newest = 0
    for _ in range(3):
        with python("-c", WRITER, tmp_path / "journal", "boot-1") as writer:
            assert int(writer.line()) == newest  # the machine runs on: no number is left out
            writer.wait_line(lambda line, least=newest + 200: int(line) >= least)  # type: ignore[misc]
            writer.send(signal.SIGKILL)
            writer.wait()
            said = [int(line) for line in writer.pending() if line.isdigit()]
        with opened(tmp_path / "journal", keep=100000) as journal:
            newest = journal.newest
            assert newest >= max([0, *said[:-1]])
            assert numbers(journal) == list(range(1, newest + 1))


@pytest.mark.parametrize("boot", ["boot-2", ""])
def test_after_a_power_cut_no_number_is_given_twice(tmp_path: Path, boot: str) -> None:
    with python("-c", WRITER, tmp_path / "journal", "boot-1" if boot else "") as writer:
        writer.wait_line(lambda line: int(line) >= 50)
    (path,) = segments(tmp_path / "journal")
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:41]) + whole[41][:10])  # the disk has a header, 40 events, and a piece
    with opened(tmp_path / "journal", boot=boot) as journal:
        assert journal.newest == 40 + SKIPPED
        assert journal.append([payload(journal.newest + 1)])
        assert numbers(journal) == [*range(1, 41), 41 + SKIPPED]


def test_the_disk_is_forced_soon_and_never_further_behind_than_the_numbers_left_out(tmp_path: Path) -> None:
    behind, most_behind = 0, 0

    def force(_fd: int) -> None:
        nonlocal behind
        behind = 0

    with opened(tmp_path, keep=100_000, sync_s=3600, force=force) as journal:
        for _ in range(3 * SKIPPED // 7):
            behind += 7
            journal.append([payload(0)] * 7)
            most_behind = max(most_behind, behind)
        assert SKIPPED - 7 <= most_behind <= SKIPPED
    forced = threading.Event()
    with opened(tmp_path, sync_s=0.01, force=lambda _fd: forced.set()) as journal:
        assert not forced.is_set()
        journal.append([payload(0)])
        assert forced.wait(20)


def test_a_disk_that_cannot_be_forced_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path, sync_s=0.01, force=fail) as journal:
        journal.append([payload(1)])
        wait_until(lambda: "cannot force events to disk" in caplog.text, "it was said")
        assert numbers(journal) == [1]


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


def cut_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[3][:-4], *lines[4:]]))


def other_header(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(2000).replace(b"\0", b"x") + b"\n" * 3 + b"x")


def twice(path: Path) -> None:
    path.with_name("000000000999.events").write_bytes(path.read_bytes())


@pytest.mark.parametrize("damage", [flip, cut_line, other_header, garbage, twice])
def test_damage_is_set_aside_and_a_new_journal_begun(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 300)
        before = journal.journal
    damage(segments(tmp_path)[0])
    kept = {path.name: path.read_bytes() for path in segments(tmp_path)}
    with opened(tmp_path, now=lambda: 0.0) as journal:
        assert journal.journal != before
        assert journal.newest == 0
        assert numbers(journal) == []
        assert journal.notice is not None
        assert "set aside in damaged-19700101T000000Z, a new journal is begun" in journal.notice
        assert journal.notice in caplog.text
        fill(journal, 3)
    aside = tmp_path / "damaged-19700101T000000Z"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == kept
    with opened(tmp_path) as journal:
        assert (numbers(journal), journal.notice) == ([1, 2, 3], None)


def test_segments_of_two_journals_are_damage(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with opened(tmp_path / name) as journal:
            fill(journal, 3)
    (tmp_path / "b" / "000000000001.events").replace(tmp_path / "a" / "000000000004.events")
    with opened(tmp_path / "a") as journal:
        assert journal.notice is not None
        assert "are of several journals" in journal.notice


def test_only_the_newest_damage_is_kept(tmp_path: Path) -> None:
    for at in range(3):
        with opened(tmp_path) as journal:
            fill(journal, 30)
        flip(segments(tmp_path)[0])
        opened(tmp_path, now=lambda at=at: float(at)).thing.close()  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.glob("damaged-*")] == ["damaged-19700101T000002Z"]


@pytest.mark.parametrize("tail", [b"\0" * 100, b"deadbeef 4 {", b"deadbeef 4 {}\n", b"x\n\0\0"])
def test_what_a_power_cut_leaves_at_the_end_is_left_out(tmp_path: Path, tail: bytes) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 3)
    with segments(tmp_path)[0].open("ab") as file:
        file.write(tail)
    with opened(tmp_path) as journal:
        assert journal.notice is None
        assert numbers(journal) == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"12345678 0 {"])
def test_a_segment_that_was_hardly_begun_is_nothing(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 3)
    (tmp_path / "000000000004.events").write_bytes(content)
    with opened(tmp_path) as journal:
        assert (journal.notice, numbers(journal)) == (None, [1, 2, 3])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"newest": "x"}'])
def test_without_its_session_it_counts_as_a_power_cut(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 3)
    (tmp_path / "session.json").write_bytes(content)
    with opened(tmp_path) as journal:
        assert journal.newest == 3 + SKIPPED


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """As a full disk: files cannot grow beyond this."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_said_once_and_used_again_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 10)
        with file_size_limit(segments(tmp_path)[0].stat().st_size + 10):
            assert [journal.append([payload(11)]) for _ in range(5)] == [False] * 5
            assert journal.newest == 10  # no number is wasted on what is not kept
        assert caplog.text.count("cannot keep events in") == 1
        assert journal.counters() == {"journal.kept": 10, "journal.lost": 5}
        caplog.set_level("INFO")
        fill(journal, 2)
        assert caplog.text.count("events are kept in") == 1
        assert numbers(journal) == list(range(1, 13))
    with opened(tmp_path) as journal:
        assert numbers(journal) == list(range(1, 13))


def test_a_full_disk_between_segments_leaves_no_files(tmp_path: Path) -> None:
    with opened(tmp_path, keep=16) as journal:
        fill(journal, 2)
        with file_size_limit(5):
            assert not any(journal.append([payload(3)]) for _ in range(20))
        assert len(segments(tmp_path)) == 1
        fill(journal, 1)
        assert numbers(journal) == [1, 2, 3]


# --- several threads --------------------------------------------------------------------------------------------------


def test_readers_see_whole_events_while_others_are_written_and_deleted(tmp_path: Path) -> None:
    stop = threading.Event()
    faults: list[str] = []
    with opened(tmp_path, keep=64) as journal:

        def read() -> None:
            since = 0
            while not stop.is_set():
                page = journal.read(since, most=10)
                if list(page.payloads) != [payload(number) for number in page.numbers]:
                    faults.append(str(page))
                if page.numbers and page.numbers[0] <= since:
                    faults.append(f"{page.numbers} after {since}")
                since = page.numbers[-1] if page.numbers else since

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        fill(journal, 3000)
        stop.set()
        for reader in readers:
            reader.join()
    assert faults == []


def test_it_needs_no_other_library() -> None:
    code = (
        "import sys; import vision.state.event_journal; "
        "sys.exit(bool({'zmq', 'msgspec', 'cv2', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
