"""All personas (descriptions of synthetic cameras), and the event loop that runs the cameras in a thread."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vision.capture.zoo.camera import Camera
from vision.capture.zoo.clips import can_encode
from vision.capture.zoo.http_personas import HTTP_PERSONAS
from vision.capture.zoo.persona import Persona, RtspStream
from vision.capture.zoo.rtp import clip_of
from vision.capture.zoo.rtsp_personas import RTSP_PERSONAS
from vision.errors import VisionError

PERSONAS: Final[tuple[Persona, ...]] = (*RTSP_PERSONAS, *HTTP_PERSONAS)

_STOP_S: Final = 5.0


def missing(persona: Persona) -> str | None:
    """Return the reason why this machine cannot encode the video of a camera, or None if it can.

    For HTTP cameras, always return None.
    """
    stream = persona.stream
    if isinstance(stream, RtspStream) and not can_encode(stream.codec):
        return f"this PyAV cannot encode {stream.codec}"
    return None


class Zoo:
    """Synthetic cameras that run on an event loop in a separate thread, until `stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="camera-zoo", daemon=True)
        self._cameras: list[Camera] = []
        self._tls: ssl.SSLContext | None = None
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def start(self, cameras: Sequence[Camera], first_port: int = 0) -> None:
        """Start cameras on consecutive ports from `first_port`; 0 means any free ports.

        First encode the clips of RTSP cameras, which can take several seconds.

        Raises:
            VisionError: a port is in use, or a certificate cannot be created.
        """
        if self._tls is None and any(camera.persona.is_encrypted for camera in cameras):
            self._tls = _self_signed()
        for camera in cameras:
            if isinstance(camera.persona.stream, RtspStream):
                clip_of(camera.persona.stream)
        for index, camera in enumerate(cameras):
            port = first_port + index if first_port else 0
            try:
                asyncio.run_coroutine_threadsafe(camera.start(port, self._tls), self._loop).result()
            except OSError as error:
                raise VisionError(
                    f"port {port} cannot be used: {error.strerror}",
                    hint="choose a different --port",
                    code="port-in-use",
                ) from None
            self._cameras.append(camera)

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine of a camera on the event loop, and wait until it has ended.

        Raises:
            TimeoutError: the coroutine did not end within 5 s.
            Exception: the coroutine raised this exception.
        """
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_STOP_S)

    def stop_camera(self, camera: Camera) -> None:
        """Stop one camera, which must be running in this zoo."""
        self.call(camera.stop())
        self._cameras.remove(camera)

    def stop(self) -> None:
        """Stop all cameras and the thread."""
        for camera in tuple(self._cameras):
            self.stop_camera(camera)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_S)
        self._loop.close()


@contextmanager
def running_zoo() -> Iterator[Zoo]:
    """Yield a zoo without cameras, and stop it at the end."""
    zoo = Zoo()
    try:
        yield zoo
    finally:
        zoo.stop()


def selected(names: Iterable[str]) -> list[Persona]:
    """Return the descriptions (personas) of the cameras with these names, or of all cameras if `names` is empty.

    Raises:
        VisionError: a name is unknown.
    """
    by_name = {persona.name: persona for persona in PERSONAS}
    wanted = list(names)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise VisionError(
            f"no camera is called {', '.join(unknown)}",
            hint="`vision camera-zoo --list` shows them",
            code="unknown-name",
        )
    return [by_name[name] for name in wanted] or list(PERSONAS)


def _self_signed() -> ssl.SSLContext:
    """Create a self-signed certificate, and return the TLS context of a server that uses it.

    Raises:
        VisionError: the ``openssl`` command is not installed, or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
        line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        line += ["-subj", "/CN=camera-zoo", "-days", "30", "-keyout", str(key), "-out", str(certificate)]
        try:
            subprocess.run(line, check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            raise VisionError(
                f"no certificate can be created for the TLS cameras: {type(error).__name__}",
                hint="install the package openssl, or leave the TLS cameras out with --only",
                code="openssl",
            ) from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context
