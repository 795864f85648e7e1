#!/usr/bin/python3
"""Read ONVIF metadata with GStreamer, and print the documents and their times as lines of JSON.

    gstreamer_client.py URL USER PASSWORD TRANSPORT COUNT

The system's Python, which has ``gi``, runs this program. A line contains the `document` and its time `utc_ns`. The time
is computed from the sender reports of the server. Documents before the first sender report have no time, and do not
count.
"""

from __future__ import annotations

import json
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

NTP_EPOCH_S = 2_208_988_800
HEADER_BYTES = 12


def main() -> None:
    """Print `COUNT` documents that have a time."""
    url, user, password, transport, count = sys.argv[1:]
    Gst.init(None)
    source = f"rtspsrc location={url} user-id={user} user-pw={password} protocols={transport} latency=0"
    pipeline = Gst.parse_launch(f"{source} add-reference-timestamp-meta=true ! appsink name=sink sync=false")
    sink = pipeline.get_by_name("sink")
    pipeline.set_state(Gst.State.PLAYING)
    printed, parts = 0, b""
    while printed < int(count):
        sample = sink.emit("try-pull-sample", 30 * Gst.SECOND)
        if sample is None:
            error = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
            sys.exit(error.parse_error()[1] if error else "no packet for 30 s")
        buffer = sample.get_buffer()
        packet = buffer.extract_dup(0, buffer.get_size())
        parts += packet[HEADER_BYTES:]
        if not packet[1] & 0x80:  # the marker ends a document
            continue
        reference = buffer.get_reference_timestamp_meta(None)
        if reference is not None:
            utc_ns = reference.timestamp - NTP_EPOCH_S * 1_000_000_000
            print(json.dumps({"document": parts.decode(), "utc_ns": utc_ns}), flush=True)
            printed += 1
        parts = b""
    pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    main()
