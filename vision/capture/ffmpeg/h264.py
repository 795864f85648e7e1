"""Detection of missing frames in an H.264 stream, by the numbers that the frames contain.

FFmpeg does not detect a frame that is missing entirely, for example because its only UDP packet was lost. All later
frames, up to the next key frame, are then decoded from the wrong reference frame.

H.264 numbers the reference frames (`frame_num`, section 7.4.3), so this module detects a missing reference frame unless
the stream allows gaps. Other missing frames have no effect on later frames. Only the first bytes of a frame are read.
Section numbers are those of ITU-T H.264.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vision.capture.reordering import Bits, skip_scaling_lists

_HEAD_BYTES: Final = 4096  # enough for parameter sets, messages of the encoder, and the start of the first slice
_SLICE, _KEY_SLICE, _PARAMETERS = 1, 5, 7  # nal_unit_type, table 7-1
_PROFILES_WITH_CHROMA: Final = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_START_CODE: Final = re.compile(b"\x00\x00\x01")


@dataclass(frozen=True, slots=True)
class _Parameters:
    """The fields of a sequence parameter set that are needed to read frame numbers."""

    number_bits: int
    separate_planes: bool
    gaps_allowed: bool


class FrameGapFinder:
    """Finder of gaps between the frames of one stream. The frames must be passed in decoding order."""

    def __init__(self, parameter_sets: bytes | None) -> None:
        """Create the finder. `parameter_sets` is the Annex B data before the first frame, or None if there is none."""
        self._parameters: _Parameters | None = None
        self._last: int | None = None  # number of the last reference frame
        self.before(parameter_sets or b"")

    def restart(self) -> None:
        """Allow a gap before the next frame, because frames were skipped on purpose."""
        self._last = None

    def before(self, frame: bytes | memoryview) -> bool:
        """Return True if reference frames are known to be missing between the previous frame and `frame`."""
        head = bytes(frame[:_HEAD_BYTES])
        for start in _START_CODE.finditer(head):
            unit = head[start.end() :]
            kind = unit[0] & 31 if unit else 0
            try:
                if kind == _PARAMETERS:
                    self._parameters = _parameters(unit)
                elif kind == _KEY_SLICE:
                    self._last = 0
                    return False
                elif kind == _SLICE:
                    return self._follow(unit)
            except IndexError:  # the data is truncated; the decoder reports it
                return False
        return False

    def _follow(self, unit: bytes) -> bool:
        parameters = self._parameters
        if parameters is None:
            return False
        number = _frame_number(unit, parameters)
        last = self._last
        following = None if last is None else (last + 1) % (1 << parameters.number_bits)
        if unit[0] >> 5 & 3:  # nal_ref_idc
            self._last = number
        return last is not None and number not in (last, following) and not parameters.gaps_allowed


def _parameters(unit: bytes) -> _Parameters:
    """Return the fields of a sequence parameter set (section 7.3.2.1.1)."""
    bits = Bits(unit[:_HEAD_BYTES])
    profile = bits.number(8)
    bits.number(16)  # constraints, level
    bits.golomb()  # seq_parameter_set_id
    separate = False
    if profile in _PROFILES_WITH_CHROMA:
        chroma = bits.golomb()
        separate = chroma == 3 and bool(bits.number(1))
        bits.golomb()  # bit depths
        bits.golomb()
        bits.number(1)
        if bits.number(1):
            skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    number_bits = bits.golomb() + 4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.number(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()  # max_num_ref_frames
    return _Parameters(number_bits, separate, gaps_allowed=bool(bits.number(1)))


def _frame_number(unit: bytes, parameters: _Parameters) -> int:
    """Return `frame_num` from the header of a slice (section 7.3.3)."""
    bits = Bits(unit[:64])
    for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
        bits.golomb()
    if parameters.separate_planes:
        bits.number(2)
    return bits.number(parameters.number_bits)
