"""Detection of streams whose frames are displayed in decoding order, such as the streams of most cameras.

A decoder holds back a frame if a frame that must be displayed earlier may still follow. If the frames of a stream are
displayed in decoding order, the decoder can output each frame immediately. The sequence parameter set (SPS) shows the
order of a stream. Section numbers are those of ITU-T H.264 and H.265.
"""

from __future__ import annotations

from typing import Final, Literal

_PROFILES_WITH_CHROMA: Final = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_BASELINE: Final = 66  # this profile has no B-frames (section A.2.1)
_EXTENDED_ASPECT: Final = 255


class Bits:
    """Reader of the bits of a NAL unit, without its header and its emulation prevention bytes (section 7.4.1)."""

    def __init__(self, unit: bytes, header_bytes: int = 1) -> None:
        self._bytes = unit[header_bytes:].replace(b"\x00\x00\x03", b"\x00\x00")
        self._at = 0

    def number(self, bits: int) -> int:
        """Read and return an unsigned number of `bits` bits. Raise `IndexError` at the end of the unit."""
        value = 0
        for _ in range(bits):
            value = value << 1 | self._bytes[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value

    def golomb(self) -> int:
        """Read and return an unsigned Exp-Golomb code, ue(v) in section 9.1 of H.264."""
        zeros = 0
        while not self.number(1):
            zeros += 1
        return (1 << zeros) - 1 + self.number(zeros)

    def signed_golomb(self) -> int:
        """Read and return a signed Exp-Golomb code, se(v) in section 9.1.1 of H.264."""
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def skip_scaling_lists(bits: Bits, count: int) -> None:
    """Skip `count` scaling lists of a sequence parameter set of H.264 (section 7.3.2.1.1.1)."""
    for at in range(count):
        if not bits.number(1):
            continue
        last = following = 8
        for _ in range(16 if at < 6 else 64):
            if following:
                following = (last + bits.signed_golomb()) % 256
            last = following or last


def keeps_order(codec: Literal["H264", "H265"], sequence_parameter_set: bytes) -> bool:
    """Return True only if the frames of a stream are known to be displayed in decoding order.

    `sequence_parameter_set` is a NAL unit without a start code.
    """
    try:
        return _h264_order(sequence_parameter_set) if codec == "H264" else _h265_order(sequence_parameter_set)
    except IndexError:  # the unit is truncated, or is not a parameter set
        return False


def _h264_order(unit: bytes) -> bool:
    """Return the result of `keeps_order` for an SPS of H.264 (section 7.3.2.1.1)."""
    if unit[0] & 31 != 7:
        return False
    bits = Bits(unit)
    profile = bits.number(8)
    bits.number(16)  # constraints, level
    bits.golomb()  # seq_parameter_set_id
    if profile in _PROFILES_WITH_CHROMA:
        chroma = bits.golomb()
        if chroma == 3:
            bits.number(1)
        bits.golomb()  # bit depths
        bits.golomb()
        bits.number(1)
        if bits.number(1):
            skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    bits.golomb()  # log2_max_frame_num_minus4
    order = bits.golomb()  # pic_order_cnt_type
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.number(1)
        bits.signed_golomb()
        bits.signed_golomb()
        for _ in range(bits.golomb()):
            bits.signed_golomb()
    if profile == _BASELINE or order == 2:  # with type 2, the two orders are the same (section 8.2.1.3)
        return True
    bits.golomb()  # max_num_ref_frames
    bits.number(1)
    bits.golomb()  # width, height
    bits.golomb()
    if not bits.number(1):  # frame_mbs_only_flag
        bits.number(1)
    bits.number(1)
    if bits.number(1):  # cropping
        for _ in range(4):
            bits.golomb()
    return bool(bits.number(1)) and _reordered_in_vui(bits) == 0


def _reordered_in_vui(bits: Bits) -> int | None:
    """Return max_num_reorder_frames of the video usability information of H.264 (section E.1.1), or None if missing."""
    if bits.number(1) and bits.number(8) == _EXTENDED_ASPECT:
        bits.number(32)
    if bits.number(1):  # overscan
        bits.number(1)
    if bits.number(1):  # video signal
        bits.number(4)
        if bits.number(1):
            bits.number(24)
    if bits.number(1):  # location of chroma samples
        bits.golomb()
        bits.golomb()
    if bits.number(1):  # timing
        bits.number(65)
    buffered = False
    for _ in range(2):  # of the NAL units and of the coded video
        if bits.number(1):
            buffered = True
            _skip_buffering(bits)
    if buffered:
        bits.number(1)
    bits.number(1)
    if not bits.number(1):  # bitstream_restriction_flag
        return None
    bits.number(1)
    for _ in range(4):
        bits.golomb()
    return bits.golomb()


def _skip_buffering(bits: Bits) -> None:
    """Skip the parameters of the hypothetical reference decoder (HRD) of H.264 (section E.1.2)."""
    count = bits.golomb() + 1
    bits.number(8)
    for _ in range(count):
        bits.golomb()
        bits.golomb()
        bits.number(1)
    bits.number(20)


def _h265_order(unit: bytes) -> bool:
    """Return the result of `keeps_order` for an SPS of H.265 (section 7.3.2.2)."""
    if unit[0] >> 1 & 63 != 33:
        return False
    bits = Bits(unit, header_bytes=2)
    bits.number(4)
    layers = bits.number(3)  # sps_max_sub_layers_minus1
    bits.number(1)
    bits.number(96)  # general profile, tier, and level
    present = [(bits.number(1), bits.number(1)) for _ in range(layers)]
    if layers:
        bits.number(2 * (8 - layers))
    for profile, level in present:
        bits.number(88 * profile + 8 * level)
    bits.golomb()  # sps_seq_parameter_set_id
    if bits.golomb() == 3:  # chroma_format_idc
        bits.number(1)
    bits.golomb()  # width, height
    bits.golomb()
    if bits.number(1):  # conformance window
        for _ in range(4):
            bits.golomb()
    for _ in range(3):  # bit depths, log2_max_pic_order_cnt_lsb_minus4
        bits.golomb()
    ordered = True
    for _ in range(layers + 1 if bits.number(1) else 1):
        bits.golomb()
        ordered = bits.golomb() == 0  # sps_max_num_reorder_pics, of the highest layer at the end
        bits.golomb()
    return ordered
