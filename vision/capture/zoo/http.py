"""HTTP server of a synthetic camera, which sends motion JPEG, snapshots, HLS, or containers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from vision.capture.zoo.clips import FRAMES, clip
from vision.capture.zoo.containers import TS_PACKET_BYTES, LiveMuxer, mp4_file
from vision.capture.zoo.persona import HttpStream
from vision.capture.zoo.playback import Host, Link, Playback, is_lost
from vision.capture.zoo.rtsp import Request, read_request

_MOVED: Final = "/moved"
_REASONS: Final = {200: "OK", 302: "Found", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 503: "Busy"}
_MP4_FRAMES: Final = 60
_SEGMENTS_LISTED: Final = 5
_PAGE: Final = b"<html><head><title>Camera</title></head><body><form>Please log in</form></body></html>"
_DHT: Final = 0xC4


@dataclass(slots=True)
class HttpState:
    """The record of sent snapshots and the HLS stream, which all connections of one HTTP camera share."""

    snapshots: Playback | None = None
    channel: HlsChannel | None = None
    muxer: LiveMuxer | None = None  # of the channel

    def close(self) -> None:
        if self.muxer is not None:
            self.muxer.close()


async def serve_http(host: Host, state: HttpState, reader: asyncio.StreamReader, link: Link) -> None:
    """Respond to the requests of one connection.

    Raises:
        OSError: the client closed the connection during a response.
        IncompleteReadError: the client closed the connection within a request.
    """
    connection = HttpConnection(host, state, link)
    while True:
        request = await read_request(reader)
        if request is not None and not request.method:  # such as TLS
            await link.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return
        if request is None or not await connection.answer(request):
            return


class HttpConnection:
    """The HTTP connection of one client. It responds to requests, and sends the stream of the synthetic camera."""

    def __init__(self, host: Host, state: HttpState, link: Link) -> None:
        stream = host.persona.stream
        assert isinstance(stream, HttpStream)
        self._host = host
        self._state = state
        self._stream = stream
        self._link = link
        self._loses = host.fault == "loss"

    async def answer(self, request: Request) -> bool:
        """Respond to one request. Return True if the connection stays open for further requests."""
        if challenges := self._host.gate.challenges(request.method, request.headers):
            await self._head(401, *(f"WWW-Authenticate: {challenge}" for challenge in challenges), "Content-Length: 0")
            return True
        path = urlsplit(request.url).path
        if self._stream.redirect and path != _MOVED:
            await self._head(302, f"Location: {_MOVED}", "Content-Length: 0")
            return True
        if self._stream.status != 200:
            await self._head(self._stream.status, "Content-Length: 0")
            return True
        return await self._serve(path)

    async def _serve(self, path: str) -> bool:
        match self._stream.kind:
            case "multipart" | "bare":
                await self._motion_jpeg()
            case "snapshot":
                return await self._snapshot()
            case "hls":
                return await self._hls(path)
            case "mp4":
                await self._mp4()
            case "ts" | "flv":
                await self._live()
            case "page":
                await self._head(200, "Content-Type: text/html", f"Content-Length: {len(_PAGE)}")
                await self._link.send(_PAGE)
                return True
            case "empty":
                await self._head(200, "Content-Type: image/jpeg", "Content-Length: 0")
                return True
        return False

    async def _head(self, status: int, *headers: str) -> None:
        end = self._stream.line_end
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}", "Server: camera zoo", *headers]
        await self._link.answer((end.join(lines) + end * 2).encode("latin-1"))

    async def _body(self, data: bytes) -> None:
        if self._stream.chunked:
            data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        await self._link.send(data)

    # --- JPEGs --------------------------------------------------------------------------------------------------------

    async def _motion_jpeg(self) -> None:
        stream = self._stream
        kind = [f"Content-Type: {stream.content_type}"] if stream.content_type else []
        await self._head(200, *kind, "Cache-Control: no-cache", *(["Transfer-Encoding: chunked"] * stream.chunked))
        if not stream.plays:
            await asyncio.Event().wait()
        if stream.preamble:
            await self._body(stream.preamble)
        playback = self._host.streaming()
        async for position in _ticks(stream.fps):
            image = self._jpeg(position, playback)
            await self._body(self._part(image) if stream.kind == "multipart" else image)

    def _part(self, image: bytes) -> bytes:
        stream = self._stream
        end = stream.line_end
        lines = [stream.boundary]
        if stream.text_parts:
            lines += ["Content-Type: text/plain", "Content-Length: 4", "", "tick", stream.boundary]
        lines += [f"Content-Type: {stream.part_type}"] if stream.part_type else []
        lines += [f"Content-Length: {len(image)}"] if stream.part_length else []
        return (end.join(lines) + end * 2).encode() + image + end.encode()

    def _jpeg(self, position: int, playback: Playback) -> bytes:
        """Return the JPEG of the frame at `position`, and record the frame as sent."""
        frame = clip("mjpeg").frames[position % FRAMES]
        image = frame.units[0]
        if not self._stream.huffman_tables:
            image = _without_segments(image, _DHT)
        if self._stream.comment:
            text = self._stream.comment
            image = image[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + image[2:]
        if self._loses and is_lost(position):
            playback.damaged.add(len(playback.sent))
            image = image[: len(image) // 2]
        playback.sent.append(frame.number)
        return image

    async def _snapshot(self) -> bool:
        """Respond with the next JPEG. Return True if the connection stays open for further requests.

        All clients share one sequence of JPEGs.
        """
        playback = self._state.snapshots = self._state.snapshots or self._host.streaming()
        position = len(playback.sent)
        image = self._jpeg(position, playback)
        length = [f"Content-Length: {len(image)}"] if self._stream.length else ["Connection: close"]
        await self._head(200, f"Content-Type: {self._stream.content_type}", *length)
        await self._link.send(image)
        return self._stream.length

    # --- containers ---------------------------------------------------------------------------------------------------

    def _muxer(self) -> LiveMuxer:
        container: Literal["flv", "mpegts"] = "flv" if self._stream.kind == "flv" else "mpegts"
        return LiveMuxer(clip(), container, self._stream.fps, announced_sound=self._stream.announced_sound)

    async def _live(self) -> None:
        await self._head(200, f"Content-Type: {self._stream.content_type}", "Connection: close")
        playback = self._host.streaming()
        with closing(self._muxer()) as muxer:
            async for position in _ticks(self._stream.fps):
                await self._link.send(self._muxed(muxer, playback, position))

    def _muxed(self, muxer: LiveMuxer, playback: Playback, position: int) -> bytes:
        """Return the bytes of the next frame in its container, and record the frame as sent."""
        number, data = muxer.next_frame.number, muxer.frame()
        if self._loses and is_lost(position) and self._stream.kind in ("ts", "hls"):
            playback.damaged.add(len(playback.sent))
            start = len(data) // TS_PACKET_BYTES // 2 * TS_PACKET_BYTES
            data = data[:start] + data[start + TS_PACKET_BYTES :]
        playback.sent.append(number)
        return data

    async def _mp4(self) -> None:
        data = mp4_file(clip(), self._stream.fps, _MP4_FRAMES)
        await self._head(200, "Content-Type: video/mp4", f"Content-Length: {len(data)}", "Connection: close")
        playback = self._host.streaming()
        playback.sent += [frame.number for frame in clip().frames[:_MP4_FRAMES]]
        await self._link.send(data)

    async def _hls(self, path: str) -> bool:
        channel = self._state.channel = self._state.channel or self._open_channel()
        if path.endswith(".ts"):
            data = channel.segment(path)
            if data is None:
                await self._head(404, "Content-Length: 0")
                return True
            await self._head(200, "Content-Type: video/mp2t", f"Content-Length: {len(data)}")
            await self._link.send(data)
            return True
        text = channel.playlist().encode()
        await self._head(200, "Content-Type: application/vnd.apple.mpegurl", f"Content-Length: {len(text)}")
        await self._link.send(text)
        return True

    def _open_channel(self) -> HlsChannel:
        muxer, playback = self._muxer(), self._host.streaming()
        frames = round(self._stream.segment_s * self._stream.fps)
        self._state.muxer = muxer
        return HlsChannel(self._stream.segment_s, frames, lambda index: self._muxed(muxer, playback, index))


class HlsChannel:
    """A live HLS stream that starts with the first request. A segment exists as soon as all its frames are due."""

    def __init__(self, segment_s: int, frames: int, muxed: Callable[[int], bytes]) -> None:
        """Create the stream. A segment contains `frames` frames, and lasts `segment_s` seconds.

        `muxed` returns the bytes of the frame at an index, in the container of the stream.
        """
        self._segment_s = segment_s
        self._frames = frames
        self._muxed = muxed
        self._began_s = time.monotonic() - 3 * segment_s  # a player can start with three segments
        self._segments: list[bytes] = []

    def playlist(self) -> str:
        """Return the playlist, which lists up to five of the newest segments."""
        self._update()
        first = max(0, len(self._segments) - _SEGMENTS_LISTED)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{self._segment_s}"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        for index in range(first, len(self._segments)):
            lines += [f"#EXTINF:{self._segment_s:.3f},", f"{index}.ts"]
        return "\n".join(lines) + "\n"

    def segment(self, path: str) -> bytes | None:
        """Return the segment at a path, or None if it does not exist."""
        index = path.rpartition("/")[2].removesuffix(".ts")
        return self._segments[int(index)] if index.isdigit() and int(index) < len(self._segments) else None

    def _update(self) -> None:
        complete = int((time.monotonic() - self._began_s) / self._segment_s)
        while len(self._segments) < complete:
            start = len(self._segments) * self._frames
            self._segments.append(b"".join(self._muxed(start + index) for index in range(self._frames)))


async def _ticks(fps: float) -> AsyncIterator[int]:
    """Yield the numbers 0, 1, 2, ... without end, at a rate of `fps` numbers per second."""
    began_s, index = time.monotonic(), 0
    while True:
        await asyncio.sleep(max(0.0, began_s + index / fps - time.monotonic()))
        yield index
        index += 1


def _without_segments(image: bytes, kind: int) -> bytes:
    """Return a JPEG without the segments whose marker has the second byte `kind`, such as `_DHT`."""
    kept, at = image[:2], 2
    while image[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(image[at + 2 : at + 4], "big")
        kept += b"" if image[at + 1] == kind else image[at:end]
        at = end
    return kept + image[at:]
