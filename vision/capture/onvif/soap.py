"""Client for the SOAP requests of ONVIF, with limits on the responses of hostile devices."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

import httpx

from vision.capture.onvif.documents import MAX_BYTES, NAMESPACES, find_text, parse_document
from vision.errors import SourceError

_HTTP_ERROR: Final = 400
_REFUSED: Final = (401, 403)
_WSSE: Final = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss"
_HEADERS: Final = {"content-type": "application/soap+xml; charset=utf-8", "accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Account:
    """A user name and its password."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Return a description of the account without the password."""
        return f"Account({self.user!r})"


class SoapClient:
    """Client that sends requests to one device over the HTTP client `http`. It sends only digests of the password.

    The caller owns and closes `http`. If `account` is None, all requests are anonymous.
    """

    def __init__(self, http: httpx.AsyncClient, account: Account | None) -> None:
        self._http = http
        self._account = account
        self._digest = None if account is None else httpx.DigestAuth(account.user, account.password)
        self.clock_offset = timedelta()
        """The device's clock minus the clock of this machine. Devices refuse old timestamps."""

    async def call(self, address: str, body: str, *, anonymous: bool = False) -> Element:
        """Send a request, and return the first element in the body of the response.

        Args:
            address: URL of the service.
            body: the XML of the request.
            anonymous: True if the request needs no account.

        Raises:
            SourceError: the address is invalid, the device does not answer or refuses the request, or the response is
                too large, hostile, or not SOAP.
        """
        header = "" if anonymous or self._account is None else self._security(self._account)
        envelope = f'<s:Envelope xmlns:s="{NAMESPACES["s"]}">{header}<s:Body>{body}</s:Body></s:Envelope>'
        try:
            status, data = await self._post(address, envelope.encode(), None if anonymous else self._digest)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise SourceError(f"{address} does not answer: {reason}", code="onvif-unreachable") from error
        except (httpx.InvalidURL, httpx.StreamError, ValueError) as error:
            raise SourceError(f"{address} cannot be used: {error}", code="onvif-unreachable") from error
        if status in _REFUSED:
            raise _refused(f"HTTP status {status}", self._account)
        if status >= _HTTP_ERROR and not data.lstrip().startswith(b"<"):
            raise SourceError(f"expected a SOAP response, got HTTP status {status}", code="onvif-http")
        return self._content(parse_document(data))

    async def _post(self, address: str, content: bytes, auth: httpx.Auth | None) -> tuple[int, bytes]:
        async with self._http.stream("POST", address, content=content, headers=_HEADERS, auth=auth) as response:
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > MAX_BYTES:
                    text = f"expected a response of at most {MAX_BYTES} bytes, got more"
                    raise SourceError(text, code="onvif-too-large")
            return response.status_code, bytes(data)

    def _content(self, root: Element) -> Element:
        content = root.find("s:Body/*", NAMESPACES)
        if content is None:
            raise SourceError("expected a SOAP envelope with a body, got a different document", code="onvif-xml")
        if content.tag != f"{{{NAMESPACES['s']}}}Fault":
            return content
        codes = " ".join(value.text or "" for value in content.iter(f"{{{NAMESPACES['s']}}}Value"))
        reason = find_text(content, "s:Reason/s:Text") or "no reason"
        if "NotAuthorized" in codes or "FailedAuthentication" in codes:
            raise _refused(reason, self._account)
        raise SourceError(f"the device refuses the request: {reason}", code="onvif-fault")

    def _security(self, account: Account) -> str:
        """Return the header with the user name, and with the digest of password, nonce, and time (WS-Security)."""
        nonce = secrets.token_bytes(16)
        created = (datetime.now(timezone.utc) + self.clock_offset).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        digest = hashlib.sha1(nonce + created.encode() + account.password.encode(), usedforsecurity=False).digest()
        return (
            f'<s:Header><w:Security xmlns:w="{_WSSE}-wssecurity-secext-1.0.xsd" s:mustUnderstand="1"><w:UsernameToken>'
            f"<w:Username>{escape(account.user)}</w:Username>"
            f'<w:Password Type="{_WSSE}-username-token-profile-1.0#PasswordDigest">'
            f"{base64.b64encode(digest).decode()}</w:Password>"
            f'<w:Nonce EncodingType="{_WSSE}-soap-message-security-1.0#Base64Binary">'
            f"{base64.b64encode(nonce).decode()}</w:Nonce>"
            f'<u:Created xmlns:u="{_WSSE}-wssecurity-utility-1.0.xsd">{created}</u:Created>'
            "</w:UsernameToken></w:Security></s:Header>"
        )


def _refused(reason: str, account: Account | None) -> SourceError:
    if account is None:
        return SourceError(f"the device requires an account: {reason}", hint="add --user NAME", code="onvif-no-account")
    text = f"the device refuses the user {account.user!r}: {reason}"
    return SourceError(text, hint="check the user and the password for ONVIF", code="onvif-account")
