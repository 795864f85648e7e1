"""Functions that free the resources of a model on the GPU with a time limit, because a GPU can hang."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence

from vision.engine.memory import MemoryPool
from vision.errors import DeviceError
from vision.gpu.cuda import Device, Stream, use_device
from vision.gpu.memory import abandon

_log = logging.getLogger(__name__)


def close_quietly(pool: MemoryPool) -> None:
    """Close the pool. Log errors instead of raising them, so that they do not replace the error of a failed start."""
    try:
        pool.close()
    except DeviceError as error:
        _log.debug("%s", error)


def _drain(device: Device, streams: Sequence[Stream]) -> None:
    """Wait for all work on the streams. Log GPU errors instead of raising them, so that memory is still freed."""
    try:
        use_device(device)  # any thread can close the model
        for stream in streams:
            stream.synchronize()
    except DeviceError as error:
        _log.warning("closing a model after a GPU error: %s", error.args[0])


def release_in_time(
    device: Device, streams: Sequence[Stream], resources: contextlib.ExitStack, limit_s: float
) -> threading.Thread:
    """Wait for all work on the streams, then close `resources`, in a new thread. Return the thread.

    If the GPU hangs, the thread never ends, and is abandoned after `limit_s` seconds. In this case, `vision.cli.main`
    ends the process without waiting for the thread. If closing `resources` fails, raise its error.
    """
    failed: list[BaseException] = []

    def release() -> None:
        try:
            _drain(device, streams)
            resources.close()
        except BaseException as error:  # noqa: BLE001 - raised below, in the calling thread
            failed.append(error)

    thread = threading.Thread(target=release, name="gpu-release", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        abandon()
        _log.error("%s does not respond; its memory is freed when the process ends", device.name)
    elif failed:
        raise failed[0]
    return thread
