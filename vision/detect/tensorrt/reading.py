"""Choice of how a GPU that shares its memory with the CPU reads frames: in place, or after a copy.

The letterbox kernel reads a pixel up to four times. On some Jetsons, the cache of the GPU does not contain page-locked
memory, so a copy to GPU memory can be faster. The faster way depends on the Jetson module, so both ways are measured.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Final

import numpy as np

from vision.config import InputSpec
from vision.detect.tensorrt.frames import PIXEL_FORMATS
from vision.detect.tensorrt.kernels import FrameLayout, describe_frame
from vision.detect.tensorrt.slot import LetterboxKernel
from vision.gpu.cuda import Device, Stream
from vision.gpu.memory import DeviceBuffer, page_locked_frame_buffer, queue_to_device

_log = logging.getLogger(__name__)

_HEIGHT_PX, _WIDTH_PX = 1080, 1920
_ROUNDS: Final = 10
_MARGIN: Final = 0.95  # a copy needs additional memory, so it must be clearly faster


def reads_in_place(
    device: Device, kernel: LetterboxKernel, spec: InputSpec, tensor_bytes: int, clock: Callable[[], int]
) -> bool:
    """Return True if the letterbox kernel should read page-locked frames in place, False if a copy is better.

    A GPU with its own memory always needs a copy. For other GPUs, measure both ways with a frame of 1920x1080 that the
    CPU has just written, and compare the shortest times. Because a copy needs additional memory, the result is False
    only if the copy is clearly faster.

    Args:
        tensor_bytes: size of the network's input for one frame, in bytes.
        clock: function that returns the time in ns.

    Raises:
        DeviceError: the GPU fails or lacks memory.
    """
    if not device.integrated:
        return False
    with contextlib.ExitStack() as resources:
        stream = resources.enter_context(Stream())
        frame = page_locked_frame_buffer(_HEIGHT_PX, _WIDTH_PX, PIXEL_FORMATS[0], in_place=True)
        pixels = frame.require_host()
        copy = resources.enter_context(DeviceBuffer(pixels.nbytes, "a frame"))
        tensor = resources.enter_context(DeviceBuffer(tensor_bytes, "the network's input"))
        counts = resources.enter_context(DeviceBuffer(4, "candidate counts"))
        layout = FrameLayout(_HEIGHT_PX, _WIDTH_PX, PIXEL_FORMATS[0])
        times: dict[bool, list[int]] = {True: [], False: []}
        launches = {}
        for in_place, address in ((True, frame.device_address), (False, copy.address)):
            row = np.frombuffer(describe_frame(spec, layout, address), np.uint8)
            described = resources.enter_context(DeviceBuffer(row.nbytes, "the description of a frame"))
            described.write(row)
            launches[in_place] = kernel.bind(1, described.address, tensor.address, counts.address)
        for number in range(_ROUNDS):
            for in_place, launch in launches.items():
                pixels.fill(number)
                began_ns = clock()
                if not in_place:
                    queue_to_device(copy.address, pixels.ctypes.data, pixels.nbytes, stream)
                launch.enqueue(stream)
                stream.synchronize()
                times[in_place].append(clock() - began_ns)
    in_place_ns, copied_ns = min(times[True]), min(times[False])
    chosen = copied_ns >= _MARGIN * in_place_ns
    _log.info(
        "%s shares memory with the CPU: scaling a frame takes %.3f ms in place, and %.3f ms with a copy; frames are %s",
        device.name,
        in_place_ns / 1e6,
        copied_ns / 1e6,
        "read in place" if chosen else "copied",
    )
    return chosen
