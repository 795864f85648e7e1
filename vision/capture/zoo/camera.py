"""One synthetic camera: its port, its connections, and its faults."""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
from contextlib import suppress
from typing import Final

from vision.capture.zoo.credentials import Gate
from vision.capture.zoo.http import HttpState, serve_http
from vision.capture.zoo.persona import Fault, HttpStream, Persona, RtspStream
from vision.capture.zoo.playback import Disturbance, Link, Playback
from vision.capture.zoo.rtsp import serve_rtsp

HOST: Final = "127.0.0.1"
DOWN_S: Final = 1.5  # how long the port is closed by the fault `restart`
_DISCARDED_FRAMES: Final = 3  # the last frames, which a client may not have read before its connection is reset
_LISTEN_TRIES: Final = 50
_LISTEN_WAIT_S: Final = 0.1


class Camera:
    """A synthetic camera that listens on a port from `start` to `stop`. Call all methods on one event loop."""

    def __init__(self, persona: Persona, fault: Fault = "none", *, fault_after_s: float, repeats: bool) -> None:
        """Create the camera.

        Args:
            persona: the description of the camera.
            fault: the fault that occurs while the camera streams.
            fault_after_s: the time from the first frame to the fault, in seconds.
            repeats: if True, the fault occurs every `fault_after_s` seconds. If False, the fault occurs once.
        """
        self.persona = persona
        self.fault: Fault = fault
        self.playbacks: list[Playback] = []
        self.disturbance = Disturbance()
        self.gate = Gate(persona.auth)
        self.port = 0
        self.fault_over_s: float | None = None  # monotonic; None before the end of the first fault
        self._fault_after_s = fault_after_s
        self._repeats = repeats
        self._http = HttpState()
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault_task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return self.persona.address(self.port)

    async def start(self, port: int, tls: ssl.SSLContext | None) -> None:
        """Listen on `port`; 0 means any free port. Only cameras with TLS use the context `tls`.

        Raises:
            OSError: the port is in use.
        """
        if self.persona.is_encrypted and self.persona.port != "plain":
            self._tls = tls
        await self._listen(port)
        if self.persona.port == "closed":
            assert self._server is not None
            self._server.close()

    async def stop(self) -> None:
        """Close the port and all connections, and wait until the tasks of the camera have ended."""
        if self._fault_task is not None:
            self._fault_task.cancel()
        if self._server is not None:
            self._server.close()
        for link in tuple(self._links):
            link.reset()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._http.close()

    async def go_down(self) -> None:
        """Close the port, and reset all connections."""
        assert self._server is not None
        self._server.close()
        for link in tuple(self._links):
            link.reset()

    async def come_up(self) -> None:
        """Listen on the same port again, after `go_down`.

        Raises:
            OSError: another program has taken the port.
        """
        await self._listen(self.port)

    def streaming(self) -> Playback:
        """Return a new record of the frames that the camera sends from now on to a client.

        The first call starts the timer of the camera's fault, if any.
        """
        playback = Playback()
        self.playbacks.append(playback)
        if self.fault in ("cut", "stall", "restart") and self._fault_task is None:
            self._fault_task = asyncio.create_task(self._fail())
        return playback

    async def _listen(self, port: int) -> None:
        for left in reversed(range(_LISTEN_TRIES)):
            try:
                self._server = await asyncio.start_server(self._accept, HOST, port, ssl=self._tls)
            except OSError:
                if not self.port or not left:  # after `restart`, old connections can occupy the port for a moment
                    raise
                await asyncio.sleep(_LISTEN_WAIT_S)
            else:
                self.port = self._server.sockets[0].getsockname()[1]
                return

    async def _fail(self) -> None:
        while True:
            await asyncio.sleep(self._fault_after_s)
            links = tuple(self._links)
            if self.fault == "stall":
                for link in links:
                    link.stall()
            elif self.fault == "restart":
                assert self._server is not None
                self._server.close()
            if self.fault in ("cut", "restart"):
                for link in links:
                    link.reset()
                for playback in self.playbacks:
                    playback.discarded(_DISCARDED_FRAMES)
            if self.fault == "restart":
                await asyncio.sleep(DOWN_S)
                await self._listen(self.port)
            self.fault_over_s = time.monotonic()
            if not self._repeats:
                return

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = Link(writer, self.fault, self.disturbance)
        self._links.add(link)
        try:
            await self._serve(reader, link)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, struct.error):
            pass  # the client has closed the connection, or speaks a different protocol
        except asyncio.CancelledError:
            link.reset()  # `stop`
        finally:
            self._links.discard(link)
            self._tasks.discard(task)
            with suppress(asyncio.CancelledError):
                await link.close()

    async def _serve(self, reader: asyncio.StreamReader, link: Link) -> None:
        if self.persona.port == "silent":
            await reader.read()
            return
        match self.persona.stream:
            case RtspStream():
                await serve_rtsp(self, reader, link)
            case HttpStream():
                await serve_http(self, self._http, reader, link)
