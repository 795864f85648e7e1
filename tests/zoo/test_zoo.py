"""Tests in which every library reads every camera of the zoo.

Each camera plays, and all its frames are counted, or `vision check` reports the code that docs/cameras-zoo.md lists.
`make camera-zoo` tests all cameras with all faults, and `./test` tests a part of them.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.zoo.visit import FAULT_AFTER_S, codes_while_running, config_of, in_parallel, visit
from vision.capture.gstreamer.source import available
from vision.capture.zoo.camera import Camera
from vision.capture.zoo.page import page
from vision.capture.zoo.persona import FAULTS, Fault, Persona, Reader
from vision.capture.zoo.zoo import PERSONAS, Zoo, missing, running_zoo
from vision.cli.check import check_cameras
from vision.config import CameraConfig

AT_ONCE = 40
MIB = 1 << 20
MOST_BYTES_PER_CAMERA = 32 * MIB
SAMPLE = ("plain", "udp", "b-frames", "h265", "mjpeg", "http-plain", "http-ts", "hls", "snapshot")
READERS: tuple[Reader, ...] = ("gstreamer", "ffmpeg")
TROUBLES: tuple[Fault, ...] = ("cut", "stall", "restart", "loss", "slow")


@pytest.fixture(scope="module")
def zoo() -> Iterator[Zoo]:
    with running_zoo() as running:
        yield running


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    reader: Reader = request.param
    if reader == "gstreamer":
        reason = available(CameraConfig(id="a", source="rtsp://127.0.0.1/a", reader="gstreamer"))
        if reason is not None:
            pytest.skip(reason)
    return reader


def served() -> list[Persona]:
    return [persona for persona in PERSONAS if missing(persona) is None]


def remedies(persona: Persona, reader: Reader) -> Iterator[tuple[Reader, Mapping[str, object] | None]]:
    """Yield `reader` and the additional keys with which it plays a camera. Yield nothing if no keys make it play."""
    if reader not in persona.readers:
        return
    verdict = persona.verdicts.get(reader)
    if verdict is None:
        yield reader, None
    elif verdict.remedy is not None and "reader" not in verdict.remedy:  # the other reader is visited as well
        yield reader, verdict.remedy


def assert_plays(zoo: Zoo, personas: Sequence[Persona], reader: Reader, fault: Fault) -> None:
    visits = in_parallel(
        [
            partial(visit, zoo, persona, chosen, fault, keys)
            for persona in personas
            for chosen, keys in remedies(persona, reader)
        ],
        AT_ONCE,
    )
    assert visits
    wrong = [f"{each}: {'; '.join(each.faults)}" for each in visits if each.faults]
    assert not wrong, "\n".join(wrong)


@contextmanager
def nothing_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that the visits log no traceback, use little memory, and leave no thread behind."""
    gc.collect()
    threads, before_bytes = own_threads(), memory_bytes()
    peak_bytes, ended = [before_bytes], threading.Event()

    def sample() -> None:
        while not ended.wait(0.2):
            peak_bytes.append(memory_bytes())

    sampler = threading.Thread(target=sample, name="sampler")
    sampler.start()
    try:
        with caplog.at_level(logging.ERROR):
            yield
    finally:
        ended.set()
        sampler.join()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (max(peak_bytes) - before_bytes) / AT_ONCE < MOST_BYTES_PER_CAMERA
    deadline_s = time.monotonic() + 60
    while len(own_threads()) > len(threads) + 2 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert len(own_threads()) <= len(threads) + 2, own_threads()  # GLib keeps idle threads with their last name


def own_threads() -> list[str]:
    """Return the names of this process's threads, except the idle threads of GLib's pools, which end later."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not name.startswith(("pool-", "gmain", "gdbus", "dconf")):
            names.append(name)
    return sorted(names)


def memory_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


# --- a part of the zoo ------------------------------------------------------------------------------------------------


def test_page_is_up_to_date() -> None:
    """If this test fails, `python -m vision.capture.zoo.page > docs/cameras-zoo.md` updates the page."""
    assert (ROOT / "docs" / "cameras-zoo.md").read_text(encoding="utf-8") == page()


def test_every_camera_plays(zoo: Zoo, reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    with nothing_left(caplog):
        assert_plays(zoo, served(), reader, "none")


@contextmanager
def served_cameras(zoo: Zoo, personas: Sequence[Persona], reader: Reader) -> Iterator[list[CameraConfig]]:
    """Yield the configurations of new cameras, which the zoo serves until the end of the `with` block."""
    cameras = [Camera(persona, fault_after_s=FAULT_AFTER_S, repeats=False) for persona in personas]
    zoo.start(cameras)
    yield [config_of(camera, reader) for camera in cameras]
    for camera in cameras:
        zoo.stop_camera(camera)


def test_refusals_have_the_listed_code_and_a_hint(zoo: Zoo, reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    personas = [persona for persona in served() if reader in persona.verdicts]
    with (
        nothing_left(caplog),
        served_cameras(zoo, personas, reader) as checked,
        served_cameras(zoo, personas, reader) as read,
        ThreadPoolExecutor(1) as pool,
    ):
        # Both at the same time, because each waits for the cameras that do not answer.
        codes = pool.submit(codes_while_running, read)
        checks = check_cameras(checked, threading.Event())
        running = codes.result()
    found = {check.camera: (check.code, bool(check.hint)) for check in checks}
    assert found == {f"{persona.name}_{reader}": (persona.verdicts[reader].code, True) for persona in personas}
    assert running == {name: code for name, (code, _) in found.items()}


@pytest.mark.parametrize("fault", TROUBLES)
def test_sample_survives_the_fault(zoo: Zoo, reader: Reader, fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    with nothing_left(caplog):
        assert_plays(zoo, [persona for persona in served() if persona.name in SAMPLE], reader, fault)


# --- the whole zoo ----------------------------------------------------------------------------------------------------


@pytest.mark.zoo
@pytest.mark.parametrize("fault", FAULTS)
def test_every_camera_survives_the_fault(
    zoo: Zoo, reader: Reader, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    with nothing_left(caplog):
        assert_plays(zoo, served(), reader, fault)
