from __future__ import annotations

import struct
from datetime import datetime, timezone

import pytest

from vision.capture.clock import LATE_FOR_NS, NTP_TO_UNIX_S, CaptureClock, utc_minus_running_time

S = 1_000_000_000
MS = 1_000_000
UTC_MINUS_MONOTONIC = 1_700_000_000 * S


class Machine:
    """Two manual clocks of one machine, and a `CaptureClock` that reads them."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_ns = 1000 * S
        self.caplog = caplog
        self.stamps = CaptureClock(
            "gate", S // 2, clock=lambda: self.now_ns, utc=lambda: self.now_ns + UTC_MINUS_MONOTONIC
        )

    @property
    def warnings(self) -> list[str]:
        return self.caplog.messages

    def frame(self, delay_ns: int | None, *, decoding_ns: int = 0) -> tuple[int, int, str]:
        """Stamp a frame that arrives at the current time, and whose age is `delay_ns` according to the camera's clock.

        Return the age of the frame on both clocks.
        """
        arrived_ns = self.now_ns
        camera_utc_ns = None if delay_ns is None else arrived_ns + UTC_MINUS_MONOTONIC - delay_ns
        self.now_ns += decoding_ns
        stamp = self.stamps.stamp(arrived_ns, camera_utc_ns)
        ages = (
            self.now_ns - stamp.captured_ns,
            self.now_ns + UTC_MINUS_MONOTONIC - stamp.captured_utc_ns,
            str(stamp.clock),
        )
        self.now_ns += 100 * MS
        return ages


@pytest.fixture
def machine(caplog: pytest.LogCaptureFixture) -> Machine:
    return Machine(caplog)


@pytest.mark.parametrize(
    ("delay_ns", "age_ns", "clock", "warned"),
    [
        (None, 0, "arrival", False),  # no sender report yet
        (0, 0, "rtcp", False),
        (120 * MS, 120 * MS, "rtcp", False),
        (500 * MS, 500 * MS, "rtcp", False),
        (501 * MS, 0, "arrival", True),  # such a delay in the first frame means a wrong clock
        (-300 * MS, 0, "rtcp", False),  # the clock is slightly ahead, but a time is never in the future
        (-501 * MS, 0, "arrival", True),
        (UTC_MINUS_MONOTONIC, 0, "arrival", True),  # 1970
        (-86_400 * S, 0, "arrival", True),  # tomorrow
    ],
)
def test_first_frame_decides_if_the_camera_clock_is_trusted(
    delay_ns: int | None, age_ns: int, clock: str, warned: bool, machine: Machine
) -> None:
    assert machine.frame(delay_ns) == (age_ns, age_ns, clock)
    assert bool(machine.warnings) == warned


@pytest.mark.parametrize(("delay_ns", "age_ns", "clock"), [(100 * MS, 130 * MS, "rtcp"), (None, 30 * MS, "arrival")])
def test_decoding_time_is_part_of_the_age(machine: Machine, delay_ns: int | None, age_ns: int, clock: str) -> None:
    assert machine.frame(delay_ns, decoding_ns=30 * MS) == (age_ns, age_ns, clock)


def test_late_frames_of_a_trusted_clock_have_their_age(machine: Machine) -> None:
    assert machine.frame(50 * MS)[2] == "rtcp"
    assert machine.frame(3 * S) == (150 * MS - 1, 150 * MS - 1, "rtcp")  # not before the previous frame
    machine.now_ns += 10 * S
    assert machine.frame(3 * S) == (3 * S, 3 * S, "rtcp")
    assert machine.warnings == []


@pytest.mark.parametrize("delay_ns", [-501 * MS, 3601 * S])
def test_clock_that_jumps_is_no_longer_trusted(delay_ns: int, machine: Machine) -> None:
    machine.frame(50 * MS)
    assert machine.frame(delay_ns) == (0, 0, "arrival")
    assert len(machine.warnings) == 1


def test_clock_set_back_by_seconds_is_distrusted_after_30_s(machine: Machine) -> None:
    machine.frame(50 * MS)
    clocks = [machine.frame(5 * S)[2] for _ in range(2 * LATE_FOR_NS // (100 * MS))]
    late = clocks.index("arrival") * 100 * MS
    assert LATE_FOR_NS <= late <= LATE_FOR_NS + S
    assert set(clocks[clocks.index("arrival") :]) == {"arrival"}
    assert len(machine.warnings) == 1


def test_late_periods_are_not_added_up(machine: Machine) -> None:
    for _ in range(3):
        machine.frame(50 * MS)
        machine.now_ns += LATE_FOR_NS // 2
        assert machine.frame(5 * S)[2] == "rtcp"
        machine.now_ns += LATE_FOR_NS // 2 + 10 * S
        machine.frame(50 * MS)
    assert machine.warnings == []


def test_corrected_clock_is_trusted_again_with_one_warning(machine: Machine) -> None:
    for _ in range(3):
        assert machine.frame(UTC_MINUS_MONOTONIC)[2] == "arrival"
        assert machine.frame(50 * MS)[2] == "rtcp"
    (warning,) = machine.warnings
    assert "1970-01-01 00:16:40 UTC" in warning


def test_capture_times_always_increase(machine: Machine) -> None:
    last_ns = 0
    for delay_ns in [None, None, 300 * MS, 250 * MS, None, 450 * MS, 449 * MS, None]:
        stamp = machine.stamps.stamp(
            machine.now_ns, None if delay_ns is None else machine.now_ns + UTC_MINUS_MONOTONIC - delay_ns
        )
        assert last_ns < stamp.captured_ns <= machine.now_ns
        assert stamp.captured_utc_ns - stamp.captured_ns == UTC_MINUS_MONOTONIC
        last_ns = stamp.captured_ns
        machine.now_ns += 40 * MS


def test_arrival_in_the_future_is_set_to_now(machine: Machine) -> None:
    assert machine.stamps.stamp(machine.now_ns + S, None).captured_ns == machine.now_ns


def report(seconds: int, fraction: int, kind: int = 200) -> bytes:
    """Return an RTCP sender report (RFC 3550, section 6.4.1)."""
    return struct.pack("!BBHIIIIII", 0x80, kind, 6, 0xDEADBEEF, seconds, fraction, 12345, 10, 1000)


def test_sender_report_gives_utc() -> None:
    moment = datetime(2024, 2, 29, 12, 0, tzinfo=timezone.utc)
    ntp_s = int(moment.timestamp()) + NTP_TO_UNIX_S
    offset_ns = utc_minus_running_time(
        report(ntp_s, 1 << 31), rtp_time=90_000 * 7, base_rtp_time=90_000 * 3, base_running_ns=S, clock_rate_hz=90_000
    )
    # The report is of 4 s after a frame that was at 1 s: it was half a second past noon at 5 s.
    assert offset_ns == int(moment.timestamp()) * S + S // 2 - 5 * S


@pytest.mark.parametrize(
    "packet",
    [report(0, 0), report(1, 0, kind=201), report(1, 0)[:19], b""],
    ids=["no clock", "receiver report", "cut off", "empty"],
)
def test_other_packets_give_no_utc(packet: bytes) -> None:
    assert utc_minus_running_time(packet, rtp_time=2, base_rtp_time=1, base_running_ns=0, clock_rate_hz=90_000) is None


def test_clock_rate_of_zero_gives_no_utc() -> None:
    assert utc_minus_running_time(report(1, 0), rtp_time=2, base_rtp_time=1, base_running_ns=0, clock_rate_hz=0) is None
