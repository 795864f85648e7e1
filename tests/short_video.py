"""Short copies of videos, for tests that need only the beginning of a video."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import av


def save_beginning(video: Path, copy: Path, frames: int) -> None:
    """Save the first `frames` frames of a video without B-frames as `copy`."""
    with av.open(str(video)) as source, av.open(str(copy), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in islice(source.demux(video=0), frames):
            packet.stream = stream
            target.mux(packet)
