"""The TLS context of every client in the program: cameras, sinks, and language model servers.

The module `ssl` is imported when it is needed, because it takes 4 MiB of memory in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision.config.fields import VERIFY

if TYPE_CHECKING:
    import ssl


def tls_context(tls: str = VERIFY) -> ssl.SSLContext:
    """Return the TLS context of a client, which checks the certificates of servers.

    Python 3.13 and later refuse issuers that do not comply with RFC 5280 in every detail, for example those without the
    extension "key usage". Many cameras and private networks have such issuers, which FFmpeg and earlier versions of
    Python accept. Therefore, the context accepts these issuers with every version of Python.

    Args:
        tls: `VERIFY` to trust the issuers of the system, or the path of a PEM file with the certificates to trust.

    Raises:
        OSError: the file cannot be read.
        ssl.SSLError: the file contains no certificate.
    """
    import ssl

    context = ssl.create_default_context(cafile=None if tls == VERIFY else tls)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
