"""Tests of the TLS context of clients, with real handshakes."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from vision.config.fields import VERIFY
from vision.config.tls import tls_context

CERTIFICATES = Path(__file__).parents[2] / "certificates"


@pytest.fixture
def strict_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `ssl.create_default_context` return a strict context in all Python versions, as in Python 3.13."""
    create: Callable[..., ssl.SSLContext] = ssl.create_default_context

    def create_strict(*, cafile: str | None = None) -> ssl.SSLContext:
        context = create(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", create_strict)


def shake_hands(context: ssl.SSLContext, certificate: str) -> None:
    """Make a client with `context` verify the certificate of a server at 127.0.0.1."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(CERTIFICATES / f"{certificate}.pem")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = context.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.usefixtures("strict_default")
def test_issuer_without_key_usage_is_accepted_with_every_python() -> None:
    shake_hands(tls_context(str(CERTIFICATES / "issuer.pem")), "issued")


@pytest.mark.parametrize(
    ("tls", "certificate", "reason"),
    [(VERIFY, "issued", "issuer"), ("issuer", "expired", "expired"), ("issuer", "self_signed", "self-signed")],
)
def test_certificates_are_checked(tls: str, certificate: str, reason: str) -> None:
    trusted = tls if tls == VERIFY else str(CERTIFICATES / f"{tls}.pem")
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        shake_hands(tls_context(trusted), certificate)
