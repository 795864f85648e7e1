"""Functions that apply the configured certificate check to the TLS connections of Python and FFmpeg.

`CameraConfig.tls` is `VERIFY`, `ACCEPT_ANY`, or the path of a PEM file with the certificates to trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vision.config.fields import ACCEPT_ANY, VERIFY
from vision.config.tls import tls_context
from vision.errors import SourceError

if TYPE_CHECKING:
    import ssl

_SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
)


@cache
def client_context(tls: str) -> ssl.SSLContext:
    """Return the TLS context of a client for a value of `tls`.

    The context is cached, because loading the certificates takes 0.1 s.

    Raises:
        SourceError: the PEM file cannot be read, or contains no certificate.
    """
    import ssl  # imported late to save memory, as in `vision.config.tls`

    if tls == ACCEPT_ANY:
        context = tls_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        return tls_context(tls)
    except OSError as error:  # and `ssl.SSLError`
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "it contains no PEM certificate"
        raise SourceError(f"`tls`: {tls}: {reason}", hint="expected the path of a PEM file", code="tls-file") from error


def ffmpeg_options(tls: str) -> Mapping[str, str]:
    """Return FFmpeg's options for a value of `tls`.

    For `VERIFY`, the options contain the path of the system's certificates, because FFmpeg may not find them itself.
    """
    if tls == ACCEPT_ANY:
        return {"tls_verify": "0"}
    bundle = _system_bundle() if tls == VERIFY else tls
    return {"tls_verify": "1", **({} if bundle is None else {"ca_file": bundle})}


def _system_bundle() -> str | None:
    """Return the path of the file with the system's certificates, or None if there is none at a known path."""
    import ssl

    paths = (ssl.get_default_verify_paths().cafile, *_SYSTEM_BUNDLES)
    return next((path for path in paths if path is not None and Path(path).is_file()), None)
